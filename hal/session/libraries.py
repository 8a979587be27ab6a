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


def giver(tensors: Sequence[Any]) -> Callable[[Sequence[Tensor]], list[Any]]:
    """What makes outputs of the library that inputs are of.

    Where there is a torch tensor among them, outputs are torch tensors on its device; else where there is an
    array of another library of the array API standard (JAX, CuPy), of that; else numpy arrays.

    Args:
        tensors: The inputs, as the caller gave them.
    """
    for tensor in tensors:
        if _is_torch(tensor):
            return functools.partial(_each, functools.partial(_to_torch, tensor.device))
    for tensor in tensors:
        if not isinstance(tensor, np.ndarray | np.generic) and hasattr(tensor, "__array_namespace__"):
            return functools.partial(_each, functools.partial(_to_standard, tensor.__array_namespace__()))
    return functools.partial(_each, as_numpy)


def _each(make: Callable[[Tensor], Any], outputs: Sequence[Tensor]) -> list[Any]:
    return [make(output) for output in outputs]


def _torch() -> Any:
    return sys.modules.get("torch")


def _is_torch(tensor: Any) -> bool:
    kind = getattr(_torch(), "Tensor", None)
    return kind is not None and isinstance(tensor, kind)


def _from_torch(tensor: Any) -> Array:
    tensor = tensor.detach().cpu()
    try:
        array: Array = tensor.numpy()
    except TypeError:  # bfloat16, which numpy learns from ml_dtypes
        return as_numpy(tensor)
    return array


def _to_torch(device: Any, output: Tensor) -> Any:
    if isinstance(output, np.ndarray) and output.dtype.kind in "OUST":
        return output  # text, which PyTorch does not have
    if isinstance(output, np.ndarray) and output.dtype.isbuiltin == 1:
        # PyTorch warns of memory that must not be written.
        tensor = _torch().from_numpy(output if output.flags.writeable else output.copy())
    else:
        tensor = _torch().from_dlpack(HostTensor(output) if isinstance(output, np.ndarray) else output)
    return tensor.to(device)


def _to_standard(namespace: Any, output: Tensor) -> Any:
    array = as_numpy(output)
    source = array if array.dtype.isbuiltin == 1 else HostTensor(array)
    try:
        return namespace.from_dlpack(source)
    except _UNREADABLE:  # a library that takes nothing from the host, or not this type: numpy, as documented
        return array
