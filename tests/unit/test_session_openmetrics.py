"""Metrics as Prometheus reads them, parsed by its own parser, over HTTP."""

from __future__ import annotations

import sys
import urllib.request
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

import hal
from hal.errors import BackendError, UserError
from hal.session.metrics import BOUNDS_NS
from hal.session.openmetrics import Collector, serve_metrics
from hal.session.sockets import announced
from hal.session.watching import Sessions
from hal.testing import example_inputs, small_graph
from tests.unit.sessions import TARGET, session

INPUTS = example_inputs(small_graph("add"))


def scraped(port: int) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by sample's name and its labels' values, session and model left out."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(request) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        text = response.read().decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for name, value in sample.labels.items() if name not in ("session", "model"))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_prometheus_reads_all_that_a_session_tells() -> None:
    add, runner = session(telemetry={"power_mw": 2500, "temperature_celsius": 61, "utilisation_percent": 80})
    for _ in range(5):
        add(*INPUTS)

    def fail(_: Any) -> None:
        raise BackendError("no")

    runner.on_run = fail
    with pytest.raises(BackendError):
        add(*INPUTS)
    runner.slow(TARGET, "it is slow", None)
    server = hal.serve_metrics(0)
    try:
        before = scraped(server.port)
        assert "hal_request_duration_seconds_count" not in before
        announced(add, watch=False)
        found = scraped(server.port)
        latency = add.metrics.latency
        assert found["hal_request_duration_seconds_count"] == {(): 5}
        assert found["hal_request_duration_seconds_sum"] == {(): latency.total_ns / 1e9}
        buckets = found["hal_request_duration_seconds_bucket"]
        assert len(buckets) == 31
        assert buckets["+Inf",] == 5
        assert list(buckets.values()) == sorted(buckets.values())
        assert buckets[str(BOUNDS_NS[-9] / 1e9),] == 5
        assert found["hal_request_errors_total"] == {(): 1}
        assert found["hal_requests_in_flight"] == {(): 0}
        assert found["hal_events_total"] == {("slow",): 1}
        assert found["hal_partition_duration_seconds_count"] == {("0", TARGET): 5}
        assert found["hal_partition_slowdown_ratio"] == {("0", TARGET): 1}
        device = ("cpu:0", "fake")
        assert found["hal_device_power_watts"] == {device: 2.5}
        assert found["hal_device_temperature_celsius"] == {device: 61}
        assert found["hal_device_utilisation_ratio"] == {device: 0.8}
        add.close()
        assert "hal_request_errors_total" not in scraped(server.port)
    finally:
        server.close()
    server.close()  # harmless


def test_sessions_are_told_apart_when_there_are_several() -> None:
    sessions = Sessions()
    made = [session()[0] for _ in range(3)]
    for number, one in enumerate(made):
        for _ in range(number):
            one(*INPUTS)
        sessions.join(one.watcher)
    registry = CollectorRegistry()
    registry.register(Collector(sessions))
    for number, one in enumerate(made):
        labels = {"session": str(one.watcher.number), "model": "add"}
        assert registry.get_sample_value("hal_request_duration_seconds_count", labels) == number


def test_metrics_are_refused_when_nobody_can_listen_there() -> None:
    server = serve_metrics(0)
    try:
        with pytest.raises(UserError) as caught:
            serve_metrics(server.port)
        assert f"metrics cannot be served at 127.0.0.1:{server.port}: " in caught.value.message
        assert "a port from 0 to 65535 that nobody listens on" in caught.value.message
        with pytest.raises(UserError, match=r"metrics cannot be served at 127\.0\.0\.1:70000: "):
            serve_metrics(70000)
    finally:
        server.close()


def test_metrics_are_refused_with_what_to_install_when_the_library_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UserError, match=r"pip install 'hal-runtime\[metrics\]'"):
        serve_metrics(0)
