"""A device memory that is not the host's, in which every copy is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from hal.tensor import Array, HostTensor

#: What DLPack calls devices that it does not know. Source: dlpack.h, kDLExtDev.
_OTHER_DEVICE = 12


class Memory:
    """The memory of one device.

    Attributes:
        index: Of the device, for DLPack.
        copies: Tensors that were copied ``to_host`` and ``to_device``.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.copies: Counter[str] = Counter()

    def put(self, array: Array) -> DeviceTensor:
        """A copy of a host array on the device."""
        self.copies["to_device"] += 1
        return DeviceTensor(self, np.array(array, order="C"))

    def get(self, tensor: DeviceTensor) -> Array:
        """A copy of a tensor on the host."""
        self.copies["to_host"] += 1
        return tensor.held.copy()


class DeviceTensor:
    """A tensor in a device's memory, of a library that follows the array API standard as far as hal needs it.

    The host cannot read it, but by asking for a copy.

    Attributes:
        memory: In which it lies.
        held: Its numbers; for its device only.
    """

    def __init__(self, memory: Memory, held: Array) -> None:
        self.memory, self.held = memory, held

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""
        return self.held.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        shape: tuple[int, ...] = self.held.shape
        return shape

    @property
    def device(self) -> Memory:
        """Where it lies."""
        return self.memory

    def __dlpack_device__(self) -> tuple[int, int]:
        """Not the host."""
        return (_OTHER_DEVICE, self.memory.index)

    def __dlpack__(self, *, dl_device: tuple[int, int] | None = None, **_: Any) -> Any:
        """A capsule on a copy on the host, where that is asked for.

        Raises:
            BufferError: It is not asked for.
        """
        if dl_device is None or dl_device[0] != 1:
            raise BufferError(f"a tensor of device memory {self.memory.index} has no address here")
        return HostTensor(self.memory.get(self)).__dlpack__()

    def __array_namespace__(self, **_: Any) -> Any:
        """The functions that hal needs of a library."""
        return SimpleNamespace(
            empty=_empty, from_dlpack=self._from_dlpack, float32=np.float32, int64=np.int64
        )

    def _from_dlpack(self, source: Any) -> DeviceTensor:
        return self.memory.put(np.from_dlpack(source))


def _empty(shape: Sequence[int], *, dtype: Any, device: Memory) -> DeviceTensor:
    return DeviceTensor(device, np.empty(shape, dtype))


__all__ = ["DeviceTensor", "Memory"]
