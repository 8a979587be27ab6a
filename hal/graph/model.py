"""The graph: an ONNX model held through onnx-ir, named, bound to shapes and ready for backends."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from hal.errors import InputError, ModelError, StorageError, problems
from hal.graph import reading
from hal.graph.ranges import Ranges, Shapes, largest, named
from hal.records.targets import Signature, TensorSpec
from hal.tensor import Array

_log = logging.getLogger("hal.graph")
# It would print a traceback on stderr for a file that is refused with one clear error here.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())

#: Shape of a tensor whose rank is not known.
ANY_RANK = ("...",)

#: Above this, weights are written beside the model, so that readers can map them instead of copying
#: (and protobuf's limit of 2 GiB is never met).
_EXTERNAL_ABOVE_BYTES = 64 << 20


class Graph:
    """An ONNX model whose nodes all have unique names. Treat it as frozen: methods return new ones.

    Attributes:
        name: The graph's name in the file, or the file's stem; never a path.
        model: The onnx-ir model. Read it; do not change it.
        digest: sha256 of the model's content (graph, weights, bound shapes) as hex.
    """

    def __init__(self, model: ir.Model, *, name: str, digest: str, path: Path | None = None) -> None:
        self.model = model
        self.name = name
        self.digest = digest
        self._path = path

    @classmethod
    def load(
        cls,
        source: str | Path | bytes | onnx.ModelProto | ir.Model,
        *,
        name: str = "",
        has_weights: bool = True,
    ) -> Graph:
        """Read a model.

        Args:
            source: A file, its bytes, or a model object.
            name: Shown instead of the file's stem.
            has_weights: False for planning, which needs shapes and not weights: external data is neither read
                nor has to be there, and the digest tells only where it would be. Such a graph cannot run.

        Raises:
            ModelError: The file is missing, empty, damaged, not ONNX, too new, or refers to external
                data that is absent or lies outside its folder. All problems are named at once.
        """
        if isinstance(source, ir.Model):
            proto, base, stem = ir.serde.serialize_model(source), None, source.graph.name or "model"
        elif isinstance(source, onnx.ModelProto):
            proto, base, stem = source, None, source.graph.name or "model"
        elif isinstance(source, bytes):
            proto, base, stem = reading.parse(source, "the bytes given"), None, "model"
        else:
            path = Path(source)
            proto, base, stem = reading.read(path), path.parent.resolve(), path.stem
        reading.check(proto, base, stem, has_weights=has_weights)
        digest = _digest(proto, base if has_weights else None)
        # onnx-ir raises many kinds of errors, its own and built-in ones, for files that pass the checks
        # above and are still no models. All mean the same to the caller.
        try:
            model = ir.serde.deserialize_model(proto)
            if base is not None:
                ir.external_data.set_base_dir(model.graph, base)
            _normalise(model)
            _infer_shapes(model)
            graph = cls(model, name=name or stem, digest=digest)
            _ = graph.signature
        except Exception as error:
            raise ModelError(
                f"model {stem!r} cannot be used: {type(error).__name__}: {error}; "
                "the file is damaged or its exporter has a fault"
            ) from error
        return graph

    @classmethod
    def load_prepared(cls, path: Path, *, name: str, digest: str) -> Graph:
        """Open a file that :meth:`save` wrote; nothing is checked or inferred again."""
        return cls(ir.load(path), name=name, digest=digest, path=path)

    # --- shape -----------------------------------------------------------------------------------

    @property
    def signature(self) -> Signature:
        """Inputs and outputs by position."""
        return Signature(
            tuple(_spec(value) for value in self.model.graph.inputs),
            tuple(_spec(value) for value in self.model.graph.outputs),
        )

    @property
    def unbound(self) -> tuple[str, ...]:
        """Inputs with a dimension that has no number yet, written ``name[batch, 3, ?]``."""
        return tuple(
            f"{spec.name}[{', '.join(map(str, spec.shape))}]"
            for spec in self.signature.inputs
            if not all(isinstance(size, int) for size in spec.shape)
        )

    def bind(self, shapes: Mapping[str, Sequence[int]]) -> Graph:
        """A copy with dimensions bound.

        Args:
            shapes: Input name to its whole shape. Inputs that share a named dimension are bound
                together; inputs without free dimensions may be left out.

        Raises:
            InputError: A name is unknown, a rank or fixed size differs, two sizes for one named
                dimension, or dimensions are left without a number. All problems are named at once.
        """
        specs = {spec.name: spec for spec in self.signature.inputs}
        dims, found = _collect_dims(specs, shapes)
        if found:
            raise InputError(problems(f"shapes do not fit model {self.name!r}", found))
        if all(all(isinstance(size, int) for size in spec.shape) for spec in specs.values()):
            return self
        shared = {
            name: [dims.get(str(size), size) for size in spec.shape]
            for name, spec in specs.items()
            if spec.shape != ANY_RANK
        }
        model = self._reshaped({**shared, **shapes}, dims)
        key = json.dumps({name: list(shape) for name, shape in sorted(shapes.items())})
        digest = hashlib.sha256(f"{self.digest}{key}".encode()).hexdigest()
        graph = Graph(model, name=self.name, digest=digest)
        _check_bound(graph)
        return graph

    def bind_ranges(
        self, shapes: Shapes, others: Mapping[str, Sequence[int | str]] | None = None
    ) -> tuple[Graph, Ranges]:
        """A copy whose dimensions with a range stay free, each with a name, while all others are bound.

        Args:
            shapes: As for :meth:`bind`, with ranges among the sizes.
            others: Whole shapes of inputs, for sizes that ``shapes`` says nothing of.

        Returns:
            The copy, and the ranges of its inputs.

        Raises:
            InputError: As for :meth:`bind`, or a named dimension has two ranges.
        """
        specs = {spec.name: spec for spec in self.signature.inputs}
        dims, found = _collect_dims(specs, largest(shapes))
        if found:
            raise InputError(problems(f"shapes do not fit model {self.name!r}", found))
        ranges = named(self.signature.inputs, shapes, others)
        free = {name: name for name in ranges.limits}
        model = self._reshaped(dict(zip(specs, ranges.shapes, strict=True)), {**dims, **free})
        digest = hashlib.sha256(f"{self.digest}{json.dumps([ranges.shapes, ranges.limits])}".encode())
        graph = Graph(model, name=self.name, digest=digest.hexdigest())
        _check_bound(graph, ranges.limits)
        return graph, ranges

    def check_inputs(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Inputs by position, after checking names, types, shapes and NaN.

        Raises:
            InputError: Names every input that is missing, unknown, of the wrong type or shape, or
                that holds NaN.
        """
        specs = self.signature.inputs
        found = [
            f"input {name!r} is unknown; the model takes {', '.join(spec.name for spec in specs)}"
            for name in inputs
            if name not in {spec.name for spec in specs}
        ]
        for spec in specs:
            if spec.name not in inputs:
                found.append(f"input {spec.name!r} is missing; expected {spec}")
                continue
            found.extend(_input_problems(spec, inputs[spec.name]))
        if found:
            raise InputError(problems(f"inputs do not fit model {self.name!r}", found))
        return [inputs[spec.name] for spec in specs]

    # --- nodes -----------------------------------------------------------------------------------

    @functools.cached_property
    def nodes(self) -> Mapping[str, ir.Node]:
        """Top-level nodes by name, in the order of the file (topological)."""
        return {str(node.name): node for node in self.model.graph}

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self.model.opset_imports.get("", 0))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all initializers."""
        return sum(
            value.const_value.nbytes
            for value in self.model.graph.initializers.values()
            if value.const_value is not None
        )

    # --- bytes -----------------------------------------------------------------------------------

    def to_proto(self) -> onnx.ModelProto:
        """The whole model, weights inside.

        Raises:
            ModelError: It is larger than protobuf can hold, or its weights are absent.
        """
        self._need_weights()
        if self.weight_bytes > (2 << 30) - (64 << 20):
            raise ModelError(
                f"model {self.name!r} has {self.weight_bytes} bytes of weights; protobuf holds less "
                "than 2 GiB: use save(), which writes weights beside the model"
            )
        # Serialising external tensors keeps the reference; reading them in needs a copy.
        model = self.model.clone()
        for value in [value for graph in model.graphs() for value in graph.initializers.values()]:
            # A clone shares its tensors with this graph and its parts, which may still read the file.
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(
                    value.const_value.numpy().copy(), value.const_value.dtype, name=value.name
                )
        return ir.serde.serialize_model(model)

    def save(self, folder: Path) -> Path:
        """Write ``model.onnx`` (and ``model.data`` for large weights) into a folder; the file's path.

        Raises:
            ModelError: Its weights are absent.
            StorageError: The folder cannot be written to.
        """
        self._need_weights()
        path = folder / "model.onnx"
        external = "model.data" if self.weight_bytes > _EXTERNAL_ABOVE_BYTES else None
        try:
            if external is None:
                path.write_bytes(self.to_proto().SerializeToString())
            else:
                ir.save(self.model, path, external_data=external, size_threshold_bytes=1024)
        except OSError as error:
            raise StorageError(
                f"model {self.name!r} ({self.weight_bytes} bytes of weights) could not be written to a "
                f"working folder: {error.strerror or error}; free some space or set TMPDIR"
            ) from error
        return path

    def _reshaped(self, shapes: Mapping[str, Sequence[int | str]], dims: Mapping[str, int | str]) -> ir.Model:
        """A copy with inputs of these shapes, and what follows from them inferred anew."""
        model = self.model.clone()
        for value in model.graph.inputs:
            if (shape := shapes.get(str(value.name))) is not None:
                value.shape = ir.Shape(shape)
        _forget_shapes(model, dims)
        _infer_shapes(model)
        return model

    def _need_weights(self) -> None:
        for value in self.model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and not Path(tensor.path).is_file():
                raise ModelError(
                    f"model {self.name!r} was read for planning, without its weights: {tensor.location!r}, "
                    f"which holds {str(value.name)!r}, is not there; put it beside the model to run it"
                )

    def file(self) -> Path:
        """The model as a file, written on first need; it lives as long as this object."""
        if self._path is None:
            folder = tempfile.mkdtemp(prefix="hal-graph-")
            weakref.finalize(self, _remove, folder, os.getpid())
            self._path = self.save(Path(folder))
        return self._path

    def serialized(self) -> bytes | Path:
        """What a runtime reads: bytes, or a file where large weights lie beside the model."""
        if self.weight_bytes > _EXTERNAL_ABOVE_BYTES:
            return self.file()
        return self._path.read_bytes() if self._path else self.to_proto().SerializeToString()

    def __repr__(self) -> str:
        inputs = ", ".join(str(spec) for spec in self.signature.inputs)
        return f"<Graph {self.name!r}: {len(self.nodes)} nodes, opset {self.opset}, {inputs}>"


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a process forked from it ends too, and must not take the file away
        shutil.rmtree(folder, ignore_errors=True)


def _spec(value: ir.Value) -> TensorSpec:
    dtype = "unknown" if value.dtype is None else _dtype_name(value.dtype)
    shape: tuple[int | str, ...] = ANY_RANK
    if value.shape is not None:
        shape = tuple(size if isinstance(size, int) else (size.value or "?") for size in value.shape.dims)
    return TensorSpec(str(value.name), dtype, shape)


def _dtype_name(dtype: ir.DataType) -> str:
    return "string" if dtype == ir.DataType.STRING else dtype.numpy().name


def _is_fraction(dtype: np.dtype[Any]) -> bool:
    # ml_dtypes' types are of numpy's kind V.
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def _input_problems(spec: TensorSpec, given: Any) -> Iterator[str]:
    array = np.asarray(given)
    kind = "string" if array.dtype.kind in "USO" else array.dtype.name
    if kind != spec.dtype:
        yield f"input {spec.name!r} has type {kind}; expected {spec.dtype}"
    shape = tuple(array.shape)
    fits = spec.shape == ANY_RANK or (
        len(shape) == len(spec.shape)
        and all(not isinstance(want, int) or want == got for want, got in zip(spec.shape, shape, strict=True))
    )
    if not fits:
        yield f"input {spec.name!r} has shape {list(shape)}; expected {list(spec.shape)}"
    if array.dtype.byteorder == ">":
        yield f"input {spec.name!r} is big-endian; expected the machine's byte order"
    if _is_fraction(array.dtype) and np.isnan(array).any():
        yield (
            f"input {spec.name!r} holds {int(np.isnan(array).sum())} NaN of {array.size} values; "
            "expected numbers: a comparison of answers would mean nothing"
        )


def _collect_dims(
    specs: Mapping[str, TensorSpec], shapes: Mapping[str, Sequence[int]]
) -> tuple[dict[str, int], list[str]]:
    dims: dict[str, int] = {}
    found: list[str] = []
    for name, shape in shapes.items():
        if name not in specs:
            found.append(f"input {name!r} is unknown; the model takes {', '.join(specs) or 'none'}")
            continue
        spec = specs[name]
        if spec.shape == ANY_RANK:
            found.extend(f"{spec} cannot have a size of {size}" for size in shape if size < 0)
            continue
        if len(shape) != len(spec.shape):
            found.append(f"{spec} has {len(spec.shape)} dimensions, {list(shape)} has {len(shape)}")
            continue
        for size, given in zip(spec.shape, shape, strict=True):
            if given < 0:
                found.append(f"{spec} cannot have a size of {given}; expected 0 or more")
            elif isinstance(size, int) and size != given:
                found.append(f"{spec} is fixed to {size} where {list(shape)} has {given}")
            elif isinstance(size, str) and size != "?" and dims.setdefault(size, given) != given:
                found.append(f"dimension {size!r} is {dims[size]} for one input and {given} for {name!r}")
    return dims, found


def _normalise(model: ir.Model) -> None:
    # Old files list weights among the inputs; runtimes then refuse to fold them.
    passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, 8)
    taken: set[str] = set()
    for index, node in enumerate(model.graph.all_nodes()):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        node.name = name
        taken.add(name)
    # Some exporters (Paddle's among them) write -1 for a free dimension.
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([s if not isinstance(s, int) or s >= 0 else None for s in value.shape])


def _infer_shapes(model: ir.Model) -> None:
    # Inference is a help, not a judge: what it cannot tell stays unknown.
    result = passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    _log.debug("shape inference changed the model: %s", result.modified)


def _check_bound(graph: Graph, but: Collection[str] = ()) -> None:
    """Refuse dimensions without a number, but those of some names."""
    left = [
        f"{spec.name}[{', '.join(map(str, spec.shape))}]"
        for spec in graph.signature.inputs
        if not all(isinstance(size, int) or size in but for size in spec.shape)
    ]
    if left:
        raise InputError(
            f"model {graph.name!r} has dimensions without a number: {', '.join(left)}; "
            "bind them with --shape NAME=1,3,640,640 or with example inputs"
        )


def _forget_shapes(model: ir.Model, dims: Mapping[str, int | str]) -> None:
    """Drop what was inferred for free dimensions, so that inference fills it in with numbers."""
    outputs = {id(value) for value in model.graph.outputs}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.shape is None or value.shape.is_static():
                continue
            if id(value) in outputs:
                sizes = [s if isinstance(s, int) else dims.get(s.value or "") for s in value.shape.dims]
                value.shape = ir.Shape(sizes)
            else:
                value.shape = None


def _digest(proto: onnx.ModelProto, base: Path | None) -> str:
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
    if base is not None:
        for tensor in reading.external_tensors(proto):
            digest.update(reading.external_bytes(tensor, base))
    return digest.hexdigest()
