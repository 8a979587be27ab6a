"""session.metrics: one record of all, whatever the session does."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

import hal
from hal.errors import BackendError, InputError
from hal.session.metrics import Metrics
from hal.testing import example_inputs, small_graph
from tests.throwaway import Plugins
from tests.unit.sessions import TARGET, session
from tests.unit.test_choosing import FP32, graph, one_plugin

X, Y = example_inputs(small_graph("add"))


def test_metrics_tell_of_requests_partitions_devices_and_events() -> None:
    add, runner = session()
    for _ in range(3):
        add(X, Y)
    runner.slow(TARGET, "it is slow", None)

    def fail(_: object) -> None:
        raise BackendError("no")

    runner.on_run = fail
    with pytest.raises(BackendError):
        add(X, Y)
    metrics = add.metrics
    assert isinstance(metrics, hal.Metrics)
    assert (metrics.model, metrics.targets) == ("add", (TARGET,))
    assert (metrics.n_requests, metrics.n_errors, metrics.latency.n) == (4, 1, 3)
    assert (metrics.n_in_flight, metrics.oldest_ns) == (0, 0)
    assert 0 < metrics.latency.p50_ns <= metrics.latency.p95_ns <= metrics.latency.p99_ns
    (part,) = metrics.partitions
    assert (part.target, part.n_runs, part.total_ns) == (TARGET, 3, metrics.latency.total_ns)
    assert part.mean_ns == part.total_ns / 3
    (device,) = metrics.devices
    assert (device.id, device.power_mw, device.utilisation_percent) == ("cpu:0", 1000, 50)
    assert metrics.events == {"slow": 1}
    assert metrics.since < metrics.at
    assert metrics.process_bytes > 0
    assert msgspec.json.decode(msgspec.json.encode(metrics), type=Metrics) == metrics


def test_requests_count_however_they_are_made() -> None:
    add, _ = session()
    add(X, Y)
    add(x=X, y=Y)
    add.run(None, {"x": X, "y": Y})
    add.submit(X, Y).result()
    list(add.stream([(X, Y)] * 4))
    assert add.metrics.n_requests == 8
    with pytest.raises(InputError):
        add(X)
    assert add.metrics.n_requests == 8  # nothing ran
    add.close()


def test_requests_of_other_shapes_count_and_are_no_sample_of_the_plan() -> None:
    def again(calling: object, arrays: object) -> hal.Session:
        return session(small_graph("add"))[0]

    add, _ = session(again=again)
    for _ in range(2):
        with pytest.raises(InputError):  # of the variant, which is of the same shapes here
            add(np.zeros((1, 3), np.float32), Y)
    add(X, Y)
    assert (add.metrics.n_requests, add.metrics.n_errors) == (3, 2)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_compiled_session_tells_metrics(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch, *, adaptive: bool
) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "hal_one_module", raising=False)
    one_plugin(plugins, default_ns=1_000_000)
    with hal.compile(graph(), adaptive=adaptive) as compiled:
        compiled(*example_inputs(graph()))
        metrics = compiled.metrics
        assert metrics.targets == (FP32,)
        assert metrics.n_requests == 1
        assert [device.power_mw for device in metrics.devices] == [1000]
    assert compiled.metrics.n_requests == 1  # also once it is closed
