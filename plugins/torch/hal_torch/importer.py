"""PyTorch models as ONNX files: modules, exported programs and ``.pt2`` files."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hal.errors import ModelError
from hal.graph import origin
from hal.graph.interface import write
from hal.tensor import as_numpy
from hal_torch.interface import interface_of

if TYPE_CHECKING:
    import torch


class TorchImporter:
    """Imports PyTorch only when it is given something of PyTorch's."""

    def accepts(self, source: Any) -> bool:
        """Whether ``source`` is a ``torch.nn.Module``, an exported program, or a path ending in ``.pt2``."""
        if isinstance(source, str | Path):
            return str(source).endswith(".pt2")
        # An object of PyTorch's can only be there if PyTorch is.
        loaded = sys.modules.get("torch")
        module = getattr(getattr(loaded, "nn", None), "Module", None)
        return (module is not None and isinstance(source, module)) or _is_program(source)

    def to_onnx(
        self,
        source: Any,
        inputs: Any,
        path: Path,
        free: Mapping[str, Collection[int]] | None = None,
    ) -> dict[str, Any]:
        """Write an ONNX file with ``torch.onnx.export``; the module is exported in evaluation mode.

        Shapes are those of the example inputs, but for dimensions that are to be free. How the model is
        called and what it returns is kept in the file. A module's mode (training or not) is left as it was.

        Args:
            source: What :meth:`accepts` said yes to.
            inputs: A tensor or array, a tuple or list of positional ones, or a dict of keyword ones. None
                is enough for a program that keeps its example inputs.
            path: File to write; large weights come beside it.
            free: Positions of free dimensions by the name of the parameter of ``forward``, a tensor.

        Returns:
            The example inputs as numpy arrays by the names in the file.

        Raises:
            ModelError: The model cannot be exported; the text says why and what to do.
        """
        if isinstance(source, str | Path):
            source = _load(Path(source))
        args, kwargs = _split(source, inputs)
        dynamic = _dynamic(source, args, kwargs, free) if free else None
        with _evaluating(source), _quiet():
            program = _export(source, args, kwargs, dynamic)
        flat = _by_name(program.exported_program, args, kwargs)
        model = program.model
        if (found := interface_of(program.exported_program, model.graph, source)) is not None:
            write(model, found)
        for node in model.graph.all_nodes():
            # Source lines are worth keeping; where the sources lie is this machine's affair.
            origin.without_folders(node)
        program.save(path)
        return {str(value.name): flat[str(value.name)] for value in model.graph.inputs}


def _is_program(source: Any) -> bool:
    return any(
        kind.__name__ == "ExportedProgram" and kind.__module__.startswith("torch.export")
        for kind in type(source).__mro__
    )


def _load(path: Path) -> torch.export.ExportedProgram:
    import torch

    try:
        with _quiet():
            return torch.export.load(path)
    except Exception as error:  # PyTorch raises whatever its reader of archives meets
        raise ModelError(
            f"{path.name} cannot be read as a PyTorch program ({_cause(error)}); "
            "expected a file that torch.export.save wrote, by this version of PyTorch or an older one"
        ) from error


def _split(source: Any, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if inputs is None:
        kept = getattr(source, "example_inputs", None) if _is_program(source) else None
        if kept is None:
            raise ModelError(
                f"{type(source).__name__} needs example inputs to be exported; "
                "expected a tensor, a tuple of tensors or a dict of keyword arguments"
            )
        return tuple(kept[0]), dict(kept[1])
    inputs = _tensors(inputs)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def _tensors(inputs: Any) -> Any:
    """Example inputs with tensors in place of numpy arrays, at any depth."""
    from torch.utils import _pytree as pytree

    from hal_torch.tensors import as_torch

    return pytree.tree_map(lambda leaf: as_torch(leaf) if isinstance(leaf, np.ndarray) else leaf, inputs)


def _dynamic(
    source: Any, args: tuple[Any, ...], kwargs: dict[str, Any], free: Mapping[str, Collection[int]]
) -> dict[str, Any]:
    """What ``torch.onnx.export`` takes as ``dynamic_shapes``: by parameter."""
    import torch

    if _is_program(source):
        raise ModelError(
            "an exported program keeps the sizes that it was exported with: give the module itself, or "
            "export it to ONNX with dynamic_shapes and give the file"
        )
    given = inspect.signature(source.forward).bind(*args, **kwargs).arguments
    tensors = [name for name, value in given.items() if isinstance(value, torch.Tensor)]
    if unknown := sorted(free.keys() - set(tensors)):
        raise ModelError(
            f"{', '.join(unknown)} cannot have ranges of sizes: expected parameters of "
            f"{type(source).__name__}.forward that are tensors: {', '.join(tensors) or 'none'}"
        )
    size = torch.export.Dim.DYNAMIC
    return {
        name: dict.fromkeys(free[name], size) if name in free else _fixed(value)
        for name, value in given.items()
    }


def _fixed(value: Any) -> Any:
    """No free dimension in an argument, whose structure must be kept."""
    from torch.utils import _pytree as pytree

    return pytree.tree_map(lambda leaf: None, value)


def _fixed_sizes(error: BaseException) -> list[str]:
    """What PyTorch says of dimensions that the model's code fixes, each in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return [line.strip("- ").rstrip(".") for line in str(error).splitlines() if "tracing inferred" in line]


def _export(
    source: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: dict[str, Any] | None
) -> Any:
    import torch

    try:
        program = torch.onnx.export(
            source, args, kwargs=kwargs, dynamo=True, verbose=False, dynamic_shapes=dynamic
        )
    except Exception as error:  # exporting runs the user's own code, which may raise anything
        if dynamic is not None and (fixed := _fixed_sizes(error)):
            raise ModelError(
                f"{type(source).__name__} fixes sizes that are to have a range: {'; '.join(fixed)}; give "
                "these one size"
            ) from error
        raise ModelError(
            f"PyTorch cannot export {type(source).__name__} to ONNX: {_cause(error)}\n"
            "Check that the example inputs run through the model, and replace Python control flow on the "
            "values of tensors; or export it yourself and give the ONNX file"
        ) from error
    return program


def _by_name(
    program: torch.export.ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Flattened example inputs by the names that the exporter gave them."""
    import torch
    from torch.utils import _pytree as pytree

    kept = program.example_inputs
    # Keyword arguments are flattened in the order of the signature, not of the caller's dict.
    order = list(kept[1]) if kept is not None else list(kwargs)
    leaves = pytree.tree_leaves((args, {name: kwargs[name] for name in order if name in kwargs}))
    names = program.graph_signature.user_inputs
    if len(names) != len(leaves):
        raise ModelError(
            f"{len(leaves)} example inputs were given where the program takes {len(names)}: "
            f"{', '.join(map(str, names))}; give them as the program was exported with"
        )
    return {
        str(name): np.array(as_numpy(leaf.detach().cpu().contiguous()))
        for name, leaf in zip(names, leaves, strict=True)
        if isinstance(leaf, torch.Tensor)
    }


def _cause(error: BaseException) -> str:
    from hal_torch.failures import reason

    # The exporter wraps the error that tells in ones that only say which step failed.
    while error.__cause__ is not None:
        error = error.__cause__
    return reason(error)


@contextlib.contextmanager
def _evaluating(source: Any) -> Iterator[None]:
    modules = [] if _is_program(source) else list(source.modules())
    modes = [module.training for module in modules]
    try:
        if modules:
            source.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps and failed graphs, warns of its own calls, and logs what it lacks."""
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        nowhere = io.StringIO()
        with (
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
