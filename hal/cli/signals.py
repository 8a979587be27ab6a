"""Signals that end hal: each becomes an exception, so that children and temporary files are cleaned up."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

#: What a person, a terminal that closes and a service manager send.
_WATCHED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
#: A terminal that closes and a service manager may each signal twice; the second must not cut short the
#: clean-up after the first.
_REPEATS_S = 1.0

_received: tuple[int, float] | None = None


class Signalled(BaseException):
    """A signal asks hal to end. No KeyboardInterrupt: typer would turn that into an exit without a word.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells report for a process that the signal ended."""
        return 128 + self.number

    def __str__(self) -> str:
        if self.number == signal.SIGINT:
            return "interrupted"
        return f"ended by {signal.Signals(self.number).name}"


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """While the block runs, SIGINT, SIGTERM and SIGHUP raise Signalled in the main thread.

    A signal that is ignored stays so: ``nohup`` and shells in the background ask for that.
    """
    global _received
    _received = None
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in _WATCHED}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _raise)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = None


def ended_by(error: BaseException) -> Signalled | None:
    """The signal that is behind an error; None where there is none.

    Libraries turn an interruption into errors of their own: numpy interrupted while it is imported
    raises ImportError, without a trace of why.
    """
    if _received is not None:
        return Signalled(_received[0])
    seen: set[int] = set()
    behind: BaseException | None = error
    while behind is not None and id(behind) not in seen:
        if isinstance(behind, KeyboardInterrupt):
            return Signalled(signal.SIGINT)
        seen.add(id(behind))
        behind = behind.__cause__ or behind.__context__
    return None


def _raise(number: int, _: FrameType | None) -> None:
    global _received
    now_s = time.monotonic()
    if number != signal.SIGINT and _received is not None and now_s - _received[1] < _REPEATS_S:
        return
    _received = (number, now_s)
    raise Signalled(number)
