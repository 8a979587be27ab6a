"""From what a user gives to a bound graph with inputs: files, demos, framework objects."""

from __future__ import annotations

import inspect
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from hal import demo, host, plugins
from hal.demo import Evaluation
from hal.errors import InputError, ModelError
from hal.graph.model import Graph
from hal.graph.ranges import Shapes, largest
from hal.graph.reading import is_foreign
from hal.profiling.preflight import preflight
from hal.records.targets import TensorSpec
from hal.tensor import Array, as_numpy
from hal.units import format_bytes

_DEMO = "demo:"
_SEED = 0


class Subject:
    """What is measured: a graph without free dimensions, inputs by position, and labels if there are any.

    Attributes:
        graph: Bound.
        inputs: One array per input of the signature.
        inputs_from: Where they come from, for the record.
        evaluation: Labelled data, or None.
    """

    def __init__(
        self, graph: Graph, inputs: Sequence[Array], inputs_from: str, evaluation: Evaluation | None = None
    ) -> None:
        self.graph = graph
        self.inputs = list(inputs)
        self.inputs_from = inputs_from
        self.evaluation = evaluation

    @property
    def named_inputs(self) -> dict[str, Array]:
        """Inputs by name."""
        names = [spec.name for spec in self.graph.signature.inputs]
        return dict(zip(names, self.inputs, strict=True))


def resolve(
    model: Any,
    inputs: Any = None,
    *,
    shapes: Shapes | None = None,
) -> Subject:
    """Load a model and bind it.

    Args:
        model: A path, ``demo:NAME``, a Graph, ONNX bytes or model, an object of a framework that an
            installed plugin imports (a ``torch.nn.Module``, with ``inputs``), or what an earlier call
            returned.
        inputs: Arrays by name, or by position; None for the demo's own or random ones (seed 0).
        shapes: Shapes of inputs with free dimensions; not needed where ``inputs`` has them. Of a range of
            sizes the largest one counts.

    Raises:
        ModelError: The model cannot be read or imported.
        InputError: Inputs or shapes do not fit, or dimensions stay free.
    """
    if isinstance(model, Subject):
        return model
    sizes = largest(shapes or {})
    evaluation = None
    inputs_from = "given"
    graph = opened(model, _shapes(sizes, inputs))
    if graph is None:
        graph, inputs = _import(model, inputs)
    elif isinstance(model, str) and model.startswith(_DEMO) and inputs is None and not sizes:
        found = demo.find(model.removeprefix(_DEMO))
        inputs, inputs_from = found.inputs(), "the demo's test set"
        evaluation = found.evaluation()
    named = _named(graph, inputs)
    known = {name: tuple(array.shape) for name, array in named.items()}
    for name, shape in sizes.items():
        if name in known and known[name] != shape:
            raise InputError(
                f"input {name!r} is given as {list(known[name])} and --shape says {list(shape)}; "
                "leave one of them out, or give an example of the largest size where there is a range"
            )
    bound = graph.bind({**sizes, **known})
    _check_room(bound)
    if not named:
        named, inputs_from = random_inputs(bound), f"random (seed {_SEED})"
    return Subject(bound, bound.check_inputs(named), inputs_from, evaluation)


def opened(model: Any, shapes: Mapping[str, list[int]] | None = None) -> Graph | None:
    """A model that is ONNX in any form, its free dimensions as they are; None for one of a framework.

    Args:
        model: As for :func:`resolve`.
        shapes: Of inputs, as far as they are known: a file is looked at first with these.

    Raises:
        ModelError: It cannot be read.
    """
    if isinstance(model, Graph):
        return model
    if isinstance(model, str) and model.startswith(_DEMO):
        return Graph.load(demo.find(model.removeprefix(_DEMO)).model, name=model)
    if isinstance(model, bytes | onnx.ModelProto | ir.Model):
        return Graph.load(model)
    if isinstance(model, str | os.PathLike) and not _is_of_a_framework(Path(model)):
        preflight(Path(model), shapes or {})
        return Graph.load(Path(model))
    return None


def random_inputs(graph: Graph) -> dict[str, Array]:
    """Plausible inputs for a bound graph, the same every time.

    Floats are uniform in 0..1, as images are. Integers that index a table (token ids into an
    embedding) are uniform over its rows; other integers and booleans are ones, as in attention masks.
    """
    generator = np.random.default_rng(_SEED)
    made = {}
    for value, spec in zip(graph.model.graph.inputs, graph.signature.inputs, strict=True):
        made[spec.name] = _random(value, spec, generator)
    return made


def _random(value: ir.Value, spec: TensorSpec, generator: np.random.Generator) -> Array:
    shape = tuple(int(size) for size in spec.shape)
    if spec.dtype == "string":
        raise InputError(f"no text can be made up for {spec}; give it with --input FILE.npz")
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        n_rows = min((rows for use in value.uses() if (rows := _rows_indexed(use.node, value))), default=0)
        if n_rows:
            return np.asarray(generator.integers(0, n_rows, shape), dtype)
        return np.ones(shape, dtype)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    # Float32 where possible: float64 would take twice the room before it is converted.
    return np.asarray(generator.random(shape, np.float64 if dtype == np.float64 else np.float32), dtype)


