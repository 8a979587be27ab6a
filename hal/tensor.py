"""Tensors at the contract's edge: DLPack in, DLPack out, bfloat16 included.

numpy speaks DLPack for its own types only. Its bfloat16 and float8 come from ``ml_dtypes``, which
``numpy.from_dlpack`` and ``ndarray.__dlpack__`` refuse. This module bridges them by DLPack itself.

Source: DLPack specification 1.x, ``dlpack.h`` (struct layout, type codes, capsule names).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from hal.errors import InputError, problems
from hal.records.targets import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]


@runtime_checkable
class Tensor(Protocol):
    """Anything that exports DLPack: numpy, torch, OrtValue, CuPy, :class:`HostTensor`, ..."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """A capsule that owns a view of the data."""
        ...

    def __dlpack_device__(self) -> tuple[Any, int]:
        """Device type and index."""
        ...


_CPU = 1
_CUDA_HOST = 3
_INT, _UINT, _FLOAT, _BFLOAT, _COMPLEX, _BOOL = 0, 1, 2, 4, 5, 6
_TO_DTYPE: Mapping[tuple[int, int], Any] = {
    (_INT, 8): np.int8,
    (_INT, 16): np.int16,
    (_INT, 32): np.int32,
    (_INT, 64): np.int64,
    (_UINT, 8): np.uint8,
    (_UINT, 16): np.uint16,
    (_UINT, 32): np.uint32,
    (_UINT, 64): np.uint64,
    (_FLOAT, 16): np.float16,
    (_FLOAT, 32): np.float32,
    (_FLOAT, 64): np.float64,
    (_BFLOAT, 16): ml_dtypes.bfloat16,
    (_COMPLEX, 64): np.complex64,
    (_COMPLEX, 128): np.complex128,
    (_BOOL, 8): np.bool_,
}


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_DLManagedTensor))
_DLManagedTensor._fields_ = (
    ("dl_tensor", _DLTensor),
    ("manager_ctx", ctypes.c_void_p),
    ("deleter", _Deleter),
)

_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_api.PyCapsule_IsValid.restype = ctypes.c_int
_api.PyCapsule_IsValid.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_SetName.restype = ctypes.c_int
_api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)

# Exported tensors must outlive their capsules: kept here until the consumer calls the deleter.
_exported: dict[int, tuple[Any, ...]] = {}


def _forget(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


_release = _Deleter(_forget)


def _drop(capsule: int) -> None:
    # A capsule that nobody consumed still has its first name: then nobody else calls the deleter.
    if _api.PyCapsule_IsValid(capsule, b"dltensor"):
        _exported.pop(_api.PyCapsule_GetPointer(ctypes.cast(capsule, ctypes.py_object), b"dltensor"), None)


_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_destroy = _Destructor(_drop)


class HostTensor:
    """A numpy array, of any type ``ml_dtypes`` adds too, that exports DLPack without a copy.

    The array is owned together with every consumer; nothing is copied and nothing blocks.
    """

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        """Always host memory."""
        return (_CPU, 0)

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """A ``dltensor`` capsule on the array's memory.

        Raises:
            BufferError: The array's type has no DLPack code.
        """
        array = self.array
        code, bits = _dlpack_type(array.dtype)
        shape = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
        strides = (ctypes.c_int64 * max(array.ndim, 1))(*(s // array.itemsize for s in array.strides))
        managed = _DLManagedTensor()
        tensor = managed.dl_tensor
        tensor.data = array.ctypes.data
        tensor.device_type, tensor.device_id = _CPU, 0
        tensor.ndim, tensor.code, tensor.bits, tensor.lanes = array.ndim, code, bits, 1
        tensor.shape, tensor.strides, tensor.byte_offset = shape, strides, 0
        managed.deleter = _release
        address = ctypes.addressof(managed)
        _exported[address] = (managed, array, shape, strides)
        return _api.PyCapsule_New(address, b"dltensor", ctypes.cast(_destroy, ctypes.c_void_p))


class _Imported:
    """Keeps a producer's capsule alive for a numpy view and releases it after."""

    def __init__(self, capsule: Any, managed: _DLManagedTensor, dtype: np.dtype[Any]) -> None:
        self._managed = managed
        tensor = managed.dl_tensor
        shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
        strides = None
        if tensor.strides:
            strides = tuple(tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim))
        # bfloat16 has no array-interface code: its bits pass as an integer, and as_numpy views them.
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "strides": strides,
            "typestr": dtype.str if dtype.isbuiltin == 1 else f"<u{dtype.itemsize}",
            "data": ((tensor.data or 0) + tensor.byte_offset, False),
        }
        _api.PyCapsule_SetName(capsule, b"used_dltensor")

    def __del__(self) -> None:
        if self._managed.deleter:
            self._managed.deleter(ctypes.byref(self._managed))


def own_dtype(name: str) -> np.dtype[Any] | None:
    """Numpy's own type of a name, a singleton that ``is`` tells apart; None where numpy has none."""
    try:
        dtype = np.dtype(name)
    except TypeError:
        return None
    return dtype if dtype.isbuiltin == 1 else None


