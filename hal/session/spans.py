"""Requests as OpenTelemetry spans, where somebody asked for them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hal.errors import UserError
from hal.executor.times import Span
from hal.records.plan import Plan
from hal.session.meter import Run
from hal.session.runner import Runner
from hal.session.watching import Watcher
from hal.tensor import Tensor
from hal.version import __version__


class Spans:
    """Makes spans: ``hal.request`` for each request, and below it ``hal.partition`` for each partition.

    A request that was run again on another plan may have no spans of partitions.

    Args:
        runner: Tells the plan, and what its partitions take.
        watcher: Of the session.
        tracer_provider: Of OpenTelemetry; None for the one of this process.

    Raises:
        UserError: OpenTelemetry is not installed.
    """

    def __init__(self, runner: Runner, watcher: Watcher, tracer_provider: Any = None) -> None:
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise UserError(
                f"spans need OpenTelemetry, which cannot be imported ({error}); "
                "pip install 'hal-runtime[opentelemetry]'"
            ) from error
        self._runner, self._inside = runner, trace.set_span_in_context
        self._tracer = trace.get_tracer("hal", __version__, tracer_provider=tracer_provider)
        self._attributes: dict[str, str | int] = {"hal.model": watcher.model, "hal.session": watcher.number}
        # By the identity of a request's inputs, which is known wherever it runs: the plan, the context of its
        # span, and what the epoch is ahead of the clock that partitions are timed by.
        self._open: dict[int, tuple[Plan, Any, int]] = {}

    def around(self, run: Run) -> Run:
        """What does the same as ``run``, within a span."""

        def call(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            with self._tracer.start_as_current_span("hal.request", attributes=self._attributes) as span:
                if not span.is_recording():
                    return run(inputs)
                plan, times = self._runner.in_force
                ahead_ns = time.time_ns() - time.perf_counter_ns()
                is_alone = len(plan.partitions) == 1
                if not is_alone:
                    times.on_run = self._told
                key = id(inputs)
                self._open[key] = (plan, self._inside(span), ahead_ns)
                began_ns = time.perf_counter_ns()
                try:
                    outputs = run(inputs)
                    if is_alone and self._runner.plan is plan:
                        self._told(inputs, [(began_ns, time.perf_counter_ns())])
                    return outputs
                finally:
                    del self._open[key]

        return call

    def _told(self, inputs: Sequence[Tensor], spans: Sequence[Span]) -> None:
        """When the partitions of a request's plan began and ended."""
        found = self._open.get(id(inputs))
        if found is None:  # a request that began before spans were asked for
            return
        plan, context, ahead_ns = found
        for number, (part, (began_ns, ended_ns)) in enumerate(zip(plan.partitions, spans, strict=True)):
            self._tracer.start_span(
                "hal.partition",
                context=context,
                attributes={
                    "hal.partition": number,
                    "hal.target": part.target,
                    "hal.n_nodes": len(part.nodes),
                },
                start_time=began_ns + ahead_ns,
            ).end(end_time=ended_ns + ahead_ns)


__all__ = ["Spans"]
