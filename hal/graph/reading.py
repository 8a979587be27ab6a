"""Reading ONNX files that may be absent, damaged, foreign or hostile: one clear error for each."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from hal.errors import ModelError, problems

_PICKLE = "a Python pickle: load it in its framework and export it to ONNX"
#: First bytes of files that people mistake for ONNX, and what to do with them.
#: Source: PyTorch and Keras zip containers (PK), HDF5 signature, TFLite identifier at offset 4, GGUF.
_FOREIGN = (
    (0, b"PK\x03\x04", "a zip archive (PyTorch .pt or Keras): export it to ONNX first"),
    (0, b"\x80\x02", _PICKLE),
    (0, b"\x80\x03", _PICKLE),
    (0, b"\x80\x04", _PICKLE),
    (0, b"\x80\x05", _PICKLE),
    (0, b"\x89HDF", "an HDF5 file (Keras): convert it with tf2onnx"),
    (0, b"GGUF", "a GGUF file: load it with transformers and export it to ONNX"),
    (4, b"TFL3", "a TFLite file: convert it with tf2onnx"),
    (0, b"<?xml", "an XML file (OpenVINO IR): give the ONNX it was made from"),
)
_ELEMENT_TYPES = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
#: Bits per element. Source: onnx.proto, TensorProto.DataType; types with packed or variable sizes by name.
_BITS = {
    number: 4 if name.endswith(("INT4", "FLOAT4E2M1")) else 2 if name.endswith("INT2") else 8 * size
    for name, number in onnx.TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING") and (size := onnx.helper.tensor_dtype_to_np_dtype(number).itemsize)
}
#: Protobuf's limit for one message. Source: protobuf documentation, "Proto Limits".
_LARGEST = (2 << 30) - 1
#: Problems of one file that are told; a damaged file can have thousands.
_SHOWN = 20


def is_foreign(path: Path) -> bool:
    """Whether a file begins like one of another known format; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:  # read() has the words for it
        return False
    return any(start[offset : offset + len(magic)] == magic for offset, magic, _ in _FOREIGN)


def read(path: Path) -> onnx.ModelProto:
    """Parse a file, without its external data.

    Raises:
        ModelError: It is missing, a folder, unreadable, empty or not ONNX.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelError(f"{str(path)!r} is a device or a pipe; expected an ONNX file")
        if path.exists() and path.stat().st_size > _LARGEST:
            raise ModelError(
                f"{str(path)!r} has {path.stat().st_size} bytes; protobuf, and so ONNX, ends at 2 GiB: "
                "keep the weights in external data beside the model"
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"there is no file {str(path)!r}; expected an ONNX model or demo:NAME") from None
    except IsADirectoryError:
        raise ModelError(f"{str(path)!r} is a folder; expected an ONNX file") from None
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error.strerror}; check its permissions") from error
    return parse(data, repr(str(path)))


def parse(data: bytes, what: str) -> onnx.ModelProto:
    """Parse a serialised model.

    Args:
        data: The bytes.
        what: Names the source in the error.

    Raises:
        ModelError: Empty, truncated, garbage, or another format.
    """
    if not data:
        raise ModelError(f"{what} is empty; expected an ONNX model")
    for offset, magic, advice in _FOREIGN:
        if data[offset : offset + len(magic)] == magic:
            raise ModelError(f"{what} is not an ONNX model but {advice}")
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{what} ({len(data)} bytes) is not a whole ONNX model: {error}; "
            "it is truncated, damaged or of another format: export or download it again"
        ) from None
    # Protobuf takes many kinds of garbage for a message of unknown fields.
    if proto.ir_version <= 0 or not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(
            f"{what} ({len(data)} bytes) is not an ONNX model: it has no graph with outputs; "
            "expected a file written by an ONNX exporter"
        )
    return proto


def check(proto: onnx.ModelProto, base: Path | None, name: str, *, has_weights: bool = True) -> None:
    """Everything that can be said of a model before any runtime sees it.

    Args:
        proto: The model.
        base: The folder of its external data; None where it came as bytes.
        name: Names it in errors.
        has_weights: Whether its external data must be there.

    Raises:
        ModelError: Names all problems at once: versions, unknown operators, dangling names, external
            data.
    """
    found = [
        *_version_problems(proto),
        *_operator_problems(proto),
        *_input_problems(proto.graph),
        *_wiring_problems(proto.graph, set()),
        *_size_problems(proto.graph),
    ]
    for tensor in external_tensors(proto) if has_weights else ():
        problem = _external_problem(tensor, base)
        if problem:
            found.append(problem)
    if len(found) > _SHOWN:
        found[_SHOWN:] = [f"and {len(found) - _SHOWN} more of the kind"]
    if found:
        raise ModelError(problems(f"model {name!r} cannot be used", found))


def external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor, at any depth, whose data lies in another file."""
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield tensor
        for node in graph.node:
            for attribute in node.attribute:
                for tensor in (attribute.t, *attribute.tensors):
                    if tensor.data_location == onnx.TensorProto.EXTERNAL:
                        yield tensor


