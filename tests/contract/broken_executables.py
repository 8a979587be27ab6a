"""Plugins with one fault each, in what they compute, keep, or can do; see broken_plugins.py."""

import os
import threading

import ml_dtypes
import numpy as np

from hal.backend import Fallback, Support
from hal.errors import BackendError, InputError
from hal.graph.model import Graph
from hal.tensor import HostTensor, as_numpy, deliver
from hal.testing.fake import FakeBackend, FakeExecutable
from tests.contract.broken_plugins import broken, change

# --- What it computes -----------------------------------------------------------------------------


@broken("claimed_support_is_true")
class ClaimsSoftmaxButCannot(FakeBackend):
    def capability(self, device, graph, precision):
        answers = super().capability(device, graph, precision)
        return {n: Support(True) if graph.nodes[n].op_type == "Softmax" else a for n, a in answers.items()}

    def __init__(self):
        super().__init__(refuse={"Softmax": "too soft"})


@broken("claimed_support_is_true")
class WrongSoftmax(FakeExecutable):
    def compute(self, inputs):
        results, times = super().compute(inputs)
        if any(node.op_type == "Softmax" for node in self.model.graph.node):
            results = [result * np.float32(1.001) for result in results]
        return results, times


@broken("claimed_support_is_true", "fp32_is_ieee_fp32")
class LowersPrecisionOnTheQuiet(FakeExecutable):
    def rounded(self, result):
        return (
            result.astype(ml_dtypes.bfloat16).astype(result.dtype) if result.dtype == np.float32 else result
        )


@broken("fp32_is_ieee_fp32")
class SumsInTf32(FakeExecutable):
    def compute(self, inputs):
        results, times = super().compute(inputs)
        if self.model.graph.node[-1].op_type in (
            "MatMul",
            "Conv",
        ):  # what ends in a product; 10 bits of significand
            bits = [(result.view(np.uint32) + 0x1000) & 0xFFFFE000 for result in results]
            results = [b.astype(np.uint32).view(np.float32) for b in bits]
        return results, times


@broken("claimed_support_is_true")
class OutputsInOrderOfNames(FakeExecutable):
    def compute(self, inputs):
        results, times = super().compute(inputs)
        names = [spec.name for spec in self._signature.outputs]
        return [results[names.index(name)] for name in sorted(names)], times


@broken("signature_is_the_graphs")
class SignatureInOrderOfNames(FakeExecutable):
    @property
    def signature(self):
        own = super().signature
        return change(own, outputs=tuple(sorted(own.outputs, key=lambda spec: spec.name)))


@broken("inputs_are_left_alone")
class SigmoidInPlace(FakeExecutable):
    def run(self, inputs, outputs=None):
        results = super().run(inputs, outputs)
        if self.model.graph.node[0].op_type == "Sigmoid":
            as_numpy(inputs[0])[...] = as_numpy(results[0])
        return results


@broken("inputs_are_left_alone")
class InstrumentationWritesInputs(FakeExecutable):
    def kernel_runs(self, inputs, n_runs):
        runs = super().kernel_runs(inputs, n_runs)
        as_numpy(inputs[0])[...] = 0
        return runs


@broken("any_host_layout_is_read")
class IgnoresStrides(FakeExecutable):
    def run(self, inputs, outputs=None):
        flat = [as_numpy(tensor).ravel(order="K").reshape(as_numpy(tensor).shape) for tensor in inputs]
        return super().run(flat if self.clean(inputs) else inputs, outputs)

    def clean(self, inputs):
        return all(as_numpy(tensor).dtype == np.float32 for tensor in inputs)


@broken("any_host_layout_is_read")
class WantsWritableInputs(FakeExecutable):
    def run(self, inputs, outputs=None):
        if not all(as_numpy(tensor).flags.writeable for tensor in inputs):
            raise InputError("input 'x' is read-only")
        return super().run(inputs, outputs)


