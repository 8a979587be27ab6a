"""What an executor does in each run, worked out once: where tensors lie and when they are released."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from hal.backend import BackendRef, Device, DeviceTensors, Executable, Tensor
from hal.executor.partitions import Cut, Part
from hal.tensor import Array


@dataclass(frozen=True)
class Compiled:
    """A part that can run.

    Attributes:
        part: The partition.
        executable: Of its graph.
        device: Where it runs.
        ref: Its backend.
    """

    part: Part
    executable: Executable
    device: Device
    ref: BackendRef

    @property
    def tensors(self) -> DeviceTensors | None:
        """Its way to place tensors, where its memory is not the host's and it has one."""
        away = self.device.kind != "cpu" and self.device.memory_pool != "host"
        return self.executable.ability(DeviceTensors) if away else None


@dataclass(frozen=True)
class Step:
    """One part in a run.

    Attributes:
        compiled: The part.
        reads: Slot of each input.
        writes: Slot of each output.
        silicon: Number of its silicon.
        room: Makes tensors to write the outputs into, some of them on the device; None where all come to
            the host.
        last: Slots that nobody needs after this step, where steps run one after the other.
        order: Positions of the outputs, those that are read first first: in that order they are sent on.
    """

    compiled: Compiled
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    silicon: int
    room: Callable[[], list[Tensor]] | None
    last: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Handoff:
    """A tensor that is copied to a device while other silicon computes.

    Attributes:
        value: Its name in the graph.
        source: Slot it is in.
        destination: Slot of the copy.
        place: Makes the copy.
        silicon: Number of the silicon that reads it.
        name: For tables and errors.
    """

    value: str
    source: int
    destination: int
    place: Callable[[Tensor], Tensor]
    silicon: int
    name: str


@dataclass(frozen=True)
class Program:
    """Steps in the order of the plan.

    A slot holds a tensor of a run: first the model's inputs, then each value that a part makes, then the
    copies that handoffs make.

    Attributes:
        steps: In the order of execution.
        handoffs: By the slot that they copy.
        n_slots: Slots.
        outputs: Slot of each model output, or the weight that it is.
        n_silicons: Silicons.
        n_uses: How often a slot is read: by steps, handoffs and as an output.
    """

    steps: tuple[Step, ...]
    handoffs: Mapping[int, tuple[Handoff, ...]]
    n_slots: int
    outputs: tuple[int | Array, ...]
    n_silicons: int
    n_uses: tuple[int, ...]


def program(cut: Cut, compiled: Sequence[Compiled], inputs: Sequence[str], outputs: Sequence[str]) -> Program:
    """Work out what each run does.

    A tensor stays on the device where only parts of the same backend and memory read it, as the contract
    allows; what a part makes beside it for others is written to the host. To silicon of another kind with a
    memory of its own it is copied beside the computing; all other tensors are passed as they are.

    Args:
        cut: The graph in parts.
        compiled: One per part.
        inputs: Names of the model's inputs.
        outputs: Names of its outputs.
    """
    slots = {name: slot for slot, name in enumerate(inputs)}
    maker: dict[str, Compiled] = {}
    for one in compiled:
        for value in one.part.outputs:
            slots[value] = len(slots)
            maker[value] = one
    silicons: dict[str, int] = {}
    for one in compiled:
        silicons.setdefault(one.device.silicon, len(silicons))
    n_slots = len(slots)
    copies: dict[tuple[str, bytes, str], int] = {}
    handoffs: dict[int, list[Handoff]] = {}
    reads: list[list[int]] = []
    for one in compiled:
        taken = []
        for value in one.part.inputs:
            slot = slots[value]
            device = one.tensors
            source = maker.get(value)
            beside = source is not None and source.device.silicon != one.device.silicon
            if device is not None and beside:
                key = (value, msgspec.json.encode(one.ref), one.device.memory_pool)
                if key not in copies:
                    copies[key] = n_slots
                    n_slots += 1
                    silicon = silicons[one.device.silicon]
                    name = f"{value} to {one.part.target}"
                    handoffs.setdefault(slot, []).append(
                        Handoff(value, slot, copies[key], device.place, silicon, name)
                    )
                slot = copies[key]
            taken.append(slot)
        reads.append(taken)
    results: list[int | Array] = [
        cut.constants[name] if name in cut.constants else slots[name] for name in outputs
    ]
    kept = {result for result in results if isinstance(result, int)}
    last: dict[int, int] = {slot: number for number, taken in enumerate(reads) for slot in taken}
    made = [tuple(slots[value] for value in one.part.outputs) for one in compiled]
    first: dict[int, int] = {}
    for number, one in enumerate(compiled):
        for value in one.part.inputs:
            first.setdefault(slots[value], number)
    steps = []
    for number, one in enumerate(compiled):
        ends = tuple(
            slot for slot in dict.fromkeys(reads[number]) if last[slot] == number and slot not in kept
        )
        room = _room(one, _staying(one, compiled, outputs))
        silicon = silicons[one.device.silicon]
        needed = [first.get(slot, len(compiled)) for slot in made[number]]
        order = sorted(range(len(needed)), key=needed.__getitem__)
        steps.append(Step(one, tuple(reads[number]), made[number], silicon, room, ends, tuple(order)))
    n_uses = [0] * n_slots
    for taken in reads:
        for slot in set(taken):
            n_uses[slot] += 1
    for slot, group in handoffs.items():
        n_uses[slot] += len(group)
    for slot in kept:
        n_uses[slot] += 1
    return Program(
        tuple(steps),
        {slot: tuple(group) for slot, group in handoffs.items()},
        n_slots,
        tuple(results),
        len(silicons),
        tuple(n_uses),
    )


def _staying(one: Compiled, compiled: Sequence[Compiled], outputs: Sequence[str]) -> list[bool]:
    """For each output of a part whether all that read it can read it where it is computed.

    None does where the part makes an output of the model: the caller owns that, so that no room is kept.
    """
    if one.tensors is None or set(one.part.outputs) & set(outputs):
        return [False] * len(one.part.outputs)
    pool = one.device.memory_pool
    return [
        all(
            other.ref == one.ref and other.device.memory_pool == pool
            for other in compiled
            if value in other.part.inputs
        )
        for value in one.part.outputs
    ]


def _room(one: Compiled, staying: Sequence[bool]) -> Callable[[], list[Tensor]] | None:
    """Makes tensors for a part's outputs, on the device for those that stay there; None where none does."""
    device, specs = one.tensors, one.executable.signature.outputs
    sizes = [[size for size in spec.shape if isinstance(size, int)] for spec in specs]
    if device is None or not any(staying):
        return None
    if any(len(size) != len(spec.shape) for size, spec in zip(sizes, specs, strict=True)):
        return None
    kinds = [(size, np.dtype(spec.dtype)) for size, spec in zip(sizes, specs, strict=True)]

    def room() -> list[Tensor]:
        empty: list[Tensor] = [np.zeros(size, kind) for size, kind in kinds]
        return [device.place(array) if stays else array for array, stays in zip(empty, staying, strict=True)]

    return room
