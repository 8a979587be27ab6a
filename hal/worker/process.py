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
from multiprocessing import connection
from typing import Any

from hal.errors import BackendError, InternalError, WorkerCrashed, WorkerTimeout
from hal.units import format_ns
from hal.worker import messages
from hal.worker.arena import make_folder

_log = logging.getLogger("hal.worker")

#: How much of the child's stderr is looked at for its last words.
_TAIL_BYTES = 8192
_GRACE_S = 2.0
#: Without a file descriptor for the child's death (Linux has one), how often it is looked for.
_LOOK_S = 0.2
#: The child finds modules where this process does, and nowhere else: with ``-m`` a stray ``torch.py``
#: in the working folder would be imported.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hal.worker.child import main; main()"


class Process:
    """One child. Calls are serial; each runs under a deadline, past which the child is killed.

    Args:
        what: Names it in errors.

    Raises:
        BackendError: This system cannot start it.
    """

    def __init__(self, what: str) -> None:
        if not hasattr(socket, "AF_UNIX") or os.name != "posix":
            raise BackendError(
                f"workers need POSIX sockets, which {sys.platform} has not; "
                "run hal on Linux, macOS or WSL, or use the backend in this process"
            )
        self.what = what
        self._dead = ""
        with contextlib.ExitStack() as undo:
            try:
                self.folder = make_folder()
                undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
                self._stderr = undo.enter_context(tempfile.TemporaryFile())
                ours, theirs = socket.socketpair()
                undo.callback(ours.close)
                undo.callback(theirs.close)
                # The write end stays with us; the child reads it only to learn that we are gone.
                lifeline_theirs, self._lifeline = os.pipe()
                undo.callback(os.close, lifeline_theirs)
                undo.callback(os.close, self._lifeline)
                self._child = self._spawn(theirs.fileno(), lifeline_theirs)
            except OSError as error:
                raise BackendError(
                    f"no process could be started for {what}: {error}; "
                    "free memory, process slots or disk space in the temporary folder"
                ) from error
            undo.pop_all()
        theirs.close()
        os.close(lifeline_theirs)
        self._connection = connection.Connection(ours.detach())
        self._death = os.pidfd_open(self._child.pid) if hasattr(os, "pidfd_open") else None
        _log.debug("worker %d started for %s", self._child.pid, what)

    def _spawn(self, socket_fd: int, lifeline_fd: int) -> subprocess.Popen[bytes]:
        words = [json.dumps(sys.path), str(socket_fd), str(lifeline_fd), str(self.folder)]
        traced = os.environ.get("HAL_TRACE", "0") not in ("", "0")
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, *words],
            pass_fds=(socket_fd, lifeline_fd),
            stdin=subprocess.DEVNULL,
            # A plugin that prints must not spoil the data on our stdout.
            stdout=self._stderr,
            stderr=None if traced else self._stderr,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether calls can succeed."""
        return not self._dead

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
            InternalError: The request is not plain data.
            HalError: What the child raised.
        """
        if self._dead:
            raise WorkerCrashed(f"{self.what} cannot {step}: {self._dead}")
        try:
            packed = messages.encode(request)
        except (TypeError, ValueError, OverflowError) as error:
            raise InternalError(f"a request to {step} cannot be sent: {error}; please report it") from error
        started_ns = time.perf_counter_ns()
        try:
            self._connection.send_bytes(packed)
            if not self._answered(deadline_ns / 1e9):
                self._end()
                self._dead = f"it hung earlier and was stopped after {format_ns(deadline_ns)}"
                raise WorkerTimeout(
                    f"{self.what} did not {step} within {format_ns(deadline_ns)} and was stopped; "
                    f"its last words: {self.last_words()}"
                )
            data = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            if isinstance(error, WorkerTimeout):
                raise
            ending = self._end()
            self._dead = f"its process {ending} earlier"
            raise WorkerCrashed(
                f"{self.what}: its process {ending} while asked to {step}; "
                f"its last words: {self.last_words()}"
            ) from error
        except BaseException:  # Ctrl-C between request and answer: the next answer would be the wrong one
            self._end(grace_s=0)
            self._dead = "it was interrupted"
            raise
        spent = format_ns(time.perf_counter_ns() - started_ns)
        _log.debug("worker %d %s: %s in %s", self.pid, self.what, step, spent)
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
        if self._lifeline < 0:
            return
        self._connection.close()
        self._end()
        self._stderr.close()
        os.close(self._lifeline)
        self._lifeline = -1
        if self._death is not None:
            os.close(self._death)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._dead = self._dead or "it is closed"

    def _answered(self, timeout_s: float) -> bool:
        """Wait for an answer; False where the deadline passed.

        Raises:
            EOFError: The child died. A process it forked may still hold the socket, so its end of file
                alone would not tell.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            left_s = max(until_s - time.monotonic(), 0)
            if self._death is not None:
                ready = connection.wait([self._connection, self._death], left_s)
            else:
                ready = connection.wait([self._connection], min(left_s, _LOOK_S))
            if self._connection in ready:
                return True
            if ready or self._exited():
                if self._connection.poll(0):  # it answered and died at once
                    return True
                raise EOFError
            if left_s <= 0:
                return False

    def _exited(self) -> bool:
        # Without reaping: the process group's number stays taken until it has been signalled.
        if self._child.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, self._child.pid, flags) is not None

    def _end(self, grace_s: float = _GRACE_S) -> str:
        """See the child and all it started to their end; says how the child ended."""
        if self._child.returncode is None:
            if self._death is not None:
                connection.wait([self._death], grace_s)
            else:
                until_s = time.monotonic() + grace_s
                while not self._exited() and time.monotonic() < until_s:
                    time.sleep(0.01)
            lived = not self._exited()
            # Its own session: compilers that it started go with it.
            with contextlib.suppress(ProcessLookupError, PermissionError):  # already gone
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            if lived:
                return "closed its connection"
        return ending(self._child.returncode)


def ending(status: int) -> str:
    """How a process ended, from the status that ``subprocess`` gives."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-status}"
