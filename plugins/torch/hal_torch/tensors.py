"""Tensors in and out of PyTorch without needless copies, checked against a signature."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from hal.backend import TensorSpec
from hal.errors import InputError, problems
from hal.tensor import HostTensor, as_numpy, fits
from hal_torch import edges

#: numpy's type for each of PyTorch's that numpy has too.
NUMPY = {
    dtype: np.dtype(str(dtype).removeprefix("torch."))
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


def dtype_of(spec: TensorSpec) -> torch.dtype:
    """PyTorch's type for the element type of a spec; KeyError where it has none."""
    found = edges.BY_VALUE.get(spec.dtype) or getattr(torch, spec.dtype, None)
    if not isinstance(found, torch.dtype):
        raise KeyError(spec.dtype)
    return found


def as_torch(tensor: Any) -> torch.Tensor:
    """A tensor as PyTorch sees it, sharing its memory where PyTorch can express it.

    Args:
        tensor: numpy array, torch tensor, or anything that exports DLPack.

    Raises:
        InputError: Not a tensor, or of a type that PyTorch does not have.
    """
    try:
        if isinstance(tensor, torch.Tensor):
            return tensor.detach()
        if isinstance(tensor, np.ndarray | HostTensor):
            return _from_numpy(as_numpy(tensor))
        return torch.from_dlpack(tensor)
    except (AttributeError, TypeError, ValueError, BufferError, RuntimeError) as error:
        kind = f"{tensor.dtype} array" if isinstance(tensor, np.ndarray) else type(tensor).__name__
        raise InputError(
            f"{kind} cannot be read by PyTorch ({_first_line(error)}); expected a numpy array in the "
            "machine's byte order or an object with __dlpack__"
        ) from error


def _from_numpy(array: np.ndarray[Any, Any]) -> torch.Tensor:
    if not array.flags.c_contiguous and any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    if array.dtype.isbuiltin != 1 and (foreign := edges.read(array)) is not None:
        return foreign
    if array.dtype.isbuiltin != 1:  # a type of ml_dtypes, which numpy's own DLPack export refuses
        return torch.from_dlpack(HostTensor(array))
    # from_numpy is the cheapest but warns of read-only memory, which is what shared inputs often are.
    return torch.from_numpy(array) if array.flags.writeable else torch.from_dlpack(array)


class Borrowed:
    """Reads the inputs of a run.

    Args:
        specs: What is expected, by position; a name in a shape stands for any size.
        device: Where the tensors are wanted.
    """

    def __init__(self, specs: Sequence[TensorSpec], device: torch.device) -> None:
        self._specs = tuple(specs)
        self._device = device
        self._wanted = tuple((dtype_of(spec), spec.shape) for spec in specs)
        # A fixed shape is compared as it is, which is quicker.
        self._is_free = any(isinstance(size, str) for spec in specs for size in spec.shape)
        # numpy's own types are singletons, which `is` tells apart; None where numpy has no such type.
        self._plain = tuple(
            NUMPY.get(dtype) if device.type == "cpu" and spec.dtype not in edges.BY_VALUE else None
            for spec, (dtype, _) in zip(specs, self._wanted, strict=True)
        )

    def read(self, tensors: Sequence[Any]) -> list[torch.Tensor]:
        """Contiguous tensors on the device; shares memory with what was given where that is there.

        Raises:
            InputError: Wrong count, type, shape or device; every input that does not fit is named.
        """
        if len(tensors) != len(self._wanted):
            raise InputError(self._wrong_count(tensors))
        given: list[torch.Tensor] = []
        found: list[str] = []
        for spec, (dtype, shape), plain, candidate in zip(
            self._specs, self._wanted, self._plain, tensors, strict=True
        ):
            # What is given most, told by the fewest steps: each costs a small model's run a microsecond.
            if (
                type(candidate) is np.ndarray
                and candidate.dtype is plain
                and (candidate.shape == shape or (self._is_free and fits(candidate.shape, shape)))
                and candidate.flags.carray
            ):
                given.append(torch.from_numpy(candidate))
                continue
            try:
                edges.refuse_plain(candidate, spec.dtype)
                tensor = as_torch(candidate)
            except InputError as error:
                found.append(f"input {spec.name!r}: {error}")
                continue
            is_right = tensor.dtype is dtype and (tensor.shape == shape or fits(tensor.shape, shape))
            if is_right and tensor.device == self._device:
                given.append(tensor if tensor.is_contiguous() else tensor.contiguous())
            elif not is_right:
                found.append(f"input {spec.name!r} is {_describe(tensor)}; expected {spec}")
            elif tensor.device.type != "cpu" and tensor.device != self._device:
                found.append(
                    f"input {spec.name!r} lies on {tensor.device}; expected the host or {self._device}: "
                    "copy it first"
                )
            else:
                given.append(tensor.to(self._device, non_blocking=True).contiguous())
        if found:
            raise InputError(problems("the inputs do not fit the executable", found))
        return given

    def _wrong_count(self, tensors: Sequence[Any]) -> str:
        wanted = ", ".join(str(spec) for spec in self._specs) or "none"
        missing = ", ".join(repr(spec.name) for spec in self._specs[len(tensors) :])
        what = f"{missing} missing" if missing else f"{len(tensors) - len(self._specs)} too many"
        return f"{len(tensors)} inputs were given, {what}; expected {len(self._specs)}: {wanted}"


