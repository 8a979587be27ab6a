"""A tensor in the memory of an emulated device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hal.backend import Device
from hal.tensor import Array, HostTensor

if TYPE_CHECKING:
    from hal_emulator.machine import Machine


class EmulatedTensor:
    """A tensor of an emulated device. Its numbers lie in this process.

    Attributes:
        device: In whose memory it is.
        array: The numbers.
        ready_ns: When it is there, in virtual time.
        is_on_host: Whether it was brought to the host too.
    """

    def __init__(
        self, machine: Machine, device: Device, array: Array, ready_ns: int, is_on_host: bool
    ) -> None:
        self._machine = machine
        self.device, self.array = device, array
        self.ready_ns, self.is_on_host = ready_ns, is_on_host

    def __dlpack_device__(self) -> tuple[int, int]:
        """Host memory, which it is."""
        return HostTensor(self.array).__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        """The host reads it, which it can do when it is there."""
        self._machine.seen(self.ready_ns)
        return HostTensor(self.array).__dlpack__(**options)
