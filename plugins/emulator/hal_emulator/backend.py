"""Machines that are not here, from their profiles."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hal.backend import Backend, Configuration, Device, Executable, Support
from hal.clock import Clock
from hal.errors import TargetError, UnsupportedGraph, problems
from hal.graph.model import Graph
from hal_emulator.executable import EmulatedExecutable
from hal_emulator.faults import Faults
from hal_emulator.machine import Machine
from hal_emulator.sheet import Sheet

#: Path of the machine profile that the plugin emulates where its configuration does not say.
VARIABLE = "HAL_EMULATE"


class EmulatorBackend(Backend):
    """The devices of a machine profile. They compute true answers on this processor and charge virtual time.

    Args:
        machine: Path of a machine profile, or its content; None for the one that ``HAL_EMULATE`` names, and
            for no devices where that is not set.
        costs_ns: Time of a kernel by ``DEVICE/OP`` or ``OP`` of its first node, in place of the roofline's.
        fail: Faults on demand, see :class:`~hal_emulator.faults.Faults`.

    Attributes:
        clock: Of the whole machine. To look at it is to wait for all that was begun.

    Raises:
        BackendError: The profile cannot be read.
        ValueError: A fault is not known.
    """

    name = "emulator"

    def __init__(
        self,
        *,
        machine: str | Mapping[str, Any] | None = None,
        costs_ns: Mapping[str, int] | None = None,
        fail: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self._faults = Faults(fail)
        self._machine = Machine(Sheet(machine or os.environ.get(VARIABLE)), self._faults)
        self._costs_ns = dict(costs_ns or {})
        self.clock: Clock = self._machine

    def discover(self) -> Sequence[Device]:
        """The devices of the profile that have ceilings; lost ones are unavailable."""
        return tuple(
            msgspec.structs.replace(device, unavailable=self._faults.why_lost(device.id))
            for device in self._machine.sheet.devices.values()
        )

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """Yes for every operator of ONNX, in the precisions of the device's ceilings."""
        return {name: _support(device, node, precision) for name, node in graph.nodes.items()}

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        """Take memory for the weights, and say what each kernel will cost."""
        if configuration.options:
            names = ", ".join(name for name, _ in configuration.options)
            raise TargetError(f"the emulator has no options; it was given {names}")
        answers = self.capability(device, graph, configuration.precision)
        refused = [f"node {name!r}: {answer.reason}" for name, answer in answers.items() if not answer.yes]
        if refused:
            raise UnsupportedGraph(problems(f"{device.id} cannot run {graph.name!r}", refused))
        self._faults.meet(device.id, "compile")
        return EmulatedExecutable(self._machine, device, graph, configuration, self._costs_ns)

    def telemetry(self, device: Device) -> Mapping[str, int]:
        """Memory in use."""
        return {"memory_used_bytes": self._machine.used_bytes(device)}


def _support(device: Device, node: Any, precision: str) -> Support:
    if precision not in device.precisions:
        known = ", ".join(device.precisions)
        return Support(False, f"{precision}: {device.id} has ceilings in {known} only")
    if node.domain not in ("", "ai.onnx"):
        return Support(False, f"operator {node.domain}::{node.op_type} is not one of ONNX")
    return Support(True)
