"""Asks the programs of this user what their watched sessions do; :mod:`hal.session.sockets` answers.

Apart from that module, so that ``hal top`` loads nothing of what runs models.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hal.records.places import data_folder
from hal.session.metrics import Metrics

_log = logging.getLogger("hal.session")

#: How long either side waits for the other, in seconds. Source: ours; it is one machine.
PATIENCE_S = 2.0
#: Bytes that are read of one process at most. Source: ours; a session takes about 4 KB.
_MOST_BYTES = 16 << 20
#: Longest path of a Unix socket. Source: Linux, unix(7): sun_path has 108 bytes, the last of them 0.
_MOST_PATH = 107


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What one process tells.

    Attributes:
        pid: Of the process.
        sessions: That allow it.
    """

    pid: int
    sessions: tuple[Metrics, ...]


def sockets_folder() -> Path:
    """Where processes listen."""
    return data_folder() / "watched"


def ask_all() -> list[Told]:
    """What every process of this user tells whose sessions allow it, by number of the process.

    Sockets of processes of this machine that are gone are removed.
    """
    folder = sockets_folder()
    found = []
    try:
        paths = sorted(folder.glob(f"{here()}.*.sock"))
    except OSError:
        return []
    for path in paths:
        told = _ask(path)
        if told is not None:
            found.append(told)
    return sorted(found, key=lambda one: one.pid)


def _ask(path: Path) -> Told | None:
    """What one process tells; None where it is gone, does not answer, or answers wrongly."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(PATIENCE_S)
        try:
            with short(path) as name:
                other.connect(name)
            if uid_of(other) != os.getuid():
                _log.warning("%s belongs to another user and is left alone", path)
                return None
            parts, n_bytes = [], 0
            while (part := other.recv(1 << 16)) and n_bytes <= _MOST_BYTES:
                parts.append(part)
                n_bytes += len(part)
            return msgspec.json.decode(b"".join(parts), type=Told)
        except ConnectionRefusedError:  # nobody listens any more: it was killed
            with contextlib.suppress(OSError):
                path.unlink()
        except (OSError, msgspec.MsgspecError) as error:
            _log.info("%s does not tell: %s", path, error)
    return None


def here() -> str:
    """This machine, so that a home that several share has no confusion of processes; short for the path."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """A name for a socket that is short enough, however deep its folder lies."""
    if len(os.fsencode(path)) <= _MOST_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Source: Linux, proc(5): /proc/self/fd/N stands for what N was opened from.
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def uid_of(other: socket.socket) -> int:
    """The user at the other end. Source: Linux, unix(7), SO_PEERCRED: pid, uid and gid."""
    if not hasattr(socket, "SO_PEERCRED"):  # the folder keeps others out
        return os.getuid()
    credentials = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)


__all__ = ["PATIENCE_S", "Told", "ask_all", "here", "short", "sockets_folder", "uid_of"]
