"""What happened to a session's requests, as records."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

import msgspec

_log = logging.getLogger("hal.session")

#: What happened. ``lost``: a device is gone; ``failed``: a target, a hook or closing failed; ``timeout``: a
#: request took longer than its deadline; ``replanned``: another plan is in force; ``retried``: a request is
#: run again; ``sizes``: how requests of other sizes within the ranges are carried out; ``slow``: a partition
#: takes longer than it should, for long; ``restarted``: the process of an isolated backend ended, and a
#: partition is compiled in another one.
EventKind = Literal["lost", "replanned", "retried", "timeout", "failed", "sizes", "slow", "restarted"]

#: Events that a session remembers; older ones are forgotten, so that a long life does not fill the memory.
#: Source: ours; they take about 0.5 MB.
_MOST = 1000


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a session.

    Attributes:
        at: Seconds since 1970-01-01 UTC.
        kind: See :data:`EventKind`.
        target: The target it happened to; empty where it is none's.
        text: What happened, in a sentence.
    """

    at: float
    kind: EventKind
    target: str
    text: str


#: Told of each event, with nothing locked, by a thread of a request, of closing or of planning. What it
#: raises becomes an event itself and costs no request.
OnEvent = Callable[[Event], None]


class Events:
    """The last events of a session. Any thread may add some.

    Args:
        on_event: The user's hook.
    """

    def __init__(self, on_event: OnEvent | None = None) -> None:
        self._on_event = on_event
        self._kept: deque[Event] = deque(maxlen=_MOST)
        self._untold: deque[Event] = deque()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """How many there were of each kind, forgotten ones included."""
        with self._lock:
            return dict(self._counts)

    @property
    def kept(self) -> tuple[Event, ...]:
        """The last ones, the oldest first."""
        with self._lock:
            return tuple(self._kept)

    def add(self, kind: EventKind, target: str, text: str) -> None:
        """Remember what happened now; the hook is told at the next :meth:`tell`."""
        level = logging.INFO if kind in ("retried", "sizes") else logging.WARNING
        _log.log(level, "%s %s: %s", kind, target, text)
        with self._lock:
            event = Event(at=time.time(), kind=kind, target=target, text=text)
            self._kept.append(event)
            self._counts[kind] += 1
            if self._on_event is not None:
                self._untold.append(event)

    def tell(self) -> None:
        """Tell the hook of events that it has not been told of, each once, in their order.

        Call this where nothing is locked and no executable is in use: a hook may run or close the session.
        """
        hook = self._on_event
        while hook is not None and self._untold:
            try:
                event = self._untold.popleft()
            except IndexError:  # another thread tells the last one
                return
            try:
                hook(event)
            except Exception as error:  # noqa: BLE001  a fault of the user's hook must not cost a request
                text = f"on_event raised {type(error).__name__}: {error}; it was told of {event.kind!r}"
                _log.warning("%s", text)
                with self._lock:
                    self._counts["failed"] += 1
                    self._kept.append(Event(at=time.time(), kind="failed", target="", text=text))


__all__ = ["Event", "EventKind", "Events", "OnEvent"]
