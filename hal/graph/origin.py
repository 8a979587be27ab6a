"""Where a node came from: the module it belongs to and the line of the user's code that made it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_NAMESPACE = "namespace"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_TRACE = "pkg.torch.onnx.stack_trace"

_FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+)')
_INSTALLED = re.compile(r"^.*/(?:site|dist)-packages/")
_STANDARD = re.compile(r"^.*/lib/python3\.\d+/")
#: PyTorch run from its own checkout; no project of a user has these folders.
_TORCH_CHECKOUT = re.compile(r"/torch/(?:nn/(?:modules|functional)|_\w+/)")
#: onnx's inliner and TensorFlow's converter put these before the names of others.
_PREFIX = re.compile(r"^(?:.*__Inline_\d+__|StatefulPartitionedCall/)")


def module_of(node: ir.Node) -> str:
    """The dotted path of the module a node belongs to, ``encoder.layer.0.attention``; empty where unknown.

    ``torch.onnx.export(dynamo=True)`` writes the paths of the modules around each node; its older form wrote
    a ``namespace`` of ``path: class`` steps. Exports by tracing, of TensorFlow and of Keras keep the scope in
    the node's name, ``/encoder/layer.0/attention/MatMul``, of which the last step is the operator.
    A name without a slash (``p2o.Conv.0``, ``Conv_17``) has no scope.
    """
    scopes = _literals(node.metadata_props.get(_SCOPES, ""))
    if scopes:
        # The last one is the call itself.
        return next((scope for scope in reversed(scopes[:-1]) if scope), "")
    namespace = node.metadata_props.get(_NAMESPACE, "")
    if namespace:
        steps = [step.partition(":")[0].strip() for step in namespace.split("/")[:-1]]
        return next((step for step in reversed(steps) if step), "")
    name = _PREFIX.sub("", node.name or "")
    return ".".join(part for part in name.split("/")[:-1] if part)


def source_of(node: ir.Node) -> str:
    """``package/file.py:line`` of the innermost call outside PyTorch; empty where the file does not tell.

    PyTorch's exporter keeps the calls of ``forward`` methods around each node, innermost last.
    """
    trace = node.metadata_props.get(_TRACE, "")
    if not trace:
        return ""
    names = portable(_files(trace), _literals(node.metadata_props.get(_CLASSES, "")))
    for found in reversed(list(_FRAME.finditer(trace))):
        file = found["file"]
        # Generated code has names like <eval_with_key>.785.
        if file.startswith("<") or names[file].startswith("torch/") or _TORCH_CHECKOUT.search(_slashed(file)):
            continue
        return f"{names[file]}:{found['line']}"
    return ""


def without_folders(node: ir.Node) -> None:
    """Rewrite the files in a node's stack of calls, so that they tell nothing of the machine's folders."""
    classes = _literals(node.metadata_props.get(_CLASSES, ""))
    for key, text in node.metadata_props.items():
        names = portable(_files(text), classes)
        node.metadata_props[key] = _FRAME.sub(partial(_renamed, names=names), text)


def _renamed(found: re.Match[str], names: Mapping[str, str]) -> str:
    return found[0].replace(found["file"], names[found["file"]])


def portable(files: Iterable[str], classes: Iterable[str] = ()) -> dict[str, str]:
    """Names of files from the root of their package on, ``transformers/models/bert/modeling_bert.py``.

    The root is the folder of installed packages, or the one from which the file of a known class is named as
    its module, ``tests.models.modules.Net`` being in ``tests/models/modules.py``. Other files next to or
    below such a root are named from there; of the rest, only the last part is kept.

    Args:
        files: Paths as Python shows them, of any operating system, on whichever machine.
        classes: Full names of classes that may be defined in the files.
    """
    files = list(files)
    modules = {".".join(name.split(".")[:n]) for name in classes for n in range(1, name.count(".") + 1)}
    ends = {f"/{module.replace('.', '/')}{end}" for module in modules for end in (".py", "/__init__.py")}
    roots = sorted(
        {
            path[: len(path) - len(end) + 1]
            for path in map(_slashed, files)
            for end in ends
            if path.endswith(end) and not _INSTALLED.match(path)
        },
        key=len,
    )
    return {file: _portable(_slashed(file), roots) for file in files}


def _portable(path: str, roots: Iterable[str]) -> str:
    for pattern in (_INSTALLED, _STANDARD):
        if pattern.match(path):
            return pattern.sub("", path)
    for root in roots:
        if path.startswith(root):
            return path[len(root) :]
    is_absolute = path.startswith("/") or path[1:3] == ":/"
    return path.rpartition("/")[2] if is_absolute else path


def _slashed(path: str) -> str:
    return path.replace("\\", "/")


def _files(trace: str) -> list[str]:
    return list(dict.fromkeys(found["file"] for found in _FRAME.finditer(trace)))


@lru_cache(maxsize=1024)
def _literals(text: str) -> tuple[str, ...]:
    """The strings of a list as Python writes it; none where it is something else."""
    try:
        found = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError):
        return ()
    return tuple(str(item) for item in found) if isinstance(found, list) else ()