def owned(
    answers: Sequence[torch.Tensor],
    dtypes: Sequence[torch.dtype],
    inputs: Sequence[torch.Tensor],
    constants: Collection[int],
) -> list[torch.Tensor]:
    """Answers in the types of the signature, contiguous, sharing memory with nothing else.

    Args:
        answers: What the model returned.
        dtypes: The types wanted, by position.
        inputs: What the model was given, which an answer may be a view of.
        constants: Addresses of the storages of its weights, which an answer may be a view of too.
    """
    taken = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    results = []
    for answer, dtype in zip(answers, dtypes, strict=True):
        result = answer if answer.dtype is dtype else answer.to(dtype)
        if not result.is_contiguous():
            result = result.contiguous()
        address = result.untyped_storage().data_ptr()
        if address in taken or address in constants:
            result = result.clone()
        taken.add(address)
        results.append(result)
    return results


def write_into(answers: Sequence[torch.Tensor], outputs: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    """Copy answers into tensors that a caller bound.

    Raises:
        InputError: Wrong count, type or shape, not contiguous, or read-only; the text names the output.
    """
    if len(outputs) != len(specs):
        raise InputError(f"{len(outputs)} outputs were bound; expected {len(specs)}")
    bound: list[torch.Tensor] = []
    found: list[str] = []
    for spec, answer, output in zip(specs, answers, outputs, strict=True):
        try:
            if edges.is_array(output, spec.dtype):
                edges.check_bound(answer, spec.dtype, output)
                continue
            tensor = as_torch(output)
        except InputError as error:
            found.append(f"output {spec.name!r}: {error}")
            continue
        read_only = isinstance(output, np.ndarray) and not output.flags.writeable
        # as_torch copies what PyTorch cannot express; a copy would never reach the caller.
        negative = isinstance(output, np.ndarray) and any(stride < 0 for stride in output.strides)
        if tensor.dtype is not dtype_of(spec) or tensor.shape != answer.shape:
            wanted = f"{spec.dtype}[{', '.join(map(str, answer.shape))}]"
            found.append(f"output {spec.name!r} is bound to {_describe(tensor)}; expected {wanted}")
        elif read_only or negative or not tensor.is_contiguous():
            found.append(f"output {spec.name!r} is bound to memory that is read-only or not contiguous")
        bound.append(tensor)
    if found:
        raise InputError(problems("the outputs do not fit the executable", found))
    left = iter(bound)
    for spec, answer, output in zip(specs, answers, outputs, strict=True):
        if edges.is_array(output, spec.dtype):
            edges.write(answer, spec.dtype, output)
        else:
            next(left).copy_(answer)


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, tensor.shape))}]"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
