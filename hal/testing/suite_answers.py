"""Checks of a backend's answers: claimed support is true, fp32 is fp32, tensors are treated as agreed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any
from unittest import SkipTest

import numpy as np

from hal.backend import Configuration, DeviceTime, KernelTimes
from hal.errors import InputError
from hal.graph.model import Graph
from hal.tensor import Array, HostTensor, as_numpy
from hal.testing.graphs import GRAPHS, small_graph
from hal.testing.suite import EXACTING, Problems, Suite, copies, inputs_of, tensors, tolerance, truth_of

#: The precision check's bound. Source: see ``exacting_matmul`` in :mod:`hal.testing.graphs`; TF32 and fp16
#: miss it 400 times over.
_FP32_BOUND = 1e-5


class Answers(Suite):
    """What a backend computes."""

    def test_claimed_support_is_true(self) -> None:
        """A graph whose nodes are all yes compiles and answers like the reference."""
        problems = Problems()
        for device, precision, where in self.targets():
            for name in GRAPHS:
                graph = small_graph(name)
                if name in EXACTING:
                    continue
                with problems.about(f"{where} {name}"):
                    if self.runs(device, graph, precision):
                        self._compare(device, graph, precision, problems)
        problems.finish()

    def test_fp32_is_ieee_fp32(self) -> None:
        """A sum that cancels shows whether fp32 computes in TF32, bf16 or fp16 on the quiet."""
        problems, n_run = Problems(), 0
        for device, precision, where in self.targets():
            for name in EXACTING:
                graph = small_graph(name)
                with problems.about(f"{where} {name}"):
                    if precision == "fp32" and self.runs(device, graph, precision):
                        n_run += 1
                        with self.compiled(device, graph, precision) as executable:
                            outputs = executable.run(inputs_of(graph))
                            problems.compare(truth_of(graph), outputs, _FP32_BOUND, "a sum that cancels")
        problems.finish()
        if not n_run:
            raise SkipTest("no device runs MatMul or Conv in fp32")

    def test_signature_is_the_graphs(self) -> None:
        """Inputs and outputs have the graph's order, names, types and shapes."""
        problems = Problems()
        for device, precision, graph, where in self.every(
            "two_outputs", "integers", "booleans", "scalar", "chain"
        ):
            with problems.about(where), self.compiled(device, graph, precision) as executable:
                given, wanted = executable.signature, graph.signature
                problems.expect(given == wanted, f"the signature is {given}; expected {wanted}")
        problems.finish()

    def test_inputs_are_left_alone(self) -> None:
        """No byte of an input changes, in plain, timed and instrumented runs."""
        problems = Problems()
        for device, precision, graph, where in self.every(
            "chain", "residual", "add", "two_outputs", "passthrough"
        ):
            with problems.about(where), self.compiled(device, graph, precision) as executable:
                runs: dict[str, Callable[[Sequence[Any]], Any]] = {"run": executable.run}
                timed, kernels = executable.ability(DeviceTime), executable.ability(KernelTimes)
                if timed is not None:
                    runs["timed_run"] = timed.timed_run
                if kernels is not None:
                    runs["kernel_runs"] = functools.partial(kernels.kernel_runs, n_runs=2)
                for name, run in runs.items():
                    inputs = inputs_of(graph)
                    before = [as_numpy(tensor).tobytes() for tensor in inputs]
                    run(inputs)
                    for index, tensor in enumerate(inputs):
                        same = as_numpy(tensor).tobytes() == before[index]
                        problems.expect(same, f"{name} wrote into input {index}")
        problems.finish()

    def test_any_host_layout_is_read(self) -> None:
        """Read-only, transposed, strided and reversed inputs answer like plain ones."""
        problems = Problems()
        for device, precision, graph, where in self.usual():
            with problems.about(where), self.compiled(device, graph, precision) as executable:
                truth = copies(executable.run(inputs_of(graph)))
                for layout, change in _LAYOUTS.items():
                    inputs = [change(as_numpy(tensor)) for tensor in inputs_of(graph)]
                    with problems.about(f"{where} with {layout} inputs"):
                        problems.compare(truth, executable.run(inputs), 1e-6, "the answer to the same values")
                wrapped = [HostTensor(as_numpy(tensor)) for tensor in inputs_of(graph)]
                with problems.about(f"{where} with inputs that only export DLPack"):
                    problems.compare(truth, executable.run(wrapped), 1e-6, "the answer to the same values")
        problems.finish()

    def test_outputs_belong_to_the_caller(self) -> None:
        """Outputs stay as they are when the inputs change, after another run and after close."""
        problems = Problems()
        for device, precision, graph, where in self.every(
            "chain", "residual", "add", "two_outputs", "passthrough"
        ):
            with problems.about(where):
                with self.compiled(device, graph, precision) as executable:
                    inputs = inputs_of(graph)
                    outputs = executable.run(inputs)
                    before = copies(outputs)
                    for tensor in inputs:
                        as_numpy(tensor).fill(7)
                    problems.compare(before, outputs, 0.0, "outputs after the inputs changed")
                    executable.run(inputs_of(graph, seed=1))
                    problems.compare(before, outputs, 0.0, "outputs after a second run")
                problems.compare(before, outputs, 0.0, "outputs after close")
        problems.finish()

    def test_given_outputs_are_written_and_returned(self) -> None:
        """With ``outputs=`` the results are written there and the same tensors come back."""
        problems = Problems()
        for device, precision, graph, where in self.every("two_outputs", "passthrough", "chain", "add"):
            with problems.about(where), self.compiled(device, graph, precision) as executable:
                truth = copies(executable.run(inputs_of(graph)))
                given = [np.full_like(array, 77) for array in truth]
                back = executable.run(inputs_of(graph), outputs=given)
                same = len(back) == len(given) and all(a is b for a, b in zip(back, given, strict=True))
                problems.expect(same, "run returned other tensors than the outputs it was given")
                problems.compare(truth, given, 1e-6, "the given outputs after the run")
        problems.finish()

    def test_bad_inputs_are_named(self) -> None:
        """Wrong count, type, shape or byte order is an InputError that names the input."""
        problems = Problems()
        for device, precision, graph, where in self.usual("chain", "residual", "add", "two_outputs"):
            with problems.about(where), self.compiled(device, graph, precision) as executable:
                good = [as_numpy(tensor) for tensor in inputs_of(graph)]
                truth = copies(executable.run(good))
                last, name = good[-1], graph.signature.inputs[-1].name
                wrong: dict[str, list[Array]] = {
                    "an input missing": good[:-1],
                    "an input too many": [*good, last],
                    "a wrong type": [*good[:-1], last.astype(np.float64)],
                    "a wrong shape": [*good[:-1], np.concatenate([last, last])],
                    "a wrong rank": [*good[:-1], last[None]],
                    "a big-endian input": [*good[:-1], last.astype(">f4")],
                }
                for what, inputs in wrong.items():
                    names = [name] if len(inputs) == len(good) else []
                    with problems.expect_error(InputError, what, names):
                        executable.run(inputs)
                problems.compare(truth, executable.run(good), 1e-6, "the run after the refused ones")
        problems.finish()

    def test_outputs_can_be_inputs(self) -> None:
        """An output goes into a later run as it came out, on this and on another executable."""
        problems = Problems()
        for device, precision, graph, where in self.usual("chain", "residual", "bfloat16", "add"):
            with (
                problems.about(where),
                self.compiled(device, graph, precision) as first,
                self.compiled(device, graph, precision) as second,
            ):
                inputs = inputs_of(graph)
                once = first.run(inputs)
                middle = copies(once)
                elsewhere = copies(second.run([*once[:1], *inputs[1:]]))
                again = copies(first.run([*once[:1], *inputs[1:]]))
                wanted = copies(first.run(tensors([*middle[:1], *map(as_numpy, inputs[1:])])))
                problems.compare(wanted, again, 1e-6, "an output as an input")
                problems.compare(wanted, elsewhere, 1e-6, "an output as another executable's input")
        problems.finish()

    def test_bfloat16_tensors_pass(self) -> None:
        """Where bfloat16 graphs are claimed, such tensors go in and come out by DLPack."""
        problems, n_run = Problems(), 0
        graph = small_graph("bfloat16")
        for device, precision, where in self.targets():
            with problems.about(f"{where} bfloat16"):
                if not self.runs(device, graph, precision):
                    continue
                n_run += 1
                with self.compiled(device, graph, precision) as executable:
                    outputs = executable.run(inputs_of(graph))
                    for index, output in enumerate(outputs):
                        output.__dlpack_device__()
                        problems.expect(
                            output.__dlpack__() is not None, f"output {index} exports no DLPack capsule"
                        )
                    problems.compare(truth_of(graph), outputs, tolerance(graph, precision), "the answer")
        problems.finish()
        if not n_run:
            raise SkipTest("no device runs graphs of bfloat16 tensors")

    def _compare(self, device: Any, graph: Graph, precision: str, problems: Problems) -> None:
        executable = self.opened().compile(device, graph, Configuration(precision))
        try:
            for seed in (0, 1):
                outputs = executable.run(inputs_of(graph, seed))
                problems.compare(truth_of(graph, seed), outputs, tolerance(graph, precision), "the answer")
        finally:
            executable.close()


def _read_only(array: Array) -> Array:
    view = array.copy()
    view.flags.writeable = False
    return view


def _strided(array: Array) -> Array:
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


_LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "read-only": _read_only,
    "transposed": np.asfortranarray,
    "strided": _strided,
    "reversed": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
}
