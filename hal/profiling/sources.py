"""From what a user gives to a bound graph with inputs: files, demos, framework objects."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from hal import demo, plugins
from hal.demo import Evaluation
from hal.errors import InputError, ModelError
from hal.graph.model import Graph
from hal.records.targets import TensorSpec
from hal.tensor import Array, as_numpy

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
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Subject:
    """Load a model and bind it.

    Args:
        model: A path, ``demo:NAME``, a Graph, ONNX bytes or model, an object of a framework that an
            installed plugin imports (a ``torch.nn.Module``, with ``inputs``), or what an earlier call
            returned.
        inputs: Arrays by name, or by position; None for the demo's own or random ones (seed 0).
        shapes: Shapes of inputs with free dimensions; not needed where ``inputs`` has them.

    Raises:
        ModelError: The model cannot be read or imported.
        InputError: Inputs or shapes do not fit, or dimensions stay free.
    """
    if isinstance(model, Subject):
        return model
    evaluation = None
    inputs_from = "given"
    if isinstance(model, str) and model.startswith(_DEMO):
        found = demo.find(model.removeprefix(_DEMO))
        graph = Graph.load(found.model, name=model)
        if inputs is None and not shapes:
            inputs, inputs_from = found.inputs(), "the demo's test set"
            evaluation = found.evaluation()
    elif isinstance(model, Graph):
        graph = model
    elif isinstance(model, bytes | onnx.ModelProto | ir.Model) or _is_onnx_path(model):
        graph = Graph.load(model)
    else:
        graph, inputs = _import(model, inputs)
    named = _named(graph, inputs)
    known = {name: tuple(array.shape) for name, array in named.items()}
    for name, shape in (shapes or {}).items():
        if name in known and known[name] != tuple(shape):
            raise InputError(
                f"input {name!r} is given as {list(known[name])} and --shape says {list(shape)}; "
                "leave one of them out"
            )
    bound = graph.bind({**(shapes or {}), **known})
    if not named:
        named, inputs_from = random_inputs(bound), f"random (seed {_SEED})"
    return Subject(bound, bound.check_inputs(named), inputs_from, evaluation)


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
    return np.asarray(generator.random(shape), dtype)


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


def _is_onnx_path(model: Any) -> bool:
    if not isinstance(model, str | Path):
        return False
    # Files of other frameworks go to an importer, if one takes them; all else is read as ONNX and
    # gets that reader's clear error.
    return not any(importer.accepts(model) for _, importer in _importers_for(Path(model)))


def _importers_for(path: Path) -> list[tuple[str, Any]]:
    # Opening importers may load frameworks, so only for files that ONNX cannot be.
    return [] if path.suffix in ("", ".onnx", ".pb") else list(plugins.importers())


def _import(model: Any, inputs: Any) -> tuple[Graph, dict[str, Array]]:
    tried = plugins.importers()
    for _, importer in tried:
        if importer.accepts(model):
            with tempfile.TemporaryDirectory(prefix="hal-import-") as folder:
                path = Path(folder) / "model.onnx"
                examples = importer.to_onnx(model, inputs, path)
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
        return {str(name): as_numpy(value) for name, value in inputs.items()}
    values = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    names = [spec.name for spec in graph.signature.inputs]
    if len(values) != len(names):
        raise InputError(
            f"model {graph.name!r} takes {len(names)} inputs ({', '.join(names)}), {len(values)} were given"
        )
    return dict(zip(names, (as_numpy(value) for value in values), strict=True))
