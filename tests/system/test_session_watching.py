"""Sessions on real runtimes, watched: every request counted, partitions timed, and shown by hal top."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

import hal
from hal.records.plan import Partition, Plan
from hal.testing import example_inputs
from hal.testing.graphs import work

pytestmark = pytest.mark.slow

TARGETS = ("cpu:0/onnxruntime/fp32", "cpu:0/openvino/fp32")
TOP = "import sys; from hal.cli import main; sys.exit(main(['top', '--once', '--json']))"


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A chain of matrix products, cut in two, a part on each runtime."""
    graph = work(4, 64)
    nodes = tuple(graph.nodes)
    with hal.compile(graph, targets=TARGETS) as whole:
        made = whole.plan
    parts = tuple(
        Partition(target=target, units=(), nodes=part, inputs=(), outputs=())
        for target, part in zip(TARGETS, (nodes[:2], nodes[2:]), strict=True)
    )
    return msgspec.structs.replace(made, partitions=parts)


def test_a_plan_over_two_runtimes_is_watched_by_another_process_while_sixteen_threads_call(
    plan: Plan,
) -> None:
    graph = work(4, 64)
    inputs = example_inputs(graph)
    with hal.compile(graph, plan=plan, watch=True) as session, ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(session, *inputs) for _ in range(400)]
        told = subprocess.run([sys.executable, "-c", TOP], capture_output=True, text=True, check=True).stdout
        assert all(answer.result() is not None for answer in answers)
        (shown,) = (one for process in json.loads(told)["processes"] for one in process["sessions"])
        assert shown["model"] == graph.name
        assert shown["targets"] == list(TARGETS)
        metrics = session.metrics
        assert (metrics.n_requests, metrics.n_errors, metrics.n_in_flight) == (400, 0, 0)
        assert [part.n_runs for part in metrics.partitions] == [400, 400]
        # What partitions took is part of what requests took.
        assert 0 < sum(part.total_ns for part in metrics.partitions) < metrics.latency.total_ns
        assert [device.id for device in metrics.devices] == ["cpu:0"]
        assert metrics.devices[0].memory_used_bytes
