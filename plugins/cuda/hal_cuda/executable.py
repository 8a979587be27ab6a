"""A PyTorch module on a GPU: timed by CUDA events, and run without blocking on a stream of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from hal.backend import KernelRuns, Tensor
from hal_torch import kernels
from hal_torch.executable import TorchExecutable
from hal_torch.precision import computing
from hal_torch.tensors import owned


class CudaMarks:
    """CUDA events as points in time."""

    def mark(self) -> torch.cuda.Event:
        """An event on the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        """Wait for everything on the device."""
        torch.cuda.synchronize()

    def between_ns(self, start: torch.cuda.Event, end: torch.cuda.Event) -> int:
        """Nanoseconds between two events; CUDA's resolution is about 500 ns.

        Source: CUDA Runtime API, ``cudaEventElapsedTime``.
        """
        return round(start.elapsed_time(end) * 1_000_000)


class CudaExecutable(TorchExecutable):
    """Adds DeviceTime, AsyncRun and MemoryUse to what every PyTorch executable can do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream | None = None
        super().__init__(*args, **kwargs)

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """Run once. Outputs come as tensors on the host, or go where ``outputs`` lie."""
        with torch.cuda.device(self._device):
            return super().run(inputs, outputs)

    def kernel_runs(self, inputs: Sequence[Tensor], n_runs: int) -> KernelRuns:
        """Eager: CUDA events around each ONNX node. Compiled: what each launch ran on the GPU."""
        with torch.cuda.device(self._device):
            return super().kernel_runs(inputs, n_runs)

    def timed_run(self, inputs: Sequence[Tensor]) -> int:
        """Nanoseconds between CUDA events, from inputs where they are given to outputs on the host.

        Transfers are part of it, as they are of every other backend's end-to-end time.
        """
        self._check_open()
        marks = CudaMarks()
        with torch.cuda.device(self._device):
            try:
                marks.settle()
                start = marks.mark()
                given = self._read(inputs)
                with torch.inference_mode(), computing("cuda", self._precision):
                    for answer in self._call(*given):
                        answer.cpu()
                end = marks.mark()
                marks.settle()
            except Exception as error:
                raise self._failure("run", error) from error
            return marks.between_ns(start, end)

    def submit(self, inputs: Sequence[Tensor]) -> CudaPending:
        """Start a run on the executable's own stream. Calls from several threads queue up."""
        self._check_open()
        with self._lock, torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)
            # Inputs on the device may still be under way on the caller's stream.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                given = self._read(inputs)
                try:
                    with torch.inference_mode(), computing("cuda", self._precision):
                        answers = owned(self._call(*given), self._dtypes, given, self._constants)
                    results = [
                        torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True) for answer in answers
                    ]
                    for result, answer in zip(results, answers, strict=True):
                        result.copy_(answer, non_blocking=True)
                    done = torch.cuda.Event()
                    done.record()
                except Exception as error:
                    raise self._failure("run", error) from error
            return CudaPending(self, results, done, (given, answers))

    def memory_bytes(self) -> int:
        """Bytes that PyTorch's allocator holds for tensors on the device, of the whole process.

        In hal's workers that is one executable at a time.
        """
        return int(torch.cuda.memory_allocated(self._device))

    def close(self) -> None:
        """Forget the module and give its memory back to the device."""
        if self._module is not None:
            super().close()
            torch.cuda.empty_cache()

    def failure(self, error: Exception) -> Exception:
        """An error of a run under way, in hal's words."""
        return self._failure("run", error)

    def _marks(self) -> kernels.Marks:
        return CudaMarks()

    def _synchronize(self) -> None:
        torch.cuda.current_stream().synchronize()


class CudaPending:
    """A run under way on a stream.

    Args:
        owner: The executable.
        results: Where the outputs are being copied to, on the host.
        done: Recorded behind the copies.
        alive: Tensors that must not be freed before.
    """

    def __init__(
        self, owner: CudaExecutable, results: Sequence[torch.Tensor], done: torch.cuda.Event, alive: object
    ) -> None:
        self._owner, self._results, self._done = owner, results, done
        self._alive: object = alive

    def wait(self) -> Sequence[Tensor]:
        """Block until the outputs can be read, and return them.

        Raises:
            BackendError: The run failed on the GPU.
        """
        try:
            self._done.synchronize()
        except Exception as error:
            raise self._owner.failure(error) from error
        self._alive = None
        return self._results
