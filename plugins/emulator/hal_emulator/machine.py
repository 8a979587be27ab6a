"""An emulated machine at work: one virtual clock for all devices, and memory that can run out.

Virtual time. Every emulated tensor carries the time at which it is there. A device, or rather its silicon,
does one thing at a time. A run starts when the silicon is free and its inputs are there, first fetches those
that lie in another memory, and at its end brings its outputs to the host, unless it was given tensors on the
device for them. What comes to a device by ``place`` comes beside its computing; between two memories one
tensor goes at a time. A tensor that the host has and that goes from device to device takes what the way
between them takes longer than the way to the host.

Nothing that is called after a look at the clock begins before the time that was seen, and the host hands over
nothing before the time of what it read. The first runs of executables after a look keep their order on each
silicon, for they are the parts of one request. Later ones are of further requests in flight, which go as
their inputs are there. So threads may run at whatever real speed they like.

Source: Chandy, Misra, "Distributed simulation: a case study in design and verification of distributed
programs", IEEE Trans. Software Eng. 5 (1979): where every process takes its messages in a fixed order, times
carried by messages are right whatever the real order.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from hal.backend import Device
from hal.errors import BackendError
from hal.tensor import Array, HostTensor, Tensor, as_numpy
from hal_emulator.faults import Faults
from hal_emulator.sheet import HOST, Sheet
from hal_emulator.tensor import EmulatedTensor
from hal_emulator.timeline import Timeline


class Machine:
    """Clocks and memory of all devices of a sheet. Any thread may call.

    Args:
        sheet: The machine.
        faults: Asked for.
    """

    def __init__(self, sheet: Sheet, faults: Faults) -> None:
        self.sheet, self.faults = sheet, faults
        # A tensor may be forgotten, and give its memory back, while this thread holds the lock.
        self._lock = threading.RLock()
        self._busy: dict[str, Timeline] = defaultdict(Timeline)
        self._ways: dict[tuple[str, str], Timeline] = defaultdict(Timeline)
        self._first_ns: dict[str, int] = {}
        self._ran: set[int] = set()
        self._written: dict[int, tuple[Device, int]] = {}
        self._host_ns = 0
        self._looked_ns = 0
        self._used: dict[str, int] = {}

    # --- time ------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """When all that was begun is done, which the host has seen then; see :class:`hal.clock.Clock`."""
        with self._lock:
            lines = (*self._busy.values(), *self._ways.values())
            self._host_ns = self._looked_ns = max([self._host_ns, *(line.end_ns for line in lines)])
            self._ran.clear()
            return self._host_ns

    def seen(self, time_ns: int) -> None:
        """The host has seen a time."""
        with self._lock:
            self._host_ns = max(self._host_ns, time_ns)

    def compute(
        self, device: Device, inputs: Sequence[EmulatedTensor | Array], duration_ns: int, executable: int
    ) -> int:
        """A run; returns when it ends.

        Args:
            device: That runs.
            inputs: Where they are.
            duration_ns: What it takes once they are there.
            executable: Tells executables apart.
        """
        with self._lock:
            ready_ns = self._looked_ns
            for tensor in inputs:
                ready_ns = max(ready_ns, self._ready_ns(tensor))
                duration_ns += self.way_ns(tensor, device)
            if executable in self._ran:
                return self._busy[device.silicon].book(ready_ns, max(duration_ns, 1))
            self._ran.add(executable)
            ready_ns = max(ready_ns, self._first_ns.get(device.silicon, 0))
            end_ns = self._busy[device.silicon].book(ready_ns, max(duration_ns, 1))
            self._first_ns[device.silicon] = end_ns
            return end_ns

    def bring(self, device: Device, tensor: EmulatedTensor | Array) -> int:
        """A copy to a device's memory, beside its computing; returns when it is there."""
        source = tensor.device.memory_pool if isinstance(tensor, EmulatedTensor) else HOST
        way = (source, device.memory_pool)
        with self._lock:
            ready_ns, taken_ns = self._ready_ns(tensor), self.way_ns(tensor, device)
            if not taken_ns:
                return ready_ns
            return self._ways[way].book(max(ready_ns, self._looked_ns), taken_ns)

    def way_ns(self, tensor: EmulatedTensor | Array, device: Device) -> int:
        """What it takes to bring a tensor to a device's memory."""
        handoff_ns = self.sheet.handoff_ns
        if not isinstance(tensor, EmulatedTensor):
            return handoff_ns(HOST, device.id, tensor.nbytes)
        if tensor.device.memory_pool == device.memory_pool:
            return 0
        n_bytes = tensor.array.nbytes
        done_ns = handoff_ns(tensor.device.id, HOST, n_bytes) if tensor.is_on_host else 0
        return max(handoff_ns(tensor.device.id, device.id, n_bytes) - done_ns, 0)

    def written(self, device: Device, tensor: Tensor, ready_ns: int) -> None:
        """A tensor of the host was given for an output of a device, which is remembered while it lives."""
        if not isinstance(tensor, np.ndarray | HostTensor):
            self.seen(ready_ns)
            return
        if id(tensor) not in self._written:
            weakref.finalize(tensor, self._written.pop, id(tensor), None).atexit = False
        self._written[id(tensor)] = (device, ready_ns)

    def known(self, tensor: Tensor) -> EmulatedTensor | None:
        """A tensor of the host that a device wrote, as a device's; None for others."""
        found = self._written.get(id(tensor))
        if found is None:
            return None
        return EmulatedTensor(self, found[0], as_numpy(tensor), found[1], is_on_host=True)

    def _ready_ns(self, tensor: EmulatedTensor | Array) -> int:
        return tensor.ready_ns if isinstance(tensor, EmulatedTensor) else self._host_ns

    # --- memory ----------------------------------------------------------------------------------

    def used_bytes(self, device: Device) -> int:
        """Bytes in use of a device's memory."""
        with self._lock:
            return self._used.get(device.memory_pool, 0)

    def take(self, device: Device, n_bytes: int, what: str) -> None:
        """Use memory of a device.

        Raises:
            BackendError: There is not enough.
        """
        with self._lock:
            used = self._used.get(device.memory_pool, 0)
            if device.memory_bytes is not None and used + n_bytes > device.memory_bytes:
                raise BackendError(
                    f"{device.id} is out of memory: {n_bytes} bytes are needed for {what}, and of "
                    f"{device.memory_bytes} bytes {used} are in use, so that "
                    f"{used + n_bytes - device.memory_bytes} are missing; place less of the model there"
                )
            self._used[device.memory_pool] = used + n_bytes

    def give(self, device: Device, n_bytes: int) -> None:
        """Use it no longer."""
        with self._lock:
            self._used[device.memory_pool] -= n_bytes

    def tensor(self, device: Device, array: Array, ready_ns: int, *, is_on_host: bool) -> EmulatedTensor:
        """A tensor in a device's memory, which was taken before and is given back when nobody holds it."""
        made = EmulatedTensor(self, device, array, ready_ns, is_on_host)
        weakref.finalize(made, self.give, device, array.nbytes).atexit = False
        return made
