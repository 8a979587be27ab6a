"""Where tensors may lie so that none is copied: on the host, or in the memory of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hal.backend import DeviceTensors, Executable, Tensor, TensorSpec
from hal.tensor import is_on_host

#: A memory as DLPack names it: type of the device and its index.
Home = tuple[int, int]


@dataclass(frozen=True)
class Homes:
    """Where the inputs and outputs of an executable are at home, by position; None for the host.

    Attributes:
        inputs: Tensors there are read as they lie.
        outputs: Tensors there can be written to, given as ``outputs`` of a run.
    """

    inputs: tuple[Home | None, ...]
    outputs: tuple[Home | None, ...]

    @property
    def has_some(self) -> bool:
        """Whether any tensor is at home on a device."""
        return any(home is not None for home in (*self.inputs, *self.outputs))


def home_of(tensor: Any) -> Home | None:
    """The memory of a device that a tensor lies in; None where that is the host's, or it is no tensor."""
    where = getattr(tensor, "__dlpack_device__", None)
    if where is None or type(tensor) is np.ndarray or is_on_host(tensor):
        return None
    kind, index = where()
    return int(kind), int(index)


def memory_of(executable: Executable) -> Home | None:
    """The memory of the device that an executable computes in; None for the host's, or where none is told.

    It is found out by placing a tensor, which tells the truth whatever a device is called.
    """
    able = executable.ability(DeviceTensors)
    if able is None:
        return None
    try:
        return home_of(able.place(np.zeros(1, np.float32)))
    except Exception:  # noqa: BLE001  a device that takes no tensor now is not handed any
        return None


def whole(executable: Executable, memory: Home | None) -> Homes:
    """All tensors of an executable are at home in one memory."""
    signature = executable.signature
    return Homes((memory,) * len(signature.inputs), (memory,) * len(signature.outputs))


def joined(
    ends: tuple[Sequence[str], Sequence[str]],
    parts: Sequence[tuple[Sequence[str], Sequence[str], Home | None]],
) -> Homes:
    """Where the ends of a graph are at home that runs in parts.

    Args:
        ends: Names of the graph's inputs and of its outputs.
        parts: What each part reads, what it makes, and its memory.
    """
    inputs = []
    for name in ends[0]:
        readers = {memory for reads, _, memory in parts if name in reads}
        # An input that is an output too is copied on the host.
        is_alike = len(readers) == 1 and name not in ends[1]
        inputs.append(next(iter(readers)) if is_alike else None)
    made = {name: memory for _, makes, memory in parts for name in makes}
    return Homes(tuple(inputs), tuple(made.get(name) for name in ends[1]))


def targets(
    makes: Sequence[str], wanted: Mapping[str, Tensor], specs: Sequence[TensorSpec]
) -> list[Tensor] | None:
    """What a part writes its outputs into; None where none of them is wanted on a device.

    Args:
        makes: Names of its outputs.
        wanted: Tensors on devices, by name of the output.
        specs: Of its outputs.
    """
    if not any(name in wanted for name in makes):
        return None
    return [
        wanted[name] if name in wanted else np.empty([int(n) for n in spec.shape], np.dtype(spec.dtype))
        for name, spec in zip(makes, specs, strict=True)
    ]


__all__ = ["Home", "Homes", "home_of", "joined", "memory_of", "targets", "whole"]
