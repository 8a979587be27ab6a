"""Real runtimes in child processes: the same answers as in this one, and a runtime that dies costs none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import hal
from hal import demo
from hal.session.isolation import IsolatedBackend

pytestmark = pytest.mark.slow

TARGETS = ("cpu:0/onnxruntime/fp32", "cpu:0/openvino/fp32", "cpu:0/cpu/fp32")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    found = zip(range(32), demo.find("digits").evaluation().batches, strict=False)
    return [batch["image"] for _, batch in found]


def kill(session: hal.Session) -> None:
    """End the process of its only backend."""
    (place,) = session.runner.places.values()
    assert isinstance(place.backend, IsolatedBackend)
    os.kill(place.backend.child.worker().pid, signal.SIGKILL)


@pytest.mark.parametrize("target", TARGETS)
def test_answers_are_those_of_this_process_when_a_runtime_is_isolated(
    target: str, images: list[np.ndarray], tmp_path: Path
) -> None:
    bundle = tmp_path / "digits.hal"
    with hal.compile("demo:digits", targets=[target]) as session:
        expected = [session(image) for image in images]
        session.save(bundle)
    with (
        hal.compile("demo:digits", targets=[target], isolate=True) as session,
        ThreadPoolExecutor(16) as pool,
    ):
        for got, want in zip(pool.map(session, images), expected, strict=True):
            np.testing.assert_array_equal(got, want)
        kill(session)
        for got, want in zip(pool.map(session, images), expected, strict=True):
            np.testing.assert_array_equal(got, want)
        assert [event.kind for event in session.events] == ["restarted"]
    with hal.load(bundle, isolate=target.split("/")[1], deadline_s=300.0) as session:
        for image, want in zip(images, expected, strict=True):
            np.testing.assert_array_equal(session(image), want)
        kill(session)
        np.testing.assert_array_equal(session(images[0]), expected[0])


def test_an_isolated_runtime_is_not_imported_here(tmp_path: Path) -> None:
    bundle = str(tmp_path / "digits.hal")
    with hal.compile("demo:digits", targets=[TARGETS[0]]) as session:
        session.save(bundle)
    script = (
        "import sys, hal, numpy as np\n"
        "x = np.zeros((1, 1, 8, 8), np.float32)\n"
        f"with hal.load({bundle!r}, isolate=True) as session: print(session(x).shape)\n"
        f"targets = [{TARGETS[0]!r}]\n"
        "with hal.compile('demo:digits', targets=targets, isolate=True) as session: print(session(x).shape)\n"
        "print('onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["(1, 10)", "(1, 10)", "False"]
