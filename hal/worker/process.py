"""A child process that answers messages: start, deadlines, death and last words."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from hal.errors import BackendError, InternalError, UsedAfterFork, WorkerCrashed, WorkerTimeout
from hal.units import format_ns
from hal.worker import messages
from hal.worker.arena import make_folders, remove
from hal.worker.channel import Channel

_log = logging.getLogger("hal.worker")

#: How much of the child's stderr is looked at for its last words.
_TAIL_BYTES = 8192
_GRACE_S = 2.0
_STEP_S = 0.001
#: Calls that a child carries out at once; more of them wait for a line. A line costs a thread in the child
#: and the memory of its tensors.
#: Source: ours; two for each core keep it busy while others are copied, and a device beside the processor
#: gains nothing from more than a few.
MOST_CHANNELS = max(4, 2 * (os.cpu_count() or 1))
#: The child finds modules where this process does, and nowhere else: with ``-m`` a stray ``torch.py``
#: in the working folder would be imported.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hal.worker.child import main; main()"


class Process:
    """One child. Any number of threads may call it, each through a :class:`Channel` of its own.

    It ends with :meth:`close`, when nobody has this object any more, with this process however that ends, and
    where a call passes its deadline.

    Args:
        what: Names it in errors.

    Attributes:
        what: Names it in errors.
        folders: Where its tensors' files lie until the other side has mapped them.

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
        self._dead = self._stopped = self._how = ""
        self._is_closed = False
        self._ending = threading.Lock()
        self._idle: deque[Channel] = deque()
        self._freed = threading.Condition()
        self._n_channels, self._n_waiting, self._most = 1, 0, MOST_CHANNELS
        with contextlib.ExitStack() as undo:
            try:
                self.folders = make_folders()
                undo.callback(remove, self.folders)
                self._stderr = undo.enter_context(tempfile.TemporaryFile())
                ours, theirs = socket.socketpair()
                undo.callback(ours.close)
                self._door, their_door = socket.socketpair()
                undo.callback(self._door.close)
                # The write end stays with us; the child reads it only to learn that we are gone.
                lifeline_theirs, self._lifeline = os.pipe()
                undo.callback(os.close, self._lifeline)
                try:
                    self._child = self._spawn(theirs.fileno(), their_door.fileno(), lifeline_theirs)
                finally:
                    theirs.close()
                    their_door.close()
                    os.close(lifeline_theirs)
            except OSError as error:
                raise BackendError(
                    f"no process could be started for {what}: {error}; "
                    "free memory, process slots or disk space in the temporary folder"
                ) from error
            undo.pop_all()
        self._idle.append(Channel.looking(ours, self.folders, "in"))
        # Also at exit, and when nobody has this object any more.
        self._sweep = weakref.finalize(
            self, _sweep, os.getpid(), self._child, self._door, self._lifeline, self._stderr, self.folders
        )
        _LIVE.add(self)
        _log.debug("worker %d started for %s", self._child.pid, what)

    def _spawn(self, socket_fd: int, door_fd: int, lifeline_fd: int) -> subprocess.Popen[bytes]:
        fds = (socket_fd, door_fd, lifeline_fd)
        traced = os.environ.get("HAL_TRACE", "0") not in ("", "0")
        return subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                _BOOT,
                json.dumps(sys.path),
                *map(str, fds),
                *map(str, self.folders),
            ],
            pass_fds=fds,
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

    @property
    def ended(self) -> str:
        """Why calls cannot succeed, in a clause with the child as ``it``; empty where they can."""
        return self._dead

    @property
    def was_stopped(self) -> bool:
        """Whether it ended by :meth:`stop`, or by a deadline."""
        return bool(self._stopped)

    # --- channels ----------------------------------------------------------------------------------------

    def take(self, step: str) -> Channel:
        """A channel for one call, to be given back by :meth:`give`; waits where as many as may be are in use.

        Args:
            step: What is being done, for the error's text.

        Raises:
            WorkerCrashed: The child is gone.
            UsedAfterFork: It is another process's.
        """
        if self._dead:
            raise self.gone(step)
        try:
            return self._idle.pop()
        except IndexError:
            pass
        with self._freed:
            self._n_waiting += 1
            try:
                while not self._dead:
                    with contextlib.suppress(IndexError):
                        return self._idle.pop()
                    if (made := self._another()) is not None:
                        return made
                    self._freed.wait()
            finally:
                self._n_waiting -= 1
        raise self.gone(step)

    def give(self, channel: Channel) -> None:
        """Give a channel back."""
        self._idle.append(channel)
        # Whoever waits counted itself before it looked a last time: it is not missed.
        if self._n_waiting or self._is_closed:
            with self._freed:
                self._freed.notify()

    def _another(self) -> Channel | None:
        """One more channel; None where there are enough, or the system has no more. The lock is held."""
        if self._n_channels >= self._most:
            return None
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self._door, [b"+"], [theirs.fileno()])
        except OSError as error:
            _log.debug("worker %d gets no more channels: %s", self.pid, error)
            self._most = self._n_channels
            return None
        self._n_channels += 1
        return Channel.looking(ours, self.folders, "in")

    # --- calls -------------------------------------------------------------------------------------------

    def call(self, channel: Channel, request: Any, kind: Any, *, deadline_ns: int, step: str) -> Any:
        """Send a request and wait for its result.

        Args:
            channel: Taken for this call.
            request: A message.
            kind: Type of the result.
            deadline_ns: How long it may take.
            step: What is being done, for the error's text.

        Raises:
            WorkerCrashed: The child ended; says how, during what, and its last words.
            WorkerTimeout: The deadline of this call, or of another one, passed; the child was killed.
            InternalError: The request is not plain data.
            HalError: What the child raised.
        """
        try:
            packed = messages.encode(request)
        except (TypeError, ValueError, OverflowError) as error:
            raise InternalError(f"a request to {step} cannot be sent: {error}; please report it") from error
        return messages.unpack(self.ask(channel, packed, deadline_ns=deadline_ns, step=step), kind)

    def ask(self, channel: Channel, packed: bytes, *, deadline_ns: int, step: str) -> bytes:
        """:meth:`call` with a message that is packed already; the packed answer."""
        if self._dead:
            raise self.gone(step)
        started_ns = time.monotonic_ns()
        try:
            channel.send(packed)
            data = channel.receive()
            while data is None:
                data = self._looked(channel, started_ns + deadline_ns)
        except _Late:
            self.stop(f"it hung earlier and was stopped after {format_ns(deadline_ns)}")
            raise WorkerTimeout(
                f"{self.what} did not {step} within {format_ns(deadline_ns)} and was stopped; "
                f"its last words: {self.last_words()}"
            ) from None
        except (EOFError, OSError) as error:
            raise self._lost(step) from error
        except BaseException:  # Ctrl-C between request and answer: the next answer would be the wrong one
            self._dead = self._dead or "it was interrupted"
            self._end(grace_s=0)
            raise
        if _log.isEnabledFor(logging.DEBUG):
            spent = format_ns(time.monotonic_ns() - started_ns)
            _log.debug("worker %d %s: %s in %s", self.pid, self.what, step, spent)
        return data

    def stop(self, why: str) -> None:
        """Kill the child. What is under way raises WorkerTimeout at once; later calls raise WorkerCrashed.

        Args:
            why: For the errors' texts, with the child as ``it``.
        """
        self._dead = self._dead or why
        self._stopped = self._stopped or why
        self._end(grace_s=0)

    def last_words(self) -> str:
        """The last lines of the child's stderr, on one line."""
        with self._ending:
            if self._is_closed:
                return "none"
            # Not by seeking: the child writes where this file's position is.
            fd = self._stderr.fileno()
            text = os.pread(fd, _TAIL_BYTES, max(os.fstat(fd).st_size - _TAIL_BYTES, 0))
        lines = text.decode(errors="replace").strip().splitlines()
        kept = [line.strip() for line in lines if line.strip()][-3:]
        return " | ".join(kept) or "none"

    def close(self) -> None:
        """End the child, politely first; a second call does nothing. Calls under way raise WorkerCrashed."""
        with self._freed:
            if self._is_closed:
                return
            self._dead = self._dead or "it is closed"
            with contextlib.suppress(OSError):  # another process's, or gone
                self._door.shutdown(socket.SHUT_RDWR)
            self._end()
            with self._ending:
                self._is_closed = True
            # Those that wait find the child gone; those that are in a channel bring it back.
            self._freed.notify_all()
            # A caller that was interrupted may never bring its own back: that closes when it is forgotten.
            until_s = time.monotonic() + _GRACE_S
            while self._n_channels and (self._idle or self._freed.wait(until_s - time.monotonic())):
                while self._idle:
                    self._idle.pop().close()
                    self._n_channels -= 1
        self._sweep()

    def forked(self) -> None:
        """In a forked child: it belongs to the parent."""
        if self._is_closed:
            return
        self._dead = _FORKED
        self._sweep.detach()
        self._ending, self._freed = threading.Lock(), threading.Condition()
        self._is_closed = True
        for channel in self._idle:
            channel.close()
        self._door.close()
        os.close(self._lifeline)

    # --- its end -----------------------------------------------------------------------------------------

    def gone(self, step: str) -> WorkerCrashed | UsedAfterFork:
        """The error for a call that cannot be made, because the child is gone."""
        if self._dead is _FORKED:
            return UsedAfterFork(f"{self.what} cannot {step}: {_FORKED}")
        return WorkerCrashed(f"{self.what} cannot {step}: {self._dead}")

    def _lost(self, step: str) -> WorkerCrashed | WorkerTimeout:
        """The error for a call whose child ended."""
        ended = self._end()
        if self._stopped:
            return WorkerTimeout(f"{self.what} was stopped while asked to {step}: {self._stopped}")
        if self._is_closed or self._dead == "it is closed":
            return WorkerCrashed(f"{self.what} was closed while asked to {step}")
        self._dead = self._dead or f"its process {ended} earlier"
        return WorkerCrashed(
            f"{self.what}: its process {ended} while asked to {step}; its last words: {self.last_words()}"
        )

    def _looked(self, channel: Channel, until_ns: int) -> bytes | None:
        """What came while nothing was heard for a while; None where it is to be waited for longer.

        Raises:
            EOFError: The child died. A process it forked may still hold the socket, so its end of file
                alone would not tell.
            _Late: The deadline passed.
        """
        if self._exited():
            data = channel.receive()  # it may have answered and died at once
            if data is None:
                raise EOFError
            return data
        if time.monotonic_ns() > until_ns:
            raise _Late
        return channel.receive()

    def _exited(self) -> bool:
        with self._ending:
            return _exited(self._child)

    def _end(self, grace_s: float = _GRACE_S) -> str:
        """See the child and all it started to their end; says how the child ended."""
        with self._ending:
            if not self._how:
                lived = _end(self._child, grace_s)
                self._how = "closed its connection" if lived else ending(self._child.returncode)
            return self._how


