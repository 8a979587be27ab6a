"""A session as an executable: the shortest way in, and results that the caller owns."""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np

from hal.backend import Executable, Pending, Signature, Tensor, TensorSpec
from hal.errors import BackendError, InputError, problems
from hal.host import n_usable_cpus
from hal.tensor import HostTensor, as_numpy, fits, is_on_host
from hal_onnxruntime.runtime import onnxruntime, tidy

#: ONNX element types that numpy has no name for, by the signature's spelling.
#: Source: onnx.proto, TensorProto.DataType.
_BEYOND_NUMPY = {
    "bfloat16": 16,
    "float8_e4m3fn": 17,
    "float8_e4m3fnuz": 18,
    "float8_e5m2": 19,
    "float8_e5m2fnuz": 20,
}


class OrtExecutable(Executable):
    """Runs a session.

    ``run`` may be called from several threads: ONNX Runtime sessions are made for that.

    Args:
        session: An ``InferenceSession``.
        signature: Of the graph.
        memory: Kind of the device's memory for ``OrtValue``, ``cpu`` for the host's.
        index: Which of the devices of that kind.
    """

    def __init__(self, session: Any, signature: Signature, memory: str = "cpu", index: int = 0) -> None:
        self._session = session
        self._signature = signature
        self._memory, self._index = memory, index
        self._names = [spec.name for spec in signature.outputs]
        self._expected = [(spec.name, _dtype(spec.dtype), spec.shape) for spec in signature.inputs]
        # A fixed shape is compared as it is, which is quicker; a name in it stands for any size.
        self._is_free = any(isinstance(size, str) for spec in signature.inputs for size in spec.shape)
        # numpy arrays go in and out of Session.run directly; other types need OrtValues.
        self._plain = not any(spec.dtype in _BEYOND_NUMPY for spec in (*signature.inputs, *signature.outputs))
        # Before 1.25 an output that is an input comes back as the caller's own memory.
        taken = {spec.name for spec in signature.inputs}
        self._shared = [index for index, spec in enumerate(signature.outputs) if spec.name in taken]
        # Strings cannot lie in an OrtValue made from outside: they take Session.run and a copy.
        self._strings = any(spec.dtype == "string" for spec in (*signature.inputs, *signature.outputs))
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def signature(self) -> Signature:
        """Inputs and outputs by position, in the order of the graph's."""
        return self._signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """Run once; see :meth:`hal.backend.Executable.run`."""
        session = self._session
        if session is None:
            raise BackendError("this executable is closed; compile the graph again to run it")
        feeds: dict[str, Any] = {}
        plain = self._plain and outputs is None and len(inputs) == len(self._expected)
        if plain:
            for (name, dtype, shape), tensor in zip(self._expected, inputs, strict=True):
                # A big-endian array differs in dtype here; the runtime would read it as garbage.
                if (
                    type(tensor) is not np.ndarray
                    or tensor.dtype != dtype
                    or (tensor.shape != shape and not (self._is_free and fits(tensor.shape, shape)))
                ):
                    plain = False
                    break
                feeds[name] = tensor
        try:
            if plain:
                return self._run_plain(session, feeds)
            return self._run_checked(session, inputs, outputs)
        except (InputError, BackendError):
            raise
        except Exception as error:  # every class of the runtime's derives from Exception only
            raise BackendError(f"onnxruntime failed while running: {tidy(error)}") from error

    def submit(self, inputs: Sequence[Tensor]) -> Pending:
        """Start a run on a thread of this executable; see :class:`hal.backend.AsyncRun`.

        The runtime's own ``run_async`` takes a thread away from the operators and needs more than
        one; a waiting thread of ours costs nothing and works with any count.
        """
        with self._lock:
            if self._session is None:
                raise BackendError("this executable is closed; compile the graph again to run it")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(n_usable_cpus(), thread_name_prefix="hal-onnxruntime")
            return _Running(self._pool.submit(self.run, inputs))

    def place(self, tensor: Tensor) -> Tensor:
        """A copy on the device; see :class:`hal.backend.DeviceTensors`."""
        array = np.ascontiguousarray(as_numpy(tensor))
        value: Tensor = onnxruntime().OrtValue.ortvalue_from_numpy(array, self._memory, self._index)
        return value

    def close(self) -> None:
        """Release the session, after the runs under way; a second call does nothing."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=True)
                self._pool = None
            self._session = None

    def _run_plain(self, session: Any, feeds: dict[str, Any]) -> Sequence[Tensor]:
        results: list[Any] = session.run(self._names, feeds)
        for index in self._shared:
            results[index] = feeds[self._names[index]].copy()
        return results

    # --- the careful way ---------------------------------------------------------------------------

    def _run_checked(
        self, session: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None
    ) -> Sequence[Tensor]:
        feeds = self._checked_inputs(inputs)
        targets = self._checked_outputs(outputs, feeds)
        unbound = outputs is None or self._strings
        if self._plain and unbound and all(isinstance(feed, np.ndarray) for feed in feeds):
            names = (name for name, _, _ in self._expected)
            results = self._run_plain(session, dict(zip(names, feeds, strict=True)))
            if outputs is None:
                return results
            for given, result, spec in zip(outputs, results, self._signature.outputs, strict=True):
                _copy_into(given, result, spec)
            return list(outputs)
        binding = session.io_binding()
        for (name, _, _), spec, feed in zip(self._expected, self._signature.inputs, feeds, strict=True):
            binding.bind_ortvalue_input(name, _as_ort_value(feed, spec.dtype))
        bound = []
        for spec, target in zip(self._signature.outputs, targets, strict=True):
            value = None if target is None else _as_ort_value(target, spec.dtype)
            bound.append(value)
            if value is None:
                binding.bind_output(spec.name)
            else:
                binding.bind_ortvalue_output(spec.name, value)
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        found = binding.get_outputs()
        if outputs is None:
            return [_owned(value, spec) for value, spec in zip(found, self._signature.outputs, strict=True)]
        for given, want, value, spec in zip(outputs, bound, found, self._signature.outputs, strict=True):
            # An input or a weight that is an output too is handed back as it lies, not where it was bound.
            if want is None or value.data_ptr() != want.data_ptr():
                is_here = want is None or _is_ort_value(given) or is_on_host(given)
                into: Any = given if is_here else want
                _copy_into(into, _owned(value, spec), spec)
        return list(outputs)

    def _checked_inputs(self, inputs: Sequence[Tensor]) -> list[Any]:
        specs = self._signature.inputs
        if len(inputs) != len(specs):
            expected = ", ".join(str(spec) for spec in specs) or "none"
            raise InputError(f"{len(inputs)} inputs were given; expected {len(specs)}: {expected}")
        found: list[str] = []
        feeds: list[Any] = []
        for (name, dtype, shape), spec, tensor in zip(self._expected, specs, inputs, strict=True):
            if self._memory != "cpu":
                tensor = _own(tensor)
            if _is_ort_value(tensor):
                given, sizes = _ort_type(tensor), tuple(tensor.shape())  # type: ignore[attr-defined]
                array: Any = tensor
                swapped = False
            else:
                try:
                    array = as_numpy(tensor)
                except InputError as error:
                    found.append(f"input {name!r}: {error}")
                    continue
                swapped = not array.dtype.isnative
                given = "string" if array.dtype.kind in "OUST" else array.dtype.name
                sizes = array.shape
            if swapped:
                found.append(
                    f"input {name!r} is big-endian or otherwise byte-swapped; expected this machine's "
                    f"byte order: convert it with astype({spec.dtype!r})"
                )
            elif given != spec.dtype:
                found.append(f"input {name!r} has type {given}; expected {spec.dtype}")
            if not fits(sizes, shape):
                found.append(f"input {name!r} has shape {list(sizes)}; expected {list(shape)}")
            if isinstance(array, np.ndarray) and dtype.kind == "O" and array.dtype.kind != "O":
                array = array.astype(str).astype(object)
            feeds.append(array)
        if found:
            raise InputError(problems("inputs do not fit", found))
        return feeds

    def _checked_outputs(self, outputs: Sequence[Tensor] | None, feeds: list[Any]) -> list[Any]:
        """Where each output may be written directly: an array, an OrtValue, or None to copy later."""
        specs = self._signature.outputs
        if outputs is None:
            return [None] * len(specs)
        if len(outputs) != len(specs):
            expected = ", ".join(str(spec) for spec in specs)
            raise InputError(
                f"{len(outputs)} outputs were given to write to; expected {len(specs)}: {expected}"
            )
        found: list[str] = []
        targets: list[Any] = []
        for spec, tensor in zip(specs, outputs, strict=True):
            if self._memory != "cpu":
                tensor = _own(tensor)
            if _is_ort_value(tensor):
                targets.append(tensor)
                continue
            array = as_numpy(tensor)
            given = "string" if array.dtype.kind == "O" else array.dtype.name
            if given != spec.dtype or not array.dtype.isnative:
                found.append(f"output {spec.name!r} has type {array.dtype}; expected {spec.dtype}")
            if not fits(array.shape, spec.shape):
                found.append(
                    f"output {spec.name!r} has shape {list(array.shape)}; expected {list(spec.shape)}"
                )
            if not array.flags.c_contiguous or not array.flags.writeable:
                found.append(f"output {spec.name!r} is not contiguous and writable; expected a plain array")
            # The runtime may write an output before it has read every input.
            shared = any(isinstance(feed, np.ndarray) and np.may_share_memory(feed, array) for feed in feeds)
            known = all(isinstance(size, int) for size in spec.shape)
            targets.append(array if known and not shared and given != "string" and array.size else None)
        if found:
            raise InputError(problems("tensors to write outputs into do not fit", found))
        return targets


class _Running:
    def __init__(self, future: Future[Sequence[Tensor]]) -> None:
        self._future = future

    def wait(self) -> Sequence[Tensor]:
        """The outputs, once they can be read."""
        return self._future.result()


@functools.cache
def _dtype(name: str) -> np.dtype[Any]:
    if name == "string":
        return np.dtype(object)
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def _is_ort_value(tensor: Any) -> bool:
    return hasattr(tensor, "_get_c_value") or type(tensor).__name__ == "OrtValue"


def _own(tensor: Any) -> Any:
    """A tensor of another library in a device's memory as the runtime's own, which shares that memory."""
    if isinstance(tensor, np.ndarray) or _is_ort_value(tensor) or not hasattr(tensor, "__dlpack_device__"):
        return tensor
    if is_on_host(tensor):
        return tensor
    if hasattr(tensor, "is_contiguous") and not tensor.is_contiguous():  # PyTorch's, which alone has strides
        tensor = tensor.contiguous()
    return onnxruntime().OrtValue.from_dlpack(tensor)


def _ort_type(value: Any) -> str:
    inner = value.data_type().removeprefix("tensor(").removesuffix(")")
    return str({"float": "float32", "double": "float64"}.get(inner, inner))


def _as_ort_value(feed: Any, dtype: str) -> Any:
    if _is_ort_value(feed):
        return feed
    package = onnxruntime()
    array = feed if feed.flags.c_contiguous else np.ascontiguousarray(feed)
    if dtype in _BEYOND_NUMPY:
        bits = array.view(np.uint16 if array.itemsize == 2 else np.uint8)
        return package.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BEYOND_NUMPY[dtype])
    return package.OrtValue.ortvalue_from_numpy(array)


def _owned(value: Any, spec: TensorSpec) -> Tensor:
    """An output as a tensor that shares nothing with the session."""
    if spec.dtype in _BEYOND_NUMPY:
        dtype, shape = _dtype(spec.dtype), tuple(value.shape())
        n_bytes = dtype.itemsize * math.prod(shape)
        raw = ctypes.string_at(value.data_ptr(), n_bytes) if n_bytes else b""
        return HostTensor(np.frombuffer(bytearray(raw), dtype).reshape(shape))
    # `numpy` copies numbers for some providers only; a weight that is an output must not be shared.
    array: Tensor = value.numpy().copy()
    return array


def _copy_into(given: Tensor, result: Tensor, spec: TensorSpec) -> None:
    if _is_ort_value(given):
        given.update_inplace(as_numpy(result))  # type: ignore[attr-defined]
        return
    target, source = as_numpy(given), as_numpy(result)
    if target.shape != source.shape:
        raise InputError(
            f"output {spec.name!r} came out as {list(source.shape)}, the tensor to write it into is "
            f"{list(target.shape)}; give one of that shape, or let the backend allocate"
        )
    target[...] = source
