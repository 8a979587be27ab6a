"""Tensors on the host are read where they lie and handed out as the runtime made them: nothing is copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from hal import plugins
from hal.backend import Configuration, Tensor
from hal.graph.model import Graph
from hal.session.session import Session
from hal.tensor import as_numpy
from hal_onnxruntime.executable import _own
from tests.unit import compared
from tests.unit.sessions import OnFake

#: Far more than runtimes need beside the tensors: a copy could not hide in it.
N_BYTES, SLACK_BYTES = 128 << 20, 32 << 20
BACKENDS = ("onnxruntime", "openvino", "cpu")


def graph(operator: str, sizes: Sequence[int]) -> Graph:
    """One operator on a tensor of 128 MiB."""
    ends = [
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (N_BYTES // 4,))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
    ]
    options = {"keepdims": 1} if operator == "ReduceMax" else {}
    nodes = [helper.make_node(operator, ["x"], ["y"], name="only", **options)]
    proto = helper.make_graph(nodes, operator, *ends)
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


class OnPlugin(OnFake):
    """Carries requests out on a real runtime, and remembers what went in and came out last.

    Attributes:
        given: Inputs of the last run.
        made: Its outputs.
    """

    def __init__(self, model: Graph, backend: str) -> None:
        super().__init__(model)
        opened = plugins.open_backend(plugins.reference(backend))
        device = next(device for device in opened.discover() if not device.unavailable)
        self._executable: Any = opened.compile(device, model, Configuration("fp32"))
        self.given: Sequence[Tensor] = ()
        self.made: Sequence[Tensor] = ()

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        self.given, self.made = inputs, super().run(inputs)
        return self.made


def session(model: Graph, backend: str) -> tuple[Session, OnPlugin]:
    runner = OnPlugin(model, backend)
    return Session(runner, model, compared.profile()), runner


def peak_bytes(work: Callable[[], Any]) -> int:
    """How much more memory the process held at most while it did something. Source: proc(5), clear_refs."""
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"the system does not reset the peak of a process's memory: {error}")
    before = _kib(status, "VmRSS")
    work()
    return (_kib(status, "VmHWM") - before) << 10


def _kib(status: Path, key: str) -> int:
    return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(key)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_no_input_is_copied_when_it_lies_on_the_host(backend: str, kind: str) -> None:
    made, runner = session(graph("ReduceMax", (1,)), backend)
    x = np.linspace(0, 1, N_BYTES // 4, dtype=np.float32)
    given: Any = x if kind == "numpy" else torch.from_numpy(x)
    assert float(made(given)[0]) == 1.0  # whatever is set up at the first run
    assert peak_bytes(lambda: made(given)) < SLACK_BYTES
    assert np.shares_memory(as_numpy(runner.given[0]), x)
    # The measure is one that would see a copy.
    assert peak_bytes(lambda: made(x.copy())) > N_BYTES - SLACK_BYTES
    made.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_no_output_is_copied_when_it_is_wanted_on_the_host(backend: str, kind: str) -> None:
    made, runner = session(graph("Neg", (N_BYTES // 4,)), backend)
    x = np.ones(N_BYTES // 4, np.float32)
    given: Any = x if kind == "numpy" else torch.from_numpy(x)
    made(given)
    runner.made = ()
    answers: list[Any] = []
    assert peak_bytes(lambda: answers.append(made(given))) < N_BYTES + SLACK_BYTES
    assert isinstance(answers[0], torch.Tensor) == (kind == "torch")
    assert np.shares_memory(as_numpy(answers[0]), as_numpy(runner.made[0]))
    assert float(answers[0][-1]) == -1.0
    made.close()


def test_a_tensor_of_a_device_becomes_the_runtimes_own_without_a_copy() -> None:
    class Elsewhere:
        """Says that it lies on a GPU; its address is the host's, which nothing here looks behind."""

        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, **options: Any) -> Any:
            return self.tensor.__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    x = torch.arange(6.0).reshape(2, 3)
    value = _own(Elsewhere(x))
    assert value.data_ptr() == x.data_ptr()
    assert (value.shape(), value.data_type()) == ([2, 3], "tensor(float)")
    for host in (x, x.numpy(), value):
        assert _own(host) is host