@broken("any_host_layout_is_read")
class WantsNumpyArrays(FakeExecutable):
    def run(self, inputs, outputs=None):
        if any(isinstance(tensor, HostTensor) and tensor.array.dtype == np.float32 for tensor in inputs):
            raise InputError("input 'x' is no numpy array")
        return super().run(inputs, outputs)

    def place(self, tensor):
        return as_numpy(tensor).copy()


@broken("outputs_belong_to_the_caller", "pending_runs_answer", "ranges_of_sizes_are_kept")
class OneBufferForAllRuns(FakeExecutable):
    buffers = None

    def run(self, inputs, outputs=None):
        results = super().run(inputs)
        if self.buffers is None:
            self.buffers = results
        deliver([as_numpy(result) for result in results], self.buffers)
        return self.buffers if outputs is None else deliver([as_numpy(r) for r in results], outputs)


@broken("outputs_belong_to_the_caller")
class OutputsDieWithClose(FakeExecutable):
    def run(self, inputs, outputs=None):
        results = super().run(inputs, outputs)
        self.made = [*getattr(self, "made", []), *results]
        return results

    def close(self):
        super().close()
        for output in getattr(self, "made", []):
            as_numpy(output).fill(0)


@broken("outputs_belong_to_the_caller")
class HandsBackItsInput(FakeExecutable):
    def compute(self, inputs):
        results, times = super().compute(inputs)
        own = {
            spec.name: as_numpy(tensor) for spec, tensor in zip(self._signature.inputs, inputs, strict=True)
        }
        names = [spec.name for spec in self._signature.outputs]
        same = self.configuration.precision == "fp32"
        return [own.get(n, r) if same else r for n, r in zip(names, results, strict=True)], times


@broken("given_outputs_are_written_and_returned", "placed_tensors_work")
class IgnoresGivenOutputs(FakeExecutable):
    def run(self, inputs, outputs=None):
        return super().run(inputs)


@broken("given_outputs_are_written_and_returned")
class ReturnsGivenOutputsUnwritten(FakeExecutable):
    def run(self, inputs, outputs=None):
        results = super().run(inputs)
        return results if outputs is None else outputs


@broken("bad_inputs_are_named")
class ConvertsTypesSilently(FakeExecutable):
    def compute(self, inputs):
        specs = self._signature.inputs
        wide = [as_numpy(tensor) for tensor in inputs]
        if len(wide) == len(specs):
            wide = [
                a.astype(s.dtype) if a.dtype == np.float64 else a for s, a in zip(specs, wide, strict=True)
            ]
        return super().compute(wide)


@broken("bad_inputs_are_named")
class BadInputWithoutName(FakeExecutable):
    def compute(self, inputs):
        try:
            return super().compute(inputs)
        except InputError:
            raise InputError("something is wrong with what was given") from None


@broken("outputs_can_be_inputs")
class RefusesItsOwnOutputs(FakeExecutable):
    def run(self, inputs, outputs=None):
        if any(tensor is mine for tensor in inputs for mine in self.backend.made):
            raise InputError("input 'x' is an output of mine")
        results = super().run(inputs, outputs)
        self.backend.made.extend(results if outputs is None else ())
        return results

    def __init__(self, backend, *given):
        super().__init__(backend, *given)
        backend.made = getattr(backend, "made", [])


@broken("bfloat16_tensors_pass")
class Bfloat16WithoutDlpack(FakeExecutable):
    def run(self, inputs, outputs=None):
        results = super().run(inputs, outputs)
        return [as_numpy(result) for result in results] if outputs is None else results


# --- What outlives what ---------------------------------------------------------------------------


@broken("close_is_final")
class SecondCloseRaises(FakeExecutable):
    def close(self):
        if self.model is None:
            raise BackendError("closed already")
        super().close()


@broken("close_is_final")
class RunsAfterClose(FakeExecutable):
    def close(self):
        kept = self.model
        super().close()
        self.model = kept


@broken("executables_are_independent")
class OneModelPerBackend(FakeExecutable):
    def __init__(self, backend, *given):
        super().__init__(backend, *given)
        backend.current = (self.model, self._signature)

    def compute(self, inputs):
        if self.model is not None:
            self.model, self._signature = self.backend.current
        return super().compute(inputs)


