"""Requests whose tensors lie in a device's memory: handed over as they are where the plan reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hal.backend import Tensor, TensorSpec
from hal.executor.homes import Homes, home_of
from hal.records.targets import Signature
from hal.session.calling import Calling
from hal.session.libraries import Library, library_of, read, settled
from hal.tensor import fits


class Away(list[Tensor]):
    """Inputs of a run, some of which lie in a device's memory, or whose outputs are wanted there.

    Args:
        inputs: By position.
        room: Tensors to write the outputs into, by position; None lets the backends allocate.
        homes: Where the plan that they are for has its tensors.
    """

    def __init__(self, inputs: Sequence[Tensor], room: list[Tensor] | None, homes: Homes) -> None:
        super().__init__(inputs)
        self.room, self.homes = room, homes

    def on_host(self) -> list[Tensor]:
        """The inputs for another plan, which may not read that memory.

        Raises:
            InputError: A tensor cannot be brought to the host, as where its device is lost.
        """
        return [read(tensor) for tensor in self]


def away(tensors: Sequence[Any], calling: Calling, signature: Signature, homes: Homes) -> Away | None:
    """Tensors as a run takes them that leaves them where they lie; None where all have to come to the host.

    Args:
        tensors: As the caller gave them, by position.
        calling: Of the session.
        signature: Of the model.
        homes: Where the plan in force has its tensors.

    Raises:
        InputError: Something is no tensor, or of another type; all are named.
    """
    if not homes.has_some or not all(map(_has_shape, tensors, signature.inputs)):
        return None
    kept = {
        at
        for at, (tensor, spec, home) in enumerate(zip(tensors, signature.inputs, homes.inputs, strict=True))
        if home is not None and home_of(tensor) == home and _dtype(tensor) == spec.dtype
    }
    room = _room(library_of(tensors), signature.outputs, homes)
    if not kept and room is None:
        return None
    arrays, _ = calling.fit(tensors, kept)
    inputs = [settled(tensor) if at in kept else tensor for at, tensor in enumerate(arrays)]
    return Away(inputs, room, homes)


def _has_shape(tensor: Any, spec: TensorSpec) -> bool:
    """Whether a tensor says that it is of a shape."""
    shape = getattr(tensor, "shape", None)
    return shape is not None and tuple(shape) == spec.shape


def _dtype(tensor: Any) -> str:
    """The type that a tensor says it is of, as a spec writes it: ``torch.float32`` is ``float32``."""
    return str(getattr(tensor, "dtype", "")).rpartition(".")[2]


def _room(library: Library | None, specs: Sequence[TensorSpec], homes: Homes) -> list[Tensor] | None:
    """Tensors of the caller's for the outputs, on his device where they are made there."""
    if library is None or library.home is None or library.home not in homes.outputs:
        return None
    if len({spec.name for spec in specs}) < len(specs):
        return None  # one tensor, to be returned twice
    room: list[Tensor] = []
    for spec, home in zip(specs, homes.outputs, strict=True):
        sizes = [size for size in spec.shape if isinstance(size, int)]
        if not fits(sizes, spec.shape) or spec.dtype == "string":
            return None  # known after the run only
        made: Tensor | None = np.empty(sizes, np.dtype(spec.dtype))
        if home == library.home:
            made = library.empty(spec.dtype, sizes)
        if made is None:
            return None
        room.append(made)
    return room


__all__ = ["Away", "away"]
