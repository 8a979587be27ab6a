"""The sessions of this process as OpenMetrics, for Prometheus and everything that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hal.errors import UserError
from hal.session.metrics import BOUNDS_NS, PER_DOUBLING, Latency, Metrics
from hal.session.watching import SESSIONS, Sessions

_SESSION = ["session", "model"]
#: Every eighth bucket of hal's own: each is twice as long as the one before.
#: Source: ours; 31 time series for each session, of which Prometheus advises tens at most.
_BOUNDS_NS = BOUNDS_NS[::PER_DOUBLING]


class MetricsServer:
    """Answers scrapes until it is closed.

    Args:
        server: Of prometheus_client.
        thread: That it runs in.

    Attributes:
        port: It listens on.
    """

    def __init__(self, server: Any, thread: Any) -> None:
        self._server, self._thread = server, thread
        self.port: int = server.server_port

    def close(self) -> None:
        """Answer no more. A second call does nothing."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            self._thread.join()


def serve_metrics(port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serve the metrics of all sessions of this process, present and later ones, for Prometheus to scrape.

    Anybody who reaches the port can read names of models and devices, and how busy they are.

    Args:
        port: To listen on, at ``/metrics``; 0 for any that is free.
        host: Address to listen at; ``0.0.0.0`` for all of this machine.

    Raises:
        UserError: prometheus_client is not installed, or nobody can listen there.
    """
    try:
        import prometheus_client
        from prometheus_client.registry import CollectorRegistry
    except ImportError as error:
        raise UserError(
            f"serving metrics needs prometheus_client, which cannot be imported ({error}); "
            "pip install 'hal-runtime[metrics]'"
        ) from error
    registry = CollectorRegistry()
    registry.register(Collector(SESSIONS))
    try:
        return MetricsServer(*prometheus_client.start_http_server(port, host, registry))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"metrics cannot be served at {host}:{port}: {error}; expected an address of this machine and a "
            "port from 0 to 65535 that nobody listens on"
        ) from error


class Collector:
    """Makes the metrics of sessions when they are asked for; a collector of prometheus_client.

    Names follow OpenMetrics: base units as suffixes, ``_total`` for what only grows.

    Args:
        sessions: Whose.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def collect(self) -> Iterator[Any]:
        """All families; those without a sample are left out."""
        found = self._sessions.metrics()
        made = [*_requests(found), *_partitions(found), *_devices(found)]
        yield from (family for family in made if family.samples)

    def describe(self) -> list[Any]:
        """Nothing: prometheus_client need not ask the devices to learn names."""
        return []


def _requests(found: list[Metrics]) -> list[Any]:
    from prometheus_client import metrics_core as core

    duration = core.HistogramMetricFamily(
        "hal_request_duration_seconds", "What answered requests took.", labels=_SESSION, unit="seconds"
    )
    errors = core.CounterMetricFamily("hal_request_errors", "Requests that raised.", labels=_SESSION)
    under_way = core.GaugeMetricFamily("hal_requests_in_flight", "Requests under way.", labels=_SESSION)
    oldest = core.GaugeMetricFamily(
        "hal_request_oldest_seconds", "How long the oldest is under way.", labels=_SESSION, unit="seconds"
    )
    events = core.CounterMetricFamily(
        "hal_events", "What happened to requests and devices.", labels=[*_SESSION, "kind"]
    )
    for one in found:
        labels = [str(one.session), one.model]
        duration.add_metric(labels, _buckets(one.latency), one.latency.total_ns / 1e9)
        errors.add_metric(labels, one.n_errors)
        under_way.add_metric(labels, one.n_in_flight)
        oldest.add_metric(labels, one.oldest_ns / 1e9)
        for kind, n in one.events.items():
            events.add_metric([*labels, kind], n)
    return [duration, errors, under_way, oldest, events]


def _partitions(found: list[Metrics]) -> list[Any]:
    from prometheus_client import metrics_core as core

    labels = [*_SESSION, "partition", "target"]
    duration = core.SummaryMetricFamily(
        "hal_partition_duration_seconds",
        "What runs of a partition of the plan in force took.",
        labels=labels,
        unit="seconds",
    )
    slowdown = core.GaugeMetricFamily(
        "hal_partition_slowdown_ratio",
        "Its time over what it should take, where it was found slow; else 1.",
        labels=labels,
        unit="ratio",
    )
    for one in found:
        for part in one.partitions:
            values = [str(one.session), one.model, str(part.number), part.target]
            duration.add_metric(values, part.n_runs, part.total_ns / 1e9)
            slowdown.add_metric(values, part.slowdown)
    return [duration, slowdown]


def _devices(found: list[Metrics]) -> list[Any]:
    """Of each device once, whichever session uses it; the last reading."""
    from prometheus_client import metrics_core as core

    labels = ["device", "name"]
    used = core.GaugeMetricFamily(
        "hal_device_memory_used_bytes", "Memory in use, by anybody.", labels=labels, unit="bytes"
    )
    total = core.GaugeMetricFamily(
        "hal_device_memory_bytes", "Memory that there is.", labels=labels, unit="bytes"
    )
    busy = core.GaugeMetricFamily(
        "hal_device_utilisation_ratio", "Use since the last scrape, of 1.", labels=labels, unit="ratio"
    )
    heat = core.GaugeMetricFamily(
        "hal_device_temperature_celsius", "The hottest sensor.", labels=labels, unit="celsius"
    )
    power = core.GaugeMetricFamily("hal_device_power_watts", "Drawn now.", labels=labels, unit="watts")
    for device in {device.id: device for one in found for device in one.devices}.values():
        for family, value, scale in (
            (used, device.memory_used_bytes, 1),
            (total, device.memory_bytes, 1),
            (busy, device.utilisation_percent, 100),
            (heat, device.temperature_celsius, 1),
            (power, device.power_mw, 1000),
        ):
            if value is not None:
                family.add_metric([device.id, device.name], value / scale)
    return [used, total, busy, heat, power]


def _buckets(latency: Latency) -> list[tuple[str, float]]:
    """Cumulative counts by upper end in seconds."""
    made: list[tuple[str, float]] = []
    n, left = 0, list(latency.buckets)
    for bound_ns in _BOUNDS_NS:
        while left and left[0].at_most_ns <= bound_ns:
            n += left.pop(0).n
        made.append((repr(bound_ns / 1e9), float(n)))
    # The last of hal's buckets also holds what took longer.
    made[-1] = ("+Inf", float(latency.n))
    return made


__all__ = ["Collector", "MetricsServer", "serve_metrics"]
