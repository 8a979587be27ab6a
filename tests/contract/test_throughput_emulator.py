"""A pipeline over several silicons under load, on an emulated machine: measured as it was predicted."""

from __future__ import annotations

import onnx
import pytest

from examples.decoder import TINY, decoder
from hal.backend import Configuration
from hal.choosing.throughput_load import LoadBackend
from hal.executor.backend import PLAN
from hal.graph.model import Graph
from hal.planning.simulate import simulate
from hal.records.machines import combine
from tests.contract.test_emulator_plans import assigned, emulated, inputs_of, modelled_on, pieces_of
from tests.unit.imagined_machines import machine


def test_the_time_between_answers_is_that_of_the_busiest_silicon_when_a_pipeline_is_under_load() -> None:
    graph = Graph.load(decoder(TINY, dtype=onnx.TensorProto.FLOAT, seed=0))
    found = combine([("a", machine(0)), ("b", machine(0))])
    modelled, _ = modelled_on(graph, found)
    n = modelled.problem.n_units
    plan = assigned(modelled, ["cpu:0"] * (n // 2) + ["cpu:1"] * (n - n // 2))
    predicted = simulate(modelled.problem, plan)
    inputs = inputs_of(graph)
    intervals = {}
    for n_in_flight in (1, 3):
        _, places = emulated(found)
        backend = LoadBackend(places, [pieces_of(modelled, plan)])
        executable = backend.compile(PLAN, graph, Configuration.of("fp32", {"in_flight": n_in_flight}))
        n_rounds = 24 // n_in_flight
        runs = executable.kernel_runs(inputs, n_rounds)
        intervals[n_in_flight] = runs.run_ns[0] / (n_rounds * n_in_flight)
        executable.close()
    # What fills and empties the line is shared by all requests.
    assert intervals[3] == pytest.approx(predicted.throughput, rel=0.1)
    assert intervals[3] < 0.75 * predicted.latency
