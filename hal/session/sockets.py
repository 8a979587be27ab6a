"""What sessions tell of themselves to ``hal top``, over a socket in a private folder of the user's.

Each process whose sessions allow it listens on one Unix socket. Whoever connects is sent one JSON document
and nothing is read from him, so that there is nothing to attack; the folder, and the kernel's word for who is
at the other end, keep other users out.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from hal.errors import StorageError
from hal.session import asking
from hal.session.asking import Told, sockets_folder
from hal.session.watching import SESSIONS, Sessions, Watcher

_log = logging.getLogger("hal.session")


class Teller:
    """Tells whoever connects what the sessions of this process that allow it do.

    It listens as long as there is one. A forked child does not listen; its sessions are not told of.
    """

    def __init__(self) -> None:
        self._sessions = Sessions()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._path: Path | None = None

    def join(self, watcher: Watcher) -> None:
        """A session may be told of from now on.

        Raises:
            StorageError: There is no folder that only this user can read, or no socket in it.
        """
        with self._lock:
            if self._listener is None:
                self._listen()
            self._sessions.join(watcher)

    def leave(self, watcher: Watcher) -> None:
        """It may not any more. A second call does nothing."""
        with self._lock:
            self._sessions.leave(watcher)
            if not len(self._sessions):
                self._end()

    def forget(self) -> None:
        """In a forked child: the socket is the parent's."""
        self._lock = threading.Lock()
        listener, self._listener, self._path = self._listener, None, None
        self._sessions.forget()
        if listener is not None:
            listener.close()

    def _listen(self) -> None:
        folder = sockets_folder()
        _private(folder)
        path = folder / f"{asking.here()}.{os.getpid()}.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)  # of a process of the same number that died
            with asking.short(path) as name:
                listener.bind(name)
            listener.listen(8)
        except OSError as error:
            listener.close()
            raise StorageError(
                f"a session cannot be watched: no socket can be made at {str(path)!r}: {error}; set HAL_HOME "
                "to another folder, or compile without watch=True"
            ) from error
        self._listener, self._path = listener, path
        # Sessions that nobody closes: the file should not stay.
        atexit.register(self._end)
        threading.Thread(target=self._serve, args=(listener,), name="hal-watching", daemon=True).start()

    def _end(self) -> None:
        listener, path, self._listener, self._path = self._listener, self._path, None, None
        atexit.unregister(self._end)
        if listener is None or path is None:
            return
        with contextlib.suppress(OSError):  # whoever cleans the folder may have been first
            path.unlink()
        with contextlib.suppress(OSError):  # wakes the thread that accepts
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                other, _ = listener.accept()
            except OSError as error:
                if self._listener is listener:
                    _log.warning("sessions are watched no more: %s", error)
                return
            with other:
                try:
                    other.settimeout(asking.PATIENCE_S)
                    if asking.uid_of(other) in (os.getuid(), 0):
                        other.sendall(msgspec.json.encode(self._told()))
                except Exception as error:  # noqa: BLE001  whoever asked may be gone; others may ask
                    _log.info("a process that watches could not be told: %s", error)

    def _told(self) -> Told:
        return Told(pid=os.getpid(), sessions=tuple(self._sessions.metrics()))


class Watchable(Protocol):
    """A session."""

    watcher: Watcher

    def close(self) -> None:
        """Release everything."""
        ...


W = TypeVar("W", bound=Watchable)


def announced(session: W, *, watch: bool) -> W:
    """A session that metrics are served of from now on, and that ``hal top`` may show where that is allowed.

    Args:
        session: Closed where this fails.
        watch: Whether other processes of this user may watch it.

    Raises:
        StorageError: As :meth:`Teller.join`.
    """
    SESSIONS.join(session.watcher)
    if watch:
        try:
            TELLER.join(session.watcher)
        except BaseException:
            session.close()
            raise
    return session


def withdraw(watcher: Watcher) -> None:
    """A session is closed. A second call does nothing."""
    SESSIONS.leave(watcher)
    TELLER.leave(watcher)


def check(watch: bool) -> None:
    """Ask before long work whether a session may be watched.

    Raises:
        StorageError: There is no folder that only this user can read, and none can be made.
    """
    if watch:
        _private(sockets_folder())


def _private(folder: Path) -> None:
    """Make a folder that only this user can use, or see that it is one.

    Raises:
        StorageError: It is not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.lstat()
    except OSError as error:
        raise StorageError(
            f"a session cannot be watched: the folder {str(folder)!r} cannot be made: "
            f"{error.strerror or error}; set HAL_HOME to a folder that may be written"
        ) from error
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != os.getuid()
        or stat.S_IMODE(status.st_mode) & 0o077
    ):
        raise StorageError(
            f"a session cannot be watched: others may use {str(folder)!r} (mode "
            f"{stat.S_IMODE(status.st_mode):o}, user {status.st_uid}); expected a folder of mode 700 of user "
            f"{os.getuid()}: remove it, and it is made again"
        )


#: Of this process.
TELLER = Teller()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TELLER.forget)
    os.register_at_fork(after_in_child=SESSIONS.forget)

__all__ = ["TELLER", "Teller", "announced", "check", "withdraw"]