class _Late(Exception):
    """A deadline passed."""


def _exited(child: subprocess.Popen[bytes]) -> bool:
    # Without reaping: the process group's number stays taken until it has been signalled.
    if child.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:  # somebody else waited for it
        return True


def _end(child: subprocess.Popen[bytes], grace_s: float) -> bool:
    """Kill a process and what it started, after a grace; whether it lived until then."""
    if child.returncode is not None:
        return False
    until_s = time.monotonic() + grace_s
    while not (exited := _exited(child)) and time.monotonic() < until_s:
        time.sleep(_STEP_S)
    # Its own session: compilers that it started go with it.
    with contextlib.suppress(ProcessLookupError, PermissionError):  # already gone
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return not exited


def _sweep(
    owner: int,
    child: subprocess.Popen[bytes],
    door: socket.socket,
    lifeline: int,
    stderr: IO[bytes],
    folders: Sequence[Path],
) -> None:
    """Leave nothing of a child behind."""
    if os.getpid() != owner:  # a fork that nobody told us of
        return
    _end(child, 0)
    door.close()
    os.close(lifeline)
    stderr.close()
    remove(folders)


def ending(status: int) -> str:
    """How a process ended, from the status that ``subprocess`` gives."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-status}"


_FORKED = "it was started before this process was forked from another; start it in the process that uses it"
_LIVE: weakref.WeakSet[Process] = weakref.WeakSet()


def _forked() -> None:
    for process in list(_LIVE):
        process.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
