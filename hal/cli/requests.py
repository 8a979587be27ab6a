"""What profile, bench and run are asked: the model with its shapes and inputs, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hal.records.targets import TensorSpec
    from hal.tensor import Array


class Request(NamedTuple):
    """A model and what to give it.

    Attributes:
        model: As typed.
        inputs: Arrays by input name; None leaves them to hal.
        shapes: Shapes by input name; None where none were typed.
    """

    model: str
    inputs: dict[str, Array] | None
    shapes: dict[str, tuple[int, ...]] | None


def read_request(model: str, shapes: Sequence[str] | None, inputs: Sequence[str] | None) -> Request:
    """Read ``--shape`` and ``--input``.

    Raises:
        InputError: They cannot be read, or a picture does not fit the model.
        ModelError: A picture is given and the model cannot be opened.
    """
    if not shapes and not inputs:
        return Request(model, None, None)
    from hal.cli.inputs import parse_shapes, read_inputs, wants_specs

    bound = parse_shapes(shapes or ())
    specs = input_specs(model) if wants_specs(inputs or ()) else None
    arrays = read_inputs(inputs or (), bound, specs)
    return Request(model, arrays or None, bound or None)


def input_specs(model: str) -> Mapping[str, TensorSpec]:
    """The model's inputs by name.

    Raises:
        ModelError: It cannot be opened, or there is no such demo.
    """
    from hal import demo
    from hal.graph.model import Graph

    path = demo.find(model.removeprefix("demo:")).model if model.startswith("demo:") else Path(model)
    return {spec.name: spec for spec in Graph.load(path).signature.inputs}


def default_output(model: str) -> Path:
    """Where ``hal profile`` writes without ``--output``: in the current folder, after the model."""
    stem = model.removeprefix("demo:") if model.startswith("demo:") else Path(model).name
    return Path(f"{Path(stem).stem or 'model'}.profile.json")
