"""Sessions over the real runtimes: the same answers as theirs, from one thread and from sixteen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import hal
from hal import demo
from hal.errors import InputError, PlanError

pytestmark = pytest.mark.slow

DIGITS = demo.find("digits")


@pytest.fixture(scope="module")
def session() -> Iterator[hal.Session]:
    with hal.compile("demo:digits") as made:
        yield made


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [batch["image"] for _, batch in zip(range(64), DIGITS.evaluation().batches, strict=False)]


@pytest.fixture(scope="module")
def theirs(images: list[np.ndarray]) -> list[np.ndarray]:
    plain = onnxruntime.InferenceSession(DIGITS.model, providers=["CPUExecutionProvider"])
    return [plain.run(None, {"image": image})[0] for image in images]


def test_the_plan_is_the_one_that_was_measured_and_answers_are_right(
    session: hal.Session, images: list[np.ndarray], theirs: list[np.ndarray]
) -> None:
    assert session.plan.measured is not None
    assert all(target.endswith("/fp32") or "/fp32+" in target for target in session.plan.targets)
    for image, want in zip(images, theirs, strict=True):
        np.testing.assert_allclose(session(image), want, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(session(image=torch.from_numpy(image)).numpy(), want, rtol=1e-4, atol=1e-6)


def test_answers_are_right_when_sixteen_threads_call_at_once(
    session: hal.Session, images: list[np.ndarray], theirs: list[np.ndarray]
) -> None:
    start = threading.Barrier(16)

    def work(thread: int) -> None:
        start.wait(60)
        for at in range(200):
            at = (at + 4 * thread) % len(images)
            np.testing.assert_allclose(session(images[at]), theirs[at], rtol=1e-4, atol=1e-6)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))


def test_a_stream_answers_in_order(
    session: hal.Session, images: list[np.ndarray], theirs: list[np.ndarray]
) -> None:
    for got, want in zip(session.stream(images, n_in_flight=4), theirs, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_a_session_is_the_same_when_its_plan_is_given(session: hal.Session, images: list[np.ndarray]) -> None:
    with hal.compile("demo:digits", plan=session.plan) as again:
        assert again.plan == session.plan
        np.testing.assert_array_equal(again(images[0]), session(images[0]))
    with pytest.raises(PlanError, match="the plan was made for model 'demo:digits'"):
        hal.compile("demo:digits", shapes={"image": (2, 1, 8, 8)}, plan=session.plan)


def test_programs_for_onnx_runtime_get_its_answers(
    images: list[np.ndarray], theirs: list[np.ndarray], tmp_path: Path
) -> None:
    model = DIGITS.model.read_bytes()
    plain = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    ours = hal.InferenceSession(model, onnxruntime.SessionOptions(), providers=["CPUExecutionProvider"])
    for one, other in ((ours.get_inputs(), plain.get_inputs()), (ours.get_outputs(), plain.get_outputs())):
        assert [(arg.name, arg.type) for arg in one] == [(arg.name, arg.type) for arg in other]
        assert [arg.shape for arg in one] == [arg.shape for arg in other]
    assert ours.get_modelmeta().custom_metadata_map == plain.get_modelmeta().custom_metadata_map
    np.testing.assert_allclose(ours.run(None, {"image": images[0]})[0], theirs[0], rtol=1e-4, atol=1e-6)
    assert ours.get_providers() == plain.get_providers()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    with pytest.warns(UserWarning, match=r"session options have no effect: intra_op_num_threads=2; hal"):
        hal.InferenceSession(model, options)
    with pytest.raises(InputError, match="input 'image' is missing"):
        ours.run(None, {"picture": images[0]})
    ours.close()


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"twice": 2 * x.relu(), "sum": x.sum(-1)}


def test_a_module_is_compiled_and_again_for_other_shapes() -> None:
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    with hal.compile(Doubled(), x, targets=["cpu:0/onnxruntime/fp32"], new_shapes="replan") as session:
        for given in (x, x.repeat(3, 1), -x):
            got = session(given)
            for name, want in Doubled()(given).items():
                torch.testing.assert_close(got[name], want)
