"""The conformance suite in a process of its own: a plugin that crashes or hangs fails a check, no more."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

import msgspec

from hal.backend import BackendRef
from hal.testing.conformance import CheckResult, check, checks
from hal.worker.process import ending

#: A check that takes longer hangs. Source: the slowest check of the first-party plugins, an Inductor
#: compilation, took 40 s on two cores.
_DEADLINE_S = 300
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from hal.testing.isolation import serve; serve()"
)


def check_isolated(
    ref: BackendRef, progress: Callable[[str], None] | None = None, *, deadline_s: float = _DEADLINE_S
) -> Sequence[CheckResult]:
    """Run every check in a child process; the child does not use workers, so that it sees everything.

    Args:
        ref: Names the backend.
        progress: Told the name of each check as it starts.
        deadline_s: Longest time between two signs of life.

    Returns:
        One result per check. Where the child ends or hangs, the check under way has failed with the
        reason, and those after it are skipped.
    """
    read_fd, write_fd = os.pipe()
    with tempfile.TemporaryFile() as words:
        child = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                _BOOT,
                json.dumps(sys.path),
                str(write_fd),
                msgspec.json.encode(ref),
            ],
            pass_fds=(write_fd,),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
        )
        os.close(write_fd)
        try:
            results, current, hung = _listen(read_fd, progress, deadline_s)
        finally:
            os.close(read_fd)
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if results is not None:
            return results
        words.seek(0)
        last = words.read()[-4096:].decode(errors="replace").strip().splitlines()
    how = f"gave no sign of life for {deadline_s:g} s" if hung else ending(child.returncode)
    return _cut_short(current, f"the process {how}; its last words: {' | '.join(last[-3:]) or 'none'}")


def serve() -> None:
    """The child's side: runs the suite, tells each check's name and then all results, as lines of JSON."""
    with os.fdopen(int(sys.argv[2]), "w", buffering=1) as line:
        ref = msgspec.json.decode(sys.argv[3], type=BackendRef)
        results = check(ref, lambda name: print(json.dumps(name), file=line))
        print(msgspec.json.encode([_encodable(result) for result in results]).decode(), file=line)
    os._exit(0)  # frameworks may crash or hang while they are torn down


def _encodable(result: CheckResult) -> CheckResult:
    """A plugin's error may hold what no encoding takes: lone surrogates."""
    return msgspec.structs.replace(result, message=result.message.encode(errors="replace").decode())


def _listen(
    fd: int, progress: Callable[[str], None] | None, deadline_s: float
) -> tuple[Sequence[CheckResult] | None, str, bool]:
    """Results (None where the child fell silent), the check under way, and whether it hung."""
    current, received = "", b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            if not selector.select(deadline_s):
                return None, current, True
            data = os.read(fd, 1 << 16)
            if not data:
                return None, current, False
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                if line.startswith(b"["):
                    return msgspec.json.decode(line, type=list[CheckResult]), current, False
                current = json.loads(line)
                if progress is not None:
                    progress(current)


def _cut_short(current: str, message: str) -> Sequence[CheckResult]:
    names = checks()
    at = names.index(current) if current in names else 0
    return [
        CheckResult(name=name, outcome="skipped", message="its result was lost with the process")
        if index < at
        else CheckResult(name=name, outcome="failed", message=message)
        if index == at
        else CheckResult(name=name, outcome="skipped", message=f"the process ended in {names[at]}")
        for index, name in enumerate(names)
    ]
