"""A child process that answers messages: start, deadline, death and last words."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

from hal.errors import BackendError, WorkerCrashed, WorkerTimeout
from hal.units import format_ns
from hal.worker import messages
from hal.worker.arena import make_folder

_log = logging.getLogger("hal.worker")

#: How much of the child's stderr is looked at for its last words.
_TAIL_BYTES = 8192
_GRACE_S = 2.0
#: The child finds modules where this process does, and nowhere else: with ``-m`` a stray ``torch.py``
#: in the working folder would be imported.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hal.worker.child import main; main()"


class Process:
    """One child. Calls are serial; each runs under a deadline, past which the child is killed."""

    def __init__(self, what: str) -> None:
        if not hasattr(socket, "AF_UNIX") or os.name != "posix":
            raise BackendError(
                f"workers need POSIX sockets, which {sys.platform} has not; "
                "run hal on Linux, macOS or WSL, or use the backend in this process"
            )
        self.what = what
        self.folder = make_folder()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the child)
        ours, theirs = socket.socketpair()
        # The write end stays with us; the child reads it only to learn that we are gone.
        lifeline_theirs, self._lifeline = os.pipe()
        try:
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    _BOOT,
                    json.dumps(sys.path),
                    str(theirs.fileno()),
                    str(lifeline_theirs),
                    str(self.folder),
                ],
                pass_fds=(theirs.fileno(), lifeline_theirs),
                stdin=subprocess.DEVNULL,
                # A plugin that prints must not spoil the data on our stdout.
                stdout=self._stderr,
                stderr=None if os.environ.get("HAL_TRACE", "0") not in ("", "0") else self._stderr,
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(lifeline_theirs)
        self._connection = Connection(ours.detach())
        self._dead = ""
        _log.debug("worker %d started for %s", self._child.pid, what)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def call(self, request: Any, kind: Any, *, deadline_ns: int, step: str) -> Any:
        """Send a request and wait for its result.

        Args:
            request: A message.
            kind: Type of the result.
            deadline_ns: How long it may take.
            step: What is being done, for the error's text.

        Raises:
            WorkerCrashed: The child ended; says how, during what, and its last words.
            WorkerTimeout: The deadline passed; the child was killed.
            HalError: What the child raised.
        """
        if self._dead:
            raise WorkerCrashed(f"{self.what} cannot {step}: {self._dead}")
        started_ns = time.perf_counter_ns()
        try:
            self._connection.send_bytes(messages.encode(request))
            if not self._connection.poll(deadline_ns / 1e9):
                self._kill()
                self._dead = f"it hung earlier and was stopped after {format_ns(deadline_ns)}"
                raise WorkerTimeout(
                    f"{self.what} did not {step} within {format_ns(deadline_ns)} and was stopped; "
                    f"its last words: {self.last_words()}"
                )
            data = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            if isinstance(error, WorkerTimeout):
                raise
            ending = self._ending()
            self._dead = f"its process {ending} earlier"
            raise WorkerCrashed(
                f"{self.what}: its process {ending} while asked to {step}; "
                f"its last words: {self.last_words()}"
            ) from error
        except BaseException:  # Ctrl-C between request and answer: the next answer would be the wrong one
            self._kill()
            self._dead = "it was interrupted"
            raise
        _log.debug(
            "worker %d %s: %s in %s",
            self.pid,
            self.what,
            step,
            format_ns(time.perf_counter_ns() - started_ns),
        )
        return messages.unpack(data, kind)

    def last_words(self) -> str:
        """The last lines of the child's stderr, on one line."""
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._stderr.tell() - _TAIL_BYTES, 0))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        kept = [line.strip() for line in lines if line.strip()][-3:]
        return " | ".join(kept) or "none"

    def close(self) -> None:
        """End the child, politely first; a second call does nothing."""
        if self._child.poll() is None:
            self._connection.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # then it is killed below
                self._child.wait(_GRACE_S)
        self._kill()
        self._connection.close()
        self._stderr.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        shutil.rmtree(self.folder, ignore_errors=True)
        self._dead = self._dead or "it is closed"

    def _kill(self) -> None:
        # Its own session: compilers that it started go with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):  # already gone
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _ending(self) -> str:
        try:
            code = self._child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:  # it closed the line but lives on
            self._kill()
            return "closed its connection"
        self._kill()
        if code >= 0:
            return f"exited with status {code}"
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
