"""Tensors of the array library a caller uses: in as numpy arrays on the host, out as what he gave.

No library is imported here: a tensor of one can only be there if the library is.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hal.errors import InputError
from hal.executor.homes import Home, home_of
from hal.tensor import Array, HostTensor, Tensor, as_numpy, is_on_host

#: What tensors raise that do not want to be read: sparse, without memory, of a type numpy lacks.
_UNREADABLE = (TypeError, ValueError, RuntimeError, BufferError, AttributeError, NotImplementedError)


def read(tensor: Any) -> Array:
    """A tensor as a numpy array on the host, without a copy where it is there already.

    Args:
        tensor: A numpy array or scalar, a torch tensor on any device, or anything that exports DLPack.

    Raises:
        InputError: It is no tensor, or cannot be read; the text says what it is.
    """
    if isinstance(tensor, np.ndarray):
        return tensor
    if isinstance(tensor, np.generic):
        return np.asarray(tensor)
    try:
        if _is_torch(tensor):
            return _from_torch(tensor)
        if not isinstance(tensor, HostTensor) and hasattr(tensor, "__dlpack__") and not is_on_host(tensor):
            return np.from_dlpack(tensor, device="cpu")
        return as_numpy(tensor)
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(
            f"{type(tensor).__name__} cannot be read ({type(error).__name__}: {error})"
        ) from error


class Library:
    """The array library of a caller.

    Attributes:
        home: The memory of the device that his tensor lies in; None for the host's.
    """

    home: Home | None = None

    def give(self, output: Tensor) -> Any:
        """An output as a tensor of the library, where the caller's lie."""
        return as_numpy(output)

    def empty(self, dtype: str, shape: Sequence[int]) -> Any:
        """A tensor to be written to, where the caller's lie; None where the library has no such type."""
        return np.empty(shape, dtype)


class _Torch(Library):
    def __init__(self, tensor: Any) -> None:
        self._device = tensor.device
        self.home = None if tensor.device.type == "cpu" else home_of(tensor.detach())

    def give(self, output: Tensor) -> Any:
        return _to_torch(self._device, output)

    def empty(self, dtype: str, shape: Sequence[int]) -> Any:
        kind = getattr(_torch(), dtype, None)
        return None if kind is None else _torch().empty(tuple(shape), dtype=kind, device=self._device)


class _Standard(Library):
    """One that follows the array API standard.

    Source: https://data-apis.org/array-api/2024.12 (``__array_namespace__``, ``empty``, ``from_dlpack``).
    """

    def __init__(self, tensor: Any) -> None:
        self._namespace, self._kind = tensor.__array_namespace__(), type(tensor)
        self.home = home_of(tensor)
        self._device = getattr(tensor, "device", None)

    def give(self, output: Tensor) -> Any:
        return output if isinstance(output, self._kind) else _to_standard(self._namespace, output)

    def empty(self, dtype: str, shape: Sequence[int]) -> Any:
        kind = getattr(self._namespace, dtype, None)
        return None if kind is None else self._namespace.empty(tuple(shape), dtype=kind, device=self._device)


def library_of(tensors: Sequence[Any]) -> Library | None:
    """The library that outputs are wanted in; None for numpy.

    Where there is a torch tensor among the inputs, PyTorch; else where there is an array of another library
    of the array API standard (JAX, CuPy), that.

    Args:
        tensors: The inputs, as the caller gave them.
    """
    for tensor in tensors:
        if _is_torch(tensor):
            return _Torch(tensor)
    for tensor in tensors:
        if not isinstance(tensor, np.ndarray | np.generic) and hasattr(tensor, "__array_namespace__"):
            return _Standard(tensor)
    return None


def giver(tensors: Sequence[Any]) -> Callable[[Sequence[Tensor]], list[Any]]:
    """What makes outputs of the library that inputs are of; see :func:`library_of`.

    Outputs that lie on the host go to the device of the caller's tensors.
    """
    library = library_of(tensors)
    return functools.partial(_each, as_numpy if library is None else library.give)


def is_away(tensor: Any) -> bool:
    """Whether a tensor lies in the memory of a device."""
    if isinstance(tensor, np.ndarray | np.generic):
        return False
    return tensor.device.type != "cpu" if _is_torch(tensor) else home_of(tensor) is not None


def settled(tensor: Any) -> Any:
    """A tensor on a device, computed, as a thread needs it that knows nothing of the caller's streams.

    Tensors of other libraries than PyTorch are read by DLPack, which takes care of that.
    """
    if not _is_torch(tensor):
        return tensor
    module: Any = getattr(_torch(), tensor.device.type, None)
    if hasattr(module, "current_stream"):
        module.current_stream(tensor.device).synchronize()
    return tensor.detach()


def _each(make: Callable[[Tensor], Any], outputs: Sequence[Tensor]) -> list[Any]:
    return [make(output) for output in outputs]


def _torch() -> Any:
    return sys.modules.get("torch")


def _is_torch(tensor: Any) -> bool:
    kind = getattr(_torch(), "Tensor", None)
    return kind is not None and isinstance(tensor, kind)


def _from_torch(tensor: Any) -> Array:
    if tensor.requires_grad or tensor.device.type != "cpu":
        tensor = tensor.detach().cpu()
    try:
        array: Array = tensor.numpy()
    except TypeError:  # bfloat16, which numpy learns from ml_dtypes
        return as_numpy(tensor)
    return array


def _to_torch(device: Any, output: Tensor) -> Any:
    if _is_torch(output):
        return output.to(device)  # type: ignore[attr-defined]  # as it is, where it lies there
    if isinstance(output, np.ndarray) and output.dtype.kind in "OUST":
        return output  # text, which PyTorch does not have
    if isinstance(output, np.ndarray) and output.dtype.isbuiltin == 1:
        # PyTorch warns of memory that must not be written.
        tensor = _torch().from_numpy(output if output.flags.writeable else output.copy())
        return tensor if device.type == "cpu" else tensor.to(device)
    tensor = _torch().from_dlpack(HostTensor(output) if isinstance(output, np.ndarray) else output)
    return tensor.to(device)


def _to_standard(namespace: Any, output: Tensor) -> Any:
    array = as_numpy(output)
    source = array if array.dtype.isbuiltin == 1 else HostTensor(array)
    try:
        return namespace.from_dlpack(source)
    except _UNREADABLE:  # a library that takes nothing from the host, or not this type: numpy, as documented
        return array
