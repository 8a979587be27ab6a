"""Links between the real backends of the processor."""

from __future__ import annotations

import numpy as np
import pytest

from hal import plugins
from hal.backend import Configuration, Device, Executable
from hal.graph.model import Graph
from hal.profiling import discover
from hal.profiling.chain import CHAIN, ChainBackend, Stage, along, chain_ref
from hal.profiling.links import measure_links
from hal.tensor import as_numpy
from hal.testing import example_inputs, small_graph, true_outputs
from hal.worker import WorkerBackend

NAMES = ("cpu", "onnxruntime", "openvino")


@pytest.fixture(scope="module")
def ends() -> list[Stage]:
    return [
        Stage(name=f"{device.id}/{backend}", ref=plugins.reference(backend), device=device)
        for backend, device in discover(NAMES).devices
        if device.id == "cpu:0" and not device.variant and not device.unavailable
    ]


def test_every_pair_is_measured_when_three_backends_share_a_processor(ends: list[Stage]) -> None:
    assert sorted(end.name for end in ends) == [f"cpu:0/{name}" for name in NAMES]
    links = measure_links(ends, sizes=(4096, 1 << 20), parts=(0, 1))
    assert len(links) == 9
    for link in links:
        assert link.same_silicon
        assert link.reason == ""
        assert link.switching is not None
        assert link.switching.n_nodes == (1, 13)
        assert [point.n_bytes for point in link.points] == [4096, 1 << 20]
        for point in link.points:
            assert point.n >= 3
            assert point.p10_ns <= point.p90_ns
            # Passing 4 KiB is a matter of microseconds; a second means that something else was measured.
            assert 0 <= point.median_ns < 1_000_000_000


def test_answers_are_right_when_tensors_pass_through_all_backends(ends: list[Stage]) -> None:
    graph = small_graph("scalar")
    inputs = example_inputs(graph)
    expected = inputs
    with WorkerBackend(chain_ref(ends)) as chain:
        executable = chain.compile(CHAIN, graph, along("fp32", (0, 1, 2, 1, 0)))
        for _ in range(5):
            expected = true_outputs(graph, expected)
        np.testing.assert_allclose(as_numpy(executable.run(inputs)[0]), expected[0], rtol=1e-5)


@pytest.mark.parametrize(("n_stages", "threads"), [(1, None), (2, 1)])
def test_backends_have_one_thread_each_when_they_share_a_process(
    ends: list[Stage], n_stages: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stage,) = [end for end in ends if end.name.endswith("/onnxruntime")]
    chain = ChainBackend([stage] * n_stages)
    compiled: list[Configuration] = []
    compile_graph = chain.backends[0].compile

    def noted(device: Device, graph: Graph, configuration: Configuration) -> Executable:
        compiled.append(configuration)
        return compile_graph(device, graph, configuration)

    monkeypatch.setattr(chain.backends[0], "compile", noted)
    chain.compile(CHAIN, small_graph("scalar"), along("fp32", tuple(range(n_stages)))).close()
    assert [dict(one.options).get("threads") for one in compiled] == [threads] * n_stages