@broken("nothing_leaks")
class KeepsThreads(FakeExecutable):
    release = threading.Event()

    def __init__(self, *given):
        super().__init__(*given)
        threading.Thread(target=self.release.wait, daemon=True).start()


@broken("nothing_leaks")
class KeepsFiles(FakeExecutable):
    kept = []  # noqa: RUF012 - shared on purpose, so that the test can close them

    def __init__(self, *given):
        super().__init__(*given)
        self.kept.append(open(os.devnull))  # noqa: SIM115


# --- What it can do beside ------------------------------------------------------------------------


@broken("device_time_is_real")
class NoTimePasses(FakeExecutable):
    def timed_run(self, inputs):
        super().timed_run(inputs)
        return 0


@broken("device_time_is_real")
class EveryRunTakesTheSame(FakeExecutable):
    def timed_run(self, inputs):
        super().timed_run(inputs)
        return 5_000


class _Kernels(FakeExecutable):
    def kernel_runs(self, inputs, n_runs):
        runs = super().kernel_runs(inputs, n_runs)
        return change(runs, kernels=tuple(self.change(kernel) for kernel in runs.kernels))


@broken("kernel_times_are_real")
class NegativeKernels(_Kernels):
    def change(self, kernel):
        return change(kernel, durations_ns=tuple(-duration for duration in kernel.durations_ns))


@broken("kernel_times_are_real")
class KernelsOfUnknownNodes(_Kernels):
    def change(self, kernel):
        return change(kernel, nodes=("node_of_the_optimizer",))


@broken("kernel_times_are_real")
class KernelsTimedOnce(_Kernels):
    def change(self, kernel):
        return change(kernel, durations_ns=kernel.durations_ns[:1])


@broken("kernel_times_are_real")
class KernelsLongerThanTheRun(_Kernels):
    def change(self, kernel):
        return change(kernel, durations_ns=tuple(2 * duration for duration in kernel.durations_ns))


@broken("kernel_times_are_real")
class KernelsTakeNoTime(_Kernels):
    def change(self, kernel):
        return change(kernel, durations_ns=(0,) * len(kernel.durations_ns))


@broken("kernels_account_for_nodes")
class FoldsWhatItRuns(FakeExecutable):
    def kernel_runs(self, inputs, n_runs):
        runs = super().kernel_runs(inputs, n_runs)
        return change(runs, folded=runs.kernels[0].nodes)


@broken("kernels_account_for_nodes")
class FoldsWhatItDoesNotKnow(FakeExecutable):
    def kernel_runs(self, inputs, n_runs):
        runs = super().kernel_runs(inputs, n_runs)
        nameless = tuple(change(kernel, nodes=()) for kernel in runs.kernels)
        return change(runs, kernels=nameless, folded=tuple(n for k in runs.kernels for n in k.nodes))


@broken("kernels_account_for_nodes")
class KernelsNameNodesTwice(_Kernels):
    def change(self, kernel):
        return change(kernel, nodes=kernel.nodes * 2)


@broken("blobs_come_back")
class TrustsAnyBlob(FakeBackend):
    def load_blob(self, device, blob, configuration):
        return self.executable(device, Graph.load(blob[41:]), configuration)


@broken("pending_runs_answer")
class SubmitsTheLatestOnly(FakeExecutable):
    def submit(self, inputs):
        executable = self
        executable.latest = inputs

        class Late:
            def wait(self):
                return executable.run(executable.latest)

        return Late()


@broken("placed_tensors_work")
class PlacesWithoutCopy(FakeExecutable):
    def place(self, tensor):
        return tensor


@broken("memory_use_is_told")
class NegativeMemory(FakeExecutable):
    def memory_bytes(self):
        return -1


@broken("fallbacks_are_explained")
class FallbackToNowhere(FakeExecutable):
    def fallbacks(self):
        return [Fallback("conv_0", "cpu:0", "")]