def is_on_host(tensor: Any) -> bool:
    """Whether a tensor that exports DLPack lies in the host's memory."""
    return int(tensor.__dlpack_device__()[0]) in (_CPU, _CUDA_HOST)


def as_numpy(tensor: Any) -> Array:
    """A host tensor as a numpy array, without a copy; bfloat16 becomes ``ml_dtypes.bfloat16``.

    Args:
        tensor: A numpy array (returned as it is) or anything that exports DLPack from host memory.

    Raises:
        InputError: Not a tensor, or a tensor that lies in the memory of another device.
    """
    if isinstance(tensor, np.ndarray):
        return tensor
    if isinstance(tensor, HostTensor):
        return tensor.array
    if not hasattr(tensor, "__dlpack__"):
        raise InputError(
            f"{type(tensor).__name__} is not a tensor; expected a numpy array or an object with __dlpack__"
        )
    if not is_on_host(tensor):
        device = tuple(int(part) for part in tensor.__dlpack_device__())
        raise InputError(
            f"a tensor on DLPack device {device} cannot be read as a numpy array; "
            "expected host memory (device type 1 or 3): copy it to the host first"
        )
    capsule = tensor.__dlpack__()
    address = _api.PyCapsule_GetPointer(capsule, b"dltensor")
    managed = ctypes.cast(address, ctypes.POINTER(_DLManagedTensor)).contents
    key = (managed.dl_tensor.code, managed.dl_tensor.bits)
    if key not in _TO_DTYPE or managed.dl_tensor.lanes != 1:
        raise InputError(
            f"DLPack type code {key[0]} with {key[1]} bits has no numpy type; "
            f"known (code, bits): {sorted(_TO_DTYPE)}"
        )
    dtype = np.dtype(_TO_DTYPE[key])
    return np.asarray(_Imported(capsule, managed, dtype)).view(dtype)


def fits(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    """Whether a shape is another one, in which a name stands for any size."""
    return len(shape) == len(wanted) and all(
        isinstance(want, str) or want == size for want, size in zip(wanted, shape, strict=True)
    )


def host_inputs(specs: Sequence[TensorSpec], tensors: Sequence[Any]) -> list[Array]:
    """Inputs of a run as numpy arrays without a copy, checked against an executable's signature.

    Args:
        specs: What is expected, by position.
        tensors: What was given, by position.

    Raises:
        InputError: Wrong count, type, shape or byte order; every input that does not fit is named.
    """
    if len(tensors) != len(specs):
        wanted = ", ".join(str(spec) for spec in specs) or "none"
        missing = [repr(spec.name) for spec in specs[len(tensors) :]]
        what = f"{', '.join(missing)} missing" if missing else f"{len(tensors) - len(specs)} too many"
        raise InputError(f"{len(tensors)} inputs were given, {what}; expected {len(specs)}: {wanted}")
    arrays = [as_numpy(tensor) for tensor in tensors]
    found = []
    for spec, array in zip(specs, arrays, strict=True):
        kind = "string" if array.dtype.kind in "OUS" else array.dtype.name
        if kind != spec.dtype or not (array.shape == spec.shape or fits(array.shape, spec.shape)):
            given = f"{kind}[{', '.join(map(str, array.shape))}]"
            found.append(f"input {spec.name!r} is {given}; expected {spec}")
        elif array.dtype.byteorder == ">":
            found.append(f"input {spec.name!r} is big-endian; expected the machine's byte order")
    if found:
        raise InputError(problems("the inputs do not fit the executable", found))
    return arrays


def deliver(results: Sequence[Array], outputs: Sequence[Any] | None) -> list[Tensor]:
    """Results as the tensors that ``Executable.run`` returns.

    Args:
        results: One array per output, owned by nobody else.
        outputs: Host tensors to write into, as ``run`` was given them, or None.

    Returns:
        ``outputs`` with the results written into them, or the results, those with a type of
        ``ml_dtypes`` wrapped so that they export DLPack.

    Raises:
        InputError: The number, type or shape of ``outputs`` differs from the results'.
    """
    if outputs is None:
        return [array if array.dtype.isbuiltin == 1 else HostTensor(array) for array in results]
    wanted = [(array.dtype.name, array.shape) for array in results]
    given = [(array.dtype.name, array.shape) for array in map(as_numpy, outputs)]
    if wanted != given:
        raise InputError(f"outputs to write into are {given}; expected {wanted}")
    for result, output in zip(results, outputs, strict=True):
        np.copyto(as_numpy(output), result)
    return list(outputs)


def _dlpack_type(dtype: np.dtype[Any]) -> tuple[int, int]:
    for (code, bits), known in _TO_DTYPE.items():
        if dtype == known:
            return code, bits
    raise BufferError(f"numpy type {dtype} has no DLPack type code; expected one of {sorted(_TO_DTYPE)}")
