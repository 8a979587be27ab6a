"""Sessions and workers in a process that was forked from theirs: an error at once, and no waiting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

SESSION = """
import os, sys, threading
from hal.errors import UsedAfterFork
from hal.session.session import Session
from hal.testing import example_inputs
from tests.unit.isolated import Box
from tests.unit.surviving import GRAPH, Rig, check

runner = {make}
inputs = example_inputs(GRAPH)
session = Session(runner, GRAPH, runner._remaining._profile)
session(*inputs)
session.submit(*inputs).result()
# Whatever a thread that is not forked holds.
runner._lock.acquire(); session._lock.acquire()
child = os.fork()
if child == 0:
    calls = [
        lambda: session(*inputs),
        lambda: session.run(None, dict(zip([spec.name for spec in session.signature.inputs], inputs))),
        lambda: session.submit(*inputs).result(),
        lambda: next(session.stream([tuple(inputs)])),
        lambda: runner.run(inputs),
    ]
    for call in calls:
        try:
            call()
        except UsedAfterFork as error:
            print(str(error).replace(str(os.getpid()), "PID"))
    session.close()
    print(len(session.plan.targets), flush=True)
    sys.exit(0)
runner._lock.release(); session._lock.release()
print(os.waitpid(child, 0)[1])
session(*inputs)
session.close()
"""

WORKER = """
import os, sys
from hal.backend import BackendRef, Configuration
from hal.errors import UsedAfterFork
from hal.testing import example_inputs, small_graph
from hal.worker import WorkerBackend

backend = WorkerBackend(BackendRef("hal.testing.fake:FakeBackend"))
graph = small_graph("add")
executable = backend.compile(backend.discover()[0], graph, Configuration())
child = os.fork()
if child == 0:
    for call in (backend.discover, lambda: executable.run(example_inputs(graph))):
        try:
            call()
        except UsedAfterFork as error:
            print(error)
    backend.close()
    sys.stdout.flush()
    sys.exit(0)
print(os.waitpid(child, 0)[1])
print(len(executable.run(example_inputs(graph))))
backend.close()
"""


def told(script: str) -> list[str]:
    """What a script prints; it ends within a minute and without a word of complaint."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("make", "n_targets"),
    [
        ('Rig().runner("cpu:0")', "1"),
        ('Rig().runner("cuda:0", "cuda:1", "cuda:1")', "2"),
        ('Rig().runner("cpu:0", deadline_s=300.0)', "1"),
        ('Box().runner("cuda:0")', "1"),
    ],
)
def test_calls_are_refused_when_a_session_is_used_in_a_forked_process(make: str, n_targets: str) -> None:
    refusal = (
        "this session was made before process PID was forked from its parent, where the threads are that run "
        "it; compile or load it in the process that uses it (with gunicorn, not under --preload)"
    )
    # The parent goes on as before.
    assert told(SESSION.format(make=make)) == [*[refusal] * 5, n_targets, "0"]


def test_calls_are_refused_when_a_worker_is_used_in_a_forked_process() -> None:
    why = "it was started before this process was forked from another; start it in the process that uses it"
    what = "backend 'hal.testing.fake:FakeBackend' cannot"
    assert told(WORKER) == [f"{what} discover devices: {why}", f"{what} run: {why}", "0", "1"]
