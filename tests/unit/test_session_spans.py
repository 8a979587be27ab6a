"""Requests as OpenTelemetry spans, taken from its own SDK."""

from __future__ import annotations

import itertools
import sys
import threading
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from hal.errors import BackendError, UserError
from hal.session.session import Session
from hal.testing import example_inputs, small_graph
from tests.unit.sessions import TARGET, session
from tests.unit.surviving import CUDA0, CUDA1, GRAPH, Rig

INPUTS = example_inputs(small_graph("add"))


def provider(**options: Any) -> tuple[TracerProvider, InMemorySpanExporter]:
    made, kept = TracerProvider(shutdown_on_exit=False, **options), InMemorySpanExporter()
    made.add_span_processor(SimpleSpanProcessor(kept))
    return made, kept


def children(spans: tuple[ReadableSpan, ...], of: ReadableSpan) -> list[ReadableSpan]:
    assert of.context is not None
    found = [span for span in spans if span.parent is not None and span.parent.span_id == of.context.span_id]
    return sorted(found, key=lambda span: span.attributes["hal.partition"])  # type: ignore[index,arg-type]


def test_a_request_is_a_span_and_its_partition_one_below_it() -> None:
    add, _ = session()
    made, kept = provider()
    add(*INPUTS)
    add.trace(made)
    with made.get_tracer("test").start_as_current_span("handler") as handler:
        add(*INPUTS)
    spans = kept.get_finished_spans()
    (request,) = (span for span in spans if span.name == "hal.request")
    assert request.parent is not None
    assert request.parent.span_id == handler.get_span_context().span_id
    assert request.attributes == {"hal.model": "add", "hal.session": add.watcher.number}
    (part,) = children(spans, request)
    assert part.name == "hal.partition"
    assert part.attributes == {"hal.partition": 0, "hal.target": TARGET, "hal.n_nodes": 4}
    times = [request.start_time, part.start_time, part.end_time, request.end_time]
    told_ns = [time for time in times if time is not None]
    assert len(told_ns) == 4
    # Two clocks: a millisecond is more than they differ by in a microsecond's run.
    assert all(later - sooner > -1_000_000 for sooner, later in itertools.pairwise(told_ns))
    assert add.metrics.n_requests == 2


@pytest.mark.parametrize("silicon", ["", "chip"])
def test_every_partition_has_a_span_below_its_request_when_sixteen_threads_call(silicon: str) -> None:
    rig = Rig(silicon=silicon)
    several = Session(rig.runner("cuda:0", "cuda:1", "cuda:1"), GRAPH, rig.profile)
    made, kept = provider()
    several.trace(made)
    threads = [threading.Thread(target=several, args=example_inputs(GRAPH, seed)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = kept.get_finished_spans()
    requests = [span for span in spans if span.name == "hal.request"]
    assert len(requests) == 16
    for request in requests:
        parts = children(spans, request)
        assert [part.attributes["hal.target"] for part in parts] == [CUDA0, CUDA1]  # type: ignore[index]
        assert all(part.start_time <= part.end_time for part in parts)  # type: ignore[operator]
        assert parts[0].end_time <= parts[1].start_time  # type: ignore[operator]
    several.close()


def test_partitions_are_told_when_requests_run_under_a_deadline() -> None:
    rig = Rig()
    several = Session(rig.runner("cuda:0", "cuda:1", "cuda:1", deadline_s=60.0), GRAPH, rig.profile)
    made, kept = provider()
    several.trace(made)
    several(*example_inputs(GRAPH))
    spans = kept.get_finished_spans()
    assert len(children(spans, spans[-1])) == 2
    several.close()


def test_the_error_is_on_the_span_when_a_request_fails() -> None:
    add, runner = session()
    made, kept = provider()
    add.trace(made)

    def fail(_: Any) -> None:
        raise BackendError("the device is gone")

    runner.on_run = fail
    with pytest.raises(BackendError):
        add(*INPUTS)
    (request,) = kept.get_finished_spans()
    assert request.status.status_code is StatusCode.ERROR
    assert request.events[0].attributes["exception.message"] == "the device is gone"  # type: ignore[index]


def test_one_span_is_made_of_each_request_when_it_is_asked_for_twice() -> None:
    add, _ = session()
    for _ in range(2):
        made, kept = provider()
        add.trace(made)
    add(*INPUTS)
    assert [span.name for span in kept.get_finished_spans()] == ["hal.partition", "hal.request"]


def test_nothing_is_made_of_partitions_when_a_request_is_not_sampled() -> None:
    rig = Rig()
    several = Session(rig.runner("cuda:0", "cuda:1", "cuda:1"), GRAPH, rig.profile)
    made, kept = provider(sampler=ALWAYS_OFF)
    several.trace(made)
    several(*example_inputs(GRAPH))
    assert not kept.get_finished_spans()
    assert several.runner.in_force[1].on_run is None
    several.close()


def test_spans_are_refused_when_the_library_is_not_there_or_the_session_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add, _ = session()
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "opentelemetry", None)
        with pytest.raises(UserError, match=r"pip install 'hal-runtime\[opentelemetry\]'"):
            add.trace()
    add.close()
    with pytest.raises(BackendError, match="this session is closed"):
        add.trace()
