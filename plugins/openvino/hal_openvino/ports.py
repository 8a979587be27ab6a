"""One input or output of a compiled model: hal's tensors to OpenVINO's and back, without a copy."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import openvino as ov

from hal.backend import TensorSpec
from hal.errors import BackendError, InputError
from hal.tensor import Array, HostTensor, Tensor, as_numpy

# Types that numpy has, under the names it has in common with OpenVINO; these are shared as they are.
_INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_PLAIN = _INTEGERS | {"bool", "float16", "float32", "float64"}
# Types that ml_dtypes adds: OpenVINO takes their bits with an element type beside them.
_EXTRA = {
    "bfloat16": (ml_dtypes.bfloat16, np.uint16, ov.Type.bf16),
    "float8_e4m3fn": (ml_dtypes.float8_e4m3fn, np.uint8, ov.Type.f8e4m3),
    "float8_e5m2": (ml_dtypes.float8_e5m2, np.uint8, ov.Type.f8e5m2),
}
#: Element types that can be handed to OpenVINO and taken from it. Text is not among them: OpenVINO
#: 2026.4 frees memory wrongly after a run with a text tensor ("munmap_chunk(): invalid pointer").
PASSED = _PLAIN | _EXTRA.keys()


class Port:
    """How one tensor passes.

    Attributes:
        spec: The tensor's name, type and shape in the graph.
        index: The port's number in the compiled model; -1 where the model has none (an input that
            nothing reads).
        shape: Fixed shape, or None where a run decides it.
        role: ``input`` or ``output``, for messages.
        n_bytes: Size; 0 where a run decides it.
    """

    def __init__(self, spec: TensorSpec, index: int, shape: tuple[int, ...] | None, role: str) -> None:
        self.spec = spec
        self.index = index
        self.shape = shape
        self.role = role
        self._bits: Any = None
        if spec.dtype in _EXTRA:
            kind, self._bits, self._element = _EXTRA[spec.dtype]
            self.dtype: np.dtype[Any] = np.dtype(kind)
            self._ov_shape = ov.Shape(list(shape or ()))
        elif spec.dtype in _PLAIN:
            self.dtype = np.dtype(spec.dtype)
        else:
            raise BackendError(
                f"{role} {spec} has a type that OpenVINO does not pass; "
                f"expected one of {', '.join(sorted(PASSED))}"
            )
        self.n_bytes = 0 if shape is None else math.prod(shape) * self.dtype.itemsize

    @property
    def is_special(self) -> bool:
        """Whether numpy lacks the type, so that results are wrapped to speak DLPack."""
        return self._bits is not None

    def check(self, tensor: Tensor) -> Array:
        """The tensor as an array of the right type and shape.

        Raises:
            InputError: It is of another type or shape, or not in host memory.
        """
        array = tensor if type(tensor) is np.ndarray else as_numpy(tensor)
        if array.dtype != self.dtype:
            raise InputError(
                f"{self.role} {self.spec.name!r} has type {array.dtype.name}; expected {self.spec.dtype}: "
                "convert it first"
            )
        if array.shape != self.shape and not self._fits(array.shape):
            raise InputError(
                f"{self.role} {self.spec.name!r} has shape {list(array.shape)}; "
                f"expected {list(self.spec.shape)}"
            )
        return array

    def check_target(self, tensor: Tensor) -> Array:
        """Like :meth:`check`, for memory that results are written into.

        Raises:
            InputError: As for :meth:`check`, or it is not contiguous and writeable.
        """
        array = self.check(tensor)
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise InputError(
                f"{self.role} {self.spec.name!r} is not contiguous and writeable; "
                "expected memory that results can be written into"
            )
        return array

    def share(self, array: Array) -> ov.Tensor:
        """An OpenVINO tensor on the array's memory; the array must outlive its use."""
        flags = array.flags
        if not flags.c_contiguous:
            array = np.ascontiguousarray(array)
            flags = array.flags
        if self._bits is not None:
            array = array.view(self._bits)
        if not flags.writeable:
            array = _writeable_view(array)
        if self._bits is not None:
            shape = self._ov_shape if self.shape is not None else ov.Shape(list(array.shape))
            return ov.Tensor(array, shape, self._element)
        return ov.Tensor(array, shared_memory=True)

    def allocate(self) -> Array:
        """An output array, uninitialised; for ports of fixed shape."""
        return np.empty(self.shape or (), self.dtype)

    def view(self, tensor: ov.Tensor) -> Array:
        """An OpenVINO tensor's own memory as an array."""
        data: Array = tensor.data
        return data.view(self.dtype) if self._bits is not None else data

    def copy(self, tensor: ov.Tensor) -> Array:
        """The content of an OpenVINO tensor, as an array of its own."""
        return self.view(tensor).copy()

    def copy_into(self, tensor: ov.Tensor, target: Tensor) -> None:
        """Write the content of an OpenVINO tensor into a bound tensor.

        Raises:
            InputError: The run decided on another shape.
        """
        result = self.view(tensor)
        array = as_numpy(target)
        if result.shape != array.shape:
            raise InputError(
                f"{self.role} {self.spec.name!r} has shape {list(result.shape)} after this run; "
                f"the bound tensor has {list(array.shape)}"
            )
        np.copyto(array, result)

    def give(self, array: Array) -> Tensor:
        """What ``run`` returns: numpy's own types as they are, others wrapped to speak DLPack."""
        return HostTensor(array) if self._bits is not None else array

    def _fits(self, shape: tuple[int, ...]) -> bool:
        wanted = self.spec.shape
        return len(shape) == len(wanted) and all(
            isinstance(want, str) or want == got for want, got in zip(wanted, shape, strict=True)
        )


class _Writeable:
    """A read-only array's memory under the flag that OpenVINO insists on; it never writes inputs."""

    def __init__(self, array: Array) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _writeable_view(array: Array) -> Array:
    return np.asarray(_Writeable(array))
