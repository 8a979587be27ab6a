"""Sessions compiled for throughput on the real runtimes: gathered and single answers, streams, bundles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hal
from hal import demo
from hal.records.plan import Plan
from hal.sampling import Policy
from hal.session.session import Session
from hal.tensor import Array

#: Short: what is chosen is not judged here.
POLICY = Policy(burst_ns=5_000_000, min_time_ns=50_000_000, min_bursts=3, min_runs=3)
RUNTIMES = ("onnxruntime", "openvino", "cpu")


@pytest.fixture(scope="module")
def images() -> list[Array]:
    """Handwritten digits, one by one."""
    (found,) = demo.find("digits").inputs().values()
    generator = np.random.default_rng(0)
    return [(found * generator.uniform(0.5, 1)).astype(np.float32) for _ in range(64)]


@pytest.fixture(scope="module", params=RUNTIMES)
def plan(request: pytest.FixtureRequest) -> Plan:
    """The best plan on one runtime alone."""
    return hal.choose(
        "demo:digits", objective="throughput", targets=[f"cpu:0/{request.param}/fp32"], policy=POLICY
    )


@pytest.fixture
def session(plan: Plan) -> Iterator[Session]:
    with hal.compile("demo:digits", plan=plan) as made:
        yield made


@pytest.mark.slow
def test_the_plan_tells_the_load_it_was_measured_at(plan: Plan) -> None:
    load = plan.throughput
    assert load is not None
    assert load.requests_per_s > 0
    assert 0 < load.p50_ns <= load.p95_ns <= load.p99_ns
    # Little's law: as many requests are there as come in during the time that one takes.
    mean_s = load.n_outstanding / load.requests_per_s
    assert load.p50_ns / 1e9 < 5 * mean_s
    # A model that takes microseconds is faster gathered, on every runtime.
    assert load.batch > 1
    assert plan.measured is not None


@pytest.mark.slow
def test_a_stream_answers_as_single_calls_do_when_requests_are_gathered(
    session: Session, images: list[Array]
) -> None:
    singly = [session(image) for image in images]
    for got, want in zip(session.stream(images), singly, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_bundle_gathers_as_the_session_did_when_it_is_loaded(
    session: Session, images: list[Array], tmp_path: Path
) -> None:
    session.save(tmp_path / "digits.hal")
    with hal.load(tmp_path / "digits.hal") as loaded:
        assert loaded.plan.throughput == session.plan.throughput
        assert loaded.n_in_flight == session.n_in_flight
        futures = [loaded.submit(image) for image in images]
        for future, image in zip(futures, images, strict=True):
            np.testing.assert_allclose(future.result(60), session(image), rtol=1e-4, atol=1e-6)
