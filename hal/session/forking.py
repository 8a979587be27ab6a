"""Processes that are forked from one with sessions: they have none of its threads, and never wait for them.

A runtime's threads do not come along, so that a run would wait for ever, and so would the end of what they
serve. In the forked process every session therefore refuses its calls at once, and what it holds is never
released there. Nothing is looked up per call: sessions are changed where the fork happens.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, Protocol

from hal.errors import UsedAfterFork


class Forkable(Protocol):
    """What must not be used in a forked process."""

    def forked(self) -> None:
        """Refuse all calls from now on, without waiting for a lock that a lost thread may hold."""
        ...


_LIVE: weakref.WeakSet[Any] = weakref.WeakSet()


def follow(one: Forkable) -> None:
    """Have its ``forked`` called in each process that is forked from this one, as long as it lives."""
    _LIVE.add(one)


def abandon(*held: object) -> None:
    """Keep something for ever, for its end would wait for threads that are not here."""
    for one in held:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def refusal() -> UsedAfterFork:
    """The error for a call."""
    return UsedAfterFork(
        f"this session was made before process {os.getpid()} was forked from its parent, where the threads "
        "are that run it; compile or load it in the process that uses it (with gunicorn, not under --preload)"
    )


def _in_child() -> None:
    for one in list(_LIVE):
        one.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)

__all__ = ["Forkable", "abandon", "follow", "refusal"]