def _rows_indexed(node: ir.Node, index: ir.Value) -> int | None:
    """Rows of the table that a Gather looks up by this value, or None if it does something else."""
    if node.op_type in ("Cast", "Identity", "Unsqueeze", "Reshape") and node.inputs[0] is index:
        uses = node.outputs[0].uses()
        return min((rows for use in uses if (rows := _rows_indexed(use.node, node.outputs[0]))), default=None)
    if node.op_type != "Gather" or node.inputs[1] is not index or node.inputs[0] is None:
        return None
    shape = node.inputs[0].shape
    axis = node.attributes.get_int("axis", 0)
    size = shape[axis] if shape is not None else None
    return size if isinstance(size, int) else None


def _is_of_a_framework(path: Path) -> bool:
    # Importers run in this process, as the framework whose objects they take does, so they are asked
    # only for files that cannot be ONNX; everything else gets the ONNX reader's clear error.
    return is_foreign(path) and any(importer.accepts(path) for _, importer in plugins.importers())


def _shapes(shapes: Mapping[str, Sequence[int]] | None, inputs: Any) -> dict[str, list[int]]:
    given = inputs.items() if isinstance(inputs, Mapping) else ()
    known = {str(name): list(np.shape(value)) for name, value in given}
    return {**known, **{name: list(shape) for name, shape in (shapes or {}).items()}}


def _check_room(graph: Graph) -> None:
    """Refuse shapes whose inputs alone would not leave room to run.

    Raises:
        InputError: Says how much they need and how much there is.
    """
    n_bytes = sum(_n_bytes(spec) for spec in graph.signature.inputs)
    free = host.available_memory_bytes()
    # An input stands in memory three times: here, on its way to the target's process, and there.
    if 3 * n_bytes > free:
        raise InputError(
            f"the inputs of {graph.name!r} are {format_bytes(n_bytes)}, {format_bytes(free)} of memory are "
            "free, and three times as much as the inputs is needed: give smaller shapes"
        )


def _n_bytes(spec: TensorSpec) -> int:
    item = 8 if spec.dtype == "string" else np.dtype(spec.dtype).itemsize
    return item * math.prod(size for size in spec.shape if isinstance(size, int))


def imported(model: Any, inputs: Any, shapes: Shapes) -> tuple[Graph, dict[str, Array]]:
    """A framework's model whose dimensions with a range are free, and its example inputs.

    Args:
        model: An object of a framework.
        inputs: Examples of the largest sizes.
        shapes: With ranges, by the name of the input.

    Raises:
        ModelError: It cannot be imported, or not with free dimensions.
    """
    free = {
        name: [at for at, size in enumerate(shape) if not isinstance(size, int)]
        for name, shape in shapes.items()
    }
    return _import(model, inputs, {name: positions for name, positions in free.items() if positions})


def _import(
    model: Any, inputs: Any, free: Mapping[str, Sequence[int]] | None = None
) -> tuple[Graph, dict[str, Array]]:
    tried = plugins.importers()
    for name, importer in tried:
        if importer.accepts(model):
            if free and "free" not in inspect.signature(importer.to_onnx).parameters:
                raise ModelError(
                    f"the importer of {name!r} leaves no dimensions free, which ranges of sizes need: export "
                    "the model to ONNX with free dimensions, and give the file"
                )
            options = {"free": free} if free else {}
            with tempfile.TemporaryDirectory(prefix="hal-import-") as folder:
                path = Path(folder) / "model.onnx"
                examples = importer.to_onnx(model, inputs, path, **options)
                graph = Graph.load(path, name=type(model).__name__)
                # The folder goes away: take the weights along.
                ir.external_data.load_to_model(graph.model)
            return graph, {key: np.asarray(value) for key, value in examples.items()}
    names = ", ".join(name for name, _ in tried) or "none"
    raise ModelError(
        f"{type(model).__name__} is not a model hal can read; expected an ONNX file, demo:NAME or an object "
        f"that an importer takes (installed importers: {names}; pip install hal-torch for torch.nn.Module)"
    )


def _named(graph: Graph, inputs: Any) -> dict[str, Array]:
    if inputs is None:
        return {}
    if isinstance(inputs, Mapping):
        return {str(name): _array(value) for name, value in inputs.items()}
    values = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    names = [spec.name for spec in graph.signature.inputs]
    if len(values) != len(names):
        raise InputError(
            f"model {graph.name!r} takes {len(names)} inputs ({', '.join(names)}), {len(values)} were given"
        )
    return dict(zip(names, map(_array, values), strict=True))


def _array(value: Any) -> Array:
    array = as_numpy(value)
    # Text of fixed width is how numpy stores it in files; tensors of strings hold objects.
    return array.astype(object) if array.dtype.kind in "US" else array
