"""The executable that ``cpu`` and ``cuda`` share: a bridged module, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack, to_dlpack

from hal.backend import Configuration, Executable, KernelRuns, Signature, Tensor
from hal.errors import BackendError, HalError, UnsupportedGraph, problems
from hal.graph.model import Graph
from hal_torch import edges, kernels
from hal_torch.bridge import bridge, lower_weights
from hal_torch.environment import environment_kept
from hal_torch.failures import reason
from hal_torch.precision import LOWERED, computing, forbid_reduced_fp32
from hal_torch.tensors import NUMPY, Borrowed, as_torch, dtype_of, owned, write_into


class TorchExecutable(Executable):
    """A graph as a PyTorch module on one device. It has the abilities KernelTimes and DeviceTensors.

    Settings of PyTorch that hold for the whole process are written before compiling: the number of
    threads, and float32 that is IEEE float32. The number of threads is written again before a run where
    it is found changed, because two executables may differ in it.

    Args:
        graph: Free dimensions cost a copy of outputs that are views; ``mode=compiled`` takes none.
        device: Where to run.
        configuration: Checked by the backend.
        n_threads: Threads within an operation, on the CPU; None leaves PyTorch's setting.
        n_workers: Processes that Inductor may compile with at once.

    Raises:
        UnsupportedGraph: The bridge refuses nodes, or free dimensions are to be compiled.
        BackendError: PyTorch failed.
    """

    def __init__(
        self,
        graph: Graph,
        device: torch.device,
        configuration: Configuration,
        *,
        n_threads: int | None = None,
        n_workers: int = 1,
    ) -> None:
        self._name = graph.name
        self._device = device
        self._precision = configuration.precision
        self._compiled = configuration.option("mode", "eager") == "compiled"
        self._n_threads = n_threads
        self._n_workers = n_workers
        self._nodes = tuple(graph.nodes)
        self._signature = graph.signature
        self._module: torch.fx.GraphModule | None = None
        # With free sizes each run may need others.
        self._needs_copies: bool | None = True if graph.unbound else None
        self._call: Callable[..., Sequence[torch.Tensor]] = self._closed
        if self._compiled and graph.unbound:
            raise UnsupportedGraph(
                f"{graph.name!r} has free dimensions, and mode=compiled is for bound ones; use mode=eager"
            )
        try:
            with environment_kept():
                self._build(graph)
        except Exception as error:  # the plugin boundary: whatever PyTorch raises keeps its reason
            raise self._failure("compile", error) from error

    @property
    def signature(self) -> Signature:
        """The graph's."""
        return self._signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """Run once. Outputs come as tensors on the host, or go where ``outputs`` lie."""
        # Few steps on this path: each costs the run of a small model a microsecond.
        try:
            if self._n_threads is not None and torch.get_num_threads() != self._n_threads:
                torch.set_num_threads(self._n_threads)
            # Tensors made in inference mode are marked and pass through PyTorch quicker; compiled code is
            # for one kind of tensor, the unmarked one.
            given = self._read(inputs) if self._compiled else None
            with torch.inference_mode(), computing(self._device.type, self._precision):
                if given is None:
                    given = self._read(inputs)
                answers = self._call(*given)
                if outputs is None:
                    if self._needs_copies is False:
                        results = [
                            a if a.dtype is d else a.to(d) for a, d in zip(answers, self._dtypes, strict=True)
                        ]
                    else:
                        results = self._learn(answers, given)
                    if self._numpy_out:
                        return [result.numpy() for result in results]
            if outputs is None:
                names = (spec.dtype for spec in self._signature.outputs)
                return [_handed_out(result, name) for result, name in zip(results, names, strict=True)]
            write_into(answers, outputs, self._signature.outputs)
            self._synchronize()
            return outputs
        except Exception as error:  # the plugin boundary: whatever PyTorch raises keeps its reason
            raise self._failure("run", error) from error

    def close(self) -> None:
        """Forget the module; weights are freed with it."""
        self._module = None
        self._read = self._call = self._closed

    def place(self, tensor: Tensor) -> Tensor:
        """A copy on the device."""
        given = as_torch(tensor)
        return torch.empty(given.shape, dtype=given.dtype, device=self._device).copy_(given)

    def kernel_runs(self, inputs: Sequence[Tensor], n_runs: int) -> KernelRuns:
        """Eager: one kernel per ONNX node. Compiled: one per launch, from a second compilation."""
        module = self._check_open()
        given = self._read(inputs)
        try:
            self._keep_threads()
            with torch.inference_mode(), computing(self._device.type, self._precision):
                if not self._compiled:
                    return kernels.eager_runs(module, given, n_runs, self._marks(), self._nodes)
                from hal_torch.inductor import compiled

                with environment_kept():
                    call, graphs = compiled(module, given, self._n_workers, observed=True)
                return kernels.compiled_runs(call, module, graphs, given, n_runs, self._nodes)
        except Exception as error:
            raise self._failure("time the kernels of", error) from error

    def _build(self, graph: Graph) -> None:
        self._keep_threads()
        forbid_reduced_fp32()
        if refused := edges.refusals(graph, self._device.type == "cpu"):
            raise UnsupportedGraph(problems("the model cannot be run by PyTorch", list(refused.values())))
        module = bridge(graph.model)
        if self._precision in LOWERED:
            lower_weights(module, LOWERED[self._precision])
        module = module.to(self._device)
        self._read = Borrowed(self._signature.inputs, self._device).read
        self._dtypes = tuple(dtype_of(spec) for spec in self._signature.outputs)
        # A numpy array costs a sixth of the way through DLPack, which the other types have to take.
        self._numpy_out = self._device.type == "cpu" and all(
            dtype in NUMPY and not edges.is_foreign(spec.dtype)
            for spec, dtype in zip(self._signature.outputs, self._dtypes, strict=True)
        )
        self._constants = _addresses((*module.parameters(), *module.buffers()))
        self._call = module
        if self._compiled:
            self._call = self._compile(module)
        self._module = module

    def _compile(self, module: torch.fx.GraphModule) -> Callable[..., Sequence[torch.Tensor]]:
        from hal_torch.inductor import compiled

        examples = self._examples()
        with torch.inference_mode(), computing(self._device.type, self._precision):
            call, _ = compiled(module, examples, self._n_workers)
        return call

    def _examples(self) -> list[torch.Tensor]:
        # Ones keep divisions and logarithms finite; integers are often indices, where 0 is legal.
        return [
            torch.full(
                [int(size) for size in spec.shape],
                1.0 if dtype_of(spec).is_floating_point else 0,
                dtype=dtype_of(spec),
                device=self._device,
            )
            for spec in self._signature.inputs
        ]

    def _check_open(self) -> torch.fx.GraphModule:
        if self._module is None:
            raise BackendError(f"the executable of {self._name!r} was closed; compile the graph again")
        return self._module

    def _closed(self, *_: torch.Tensor) -> Sequence[torch.Tensor]:
        raise BackendError(f"the executable of {self._name!r} was closed; compile the graph again")

    def _learn(self, answers: Sequence[torch.Tensor], given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Results that share memory with nothing; learns at the first run whether that needs copies.

        Which outputs are views of what, and their layout, follow from the graph and its fixed shapes alone,
        unless a branch (a module of its own) decides at run time.
        """
        results = owned(answers, self._dtypes, given, self._constants)
        if self._needs_copies is None:
            module = self._check_open()
            self._needs_copies = any(node.op == "call_module" for node in module.graph.nodes) or not all(
                result is answer or (answer.dtype is not dtype and answer.is_contiguous())
                for result, answer, dtype in zip(results, answers, self._dtypes, strict=True)
            )
        return results

    def _keep_threads(self) -> None:
        # One setting for the process: another executable may have left its own.
        if self._n_threads is not None and torch.get_num_threads() != self._n_threads:
            torch.set_num_threads(self._n_threads)

    def _failure(self, what: str, error: Exception) -> HalError:
        if isinstance(error, HalError):
            return error
        advice = ""
        if isinstance(error, torch.OutOfMemoryError):
            advice = "; free memory on the device or use smaller shapes"
        return BackendError(
            f"PyTorch could not {what} {self._name!r} on {self._device} in {self._precision}: "
            f"{reason(error)}{advice}"
        )

    def _marks(self) -> kernels.Marks:
        return kernels.HostMarks()

    def _synchronize(self) -> None:
        """Wait for the device; the CPU computes before it returns."""


def _addresses(tensors: Sequence[torch.Tensor] | Any) -> frozenset[int]:
    return frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)


def _handed_out(result: torch.Tensor, name: str) -> Tensor:
    """A result on the host without the mark of inference mode: the caller may write to what it owns."""
    if edges.is_foreign(name):
        return edges.written(result, name)
    return from_dlpack(to_dlpack(result.cpu()))