def external_bytes(tensor: onnx.TensorProto, base: Path) -> memoryview:
    """The bytes of an external tensor that :func:`check` accepted, mapped, not copied."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    with (base / fields["location"]).open("rb") as file:
        size = file.seek(0, 2)
        offset = int(fields.get("offset", "0"))
        length = int(fields.get("length", str(size - offset)))
        if length == 0:
            return memoryview(b"")
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return view[offset : offset + length]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _graphs(inner)


def _version_problems(proto: onnx.ModelProto) -> Iterator[str]:
    newest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            yield (
                f"it needs operator set {opset.version}, onnx {onnx.__version__} knows up to {newest}; "
                "export with a lower opset or upgrade onnx"
            )
    if not any(opset.domain in ("", "ai.onnx") for opset in proto.opset_import) and not any(
        True for _ in proto.functions
    ):
        domains = sorted({opset.domain for opset in proto.opset_import})
        if not domains:
            yield "it imports no operator set; expected at least the default domain"


def _operator_problems(proto: onnx.ModelProto) -> Iterator[str]:
    versions = {opset.domain or "ai.onnx": opset.version for opset in proto.opset_import}
    functions = {(function.domain or "ai.onnx", function.name) for function in proto.functions}
    newest = onnx.defs.onnx_opset_version()
    unknown: set[str] = set()
    for graph in _graphs(proto.graph):
        for node in graph.node:
            domain = node.domain or "ai.onnx"
            # Domains of strangers are for backends to judge; the standard ones can be judged here.
            if domain not in ("ai.onnx", "ai.onnx.ml") or (domain, node.op_type) in functions:
                continue
            version = versions.get(domain, 0)
            if domain == "ai.onnx" and version > newest:
                continue  # said once, by the version check
            schema_domain = "" if domain == "ai.onnx" else domain
            if not onnx.defs.has(node.op_type, schema_domain):
                unknown.add(f"operator {node.op_type!r} is not in the {domain} domain of any known version")
            elif not onnx.defs.has(node.op_type, max(version, 1), schema_domain):
                unknown.add(f"operator {node.op_type!r} does not exist in {domain} version {version}")
    for text in sorted(unknown):
        yield f"{text}; check the exporter, or give its domain if it is a custom operator"


def _input_problems(graph: onnx.GraphProto) -> Iterator[str]:
    seen = set()
    for value in graph.input:
        if value.name in seen:
            yield f"input {value.name!r} is declared twice; the file is damaged"
        seen.add(value.name)
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            what = (kind or "nothing").removesuffix("_type").replace("_", " ")
            yield f"input {value.name!r} is declared as {what}; only tensors can be given: export it so"
        elif value.type.tensor_type.elem_type not in _ELEMENT_TYPES:
            yield (
                f"input {value.name!r} has element type {value.type.tensor_type.elem_type}, "
                "which onnx does not define; the file is damaged"
            )


def _wiring_problems(graph: onnx.GraphProto, outer: set[str]) -> Iterator[str]:
    known = outer | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer} | {""}
    for index, node in enumerate(graph.node):
        what = f"node {node.name or index!r} ({node.op_type})"
        for name in node.input:
            if name not in known:
                yield (
                    f"{what} reads {name!r}, which nothing before it writes; "
                    "the file is damaged or its nodes are out of order"
                )
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.UNDEFINED and not attribute.ref_attr_name:
                yield f"{what} has an attribute {attribute.name!r} without a type; the file is damaged"
            for inner in (attribute.g, *attribute.graphs):
                yield from _wiring_problems(inner, known)
        for name in node.output:
            if name and name in known - outer:
                yield f"{what} writes {name!r}, which is written before; the file is damaged"
            known.add(name)
    for value in graph.output:
        if value.name not in known:
            yield f"output {value.name!r} is written by no node; the file is damaged"


def _size_problems(graph: onnx.GraphProto) -> Iterator[str]:
    for tensor in (tensor for inner in _graphs(graph) for tensor in inner.initializer):
        if not tensor.HasField("raw_data"):
            continue
        wanted = _n_bytes(tensor)
        if wanted is not None and len(tensor.raw_data) != wanted:
            yield (
                f"weights {tensor.name!r} have {len(tensor.raw_data)} bytes; "
                f"{list(tensor.dims)} of type {tensor.data_type} need {wanted}; the file is damaged"
            )


def _n_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes of a tensor's data by its shape and type; None where the type has no fixed size."""
    bits = _BITS.get(tensor.data_type)
    if bits is None or any(size < 0 for size in tensor.dims):
        return None
    return -(-math.prod(tensor.dims) * bits // 8)


def _external_problem(tensor: onnx.TensorProto, base: Path | None) -> str | None:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    what = f"external data of {tensor.name!r} ({location!r})"
    if base is None:
        return f"{what} cannot be found from bytes; load the model from its file"
    if "\0" in location:
        return f"{what} has a zero byte in its name; the file is damaged"
    path = base / location
    if not location or Path(location).is_absolute() or not path.resolve().is_relative_to(base):
        return f"{what} lies outside the model's folder; it must be a relative path inside it"
    if not path.is_file():
        return f"{what} is missing; expected the file beside the model"
    try:
        offset = int(fields.get("offset", "0"))
        length = int(fields.get("length", "-1"))
    except ValueError:
        return f"{what} has an offset or length that is no number; the file is damaged"
    size = path.stat().st_size
    if offset < 0 or offset + max(length, 0) > size:
        return f"{what} is {size} bytes; the model wants {max(length, 0)} bytes at offset {offset}"
    wanted = _n_bytes(tensor)
    told = length if length >= 0 else size - offset
    if wanted is not None and told < wanted:
        return f"{what} gives {told} bytes; {list(tensor.dims)} need {wanted}"
    return None
