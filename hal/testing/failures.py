"""Failures on demand: where a fake backend fails, and how."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Mapping, Sequence

from hal.errors import BackendError

_PLACES = (
    *("import", "discover", "capability", "compile", "compile_ranges", "run", "first_run", "kernels"),
    "close",
)
_EVERYWHERE = ("raise", "bug", "hang", "exit", "abort", "segfault")
_IN_RUNS = ("wrong", "slow")


class Failures:
    """What a fake backend was told to get wrong.

    Each failure is a mapping ``{"at": WHERE, "how": HOW}``.

    * WHERE: ``import`` (making the backend), ``discover``, ``capability``, ``compile``, ``compile_ranges``,
      ``first_run``, ``run`` (every run), ``run:N`` (the Nth run of an executable, from 1), ``kernels`` or
      ``close``.
    * HOW: ``raise`` (BackendError), ``bug`` (ZeroDivisionError, as a plugin with a fault would), ``hang``
      (for ever), ``exit`` (status 7), ``abort`` or ``segfault`` anywhere; ``wrong`` (each number is one
      too high) and ``slow`` (ten times the time) in runs; ``refuse:OP`` at ``capability``, where
      ``compile`` refuses too.

    Raises:
        ValueError: A failure is not one of these.
    """

    def __init__(self, wanted: Sequence[Mapping[str, str]]) -> None:
        self._how: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        for failure in wanted:
            at, how = failure["at"], failure["how"]
            in_run = at in ("run", "first_run") or re.fullmatch(r"run:[1-9][0-9]*", at) is not None
            operator = how.removeprefix("refuse:")
            if at == "capability" and operator != how:
                self.refused[operator] = f"operator {operator} was refused on demand"
            elif (in_run and how in _IN_RUNS) or ((in_run or at in _PLACES) and how in _EVERYWHERE):
                self._how["run:1" if at == "first_run" else at] = how
            else:
                raise ValueError(
                    f"cannot fail {how!r} at {at!r}; expected one of {', '.join(_EVERYWHERE)} at one of "
                    f"{', '.join(_PLACES)} or run:N, {' or '.join(_IN_RUNS)} in runs, refuse:OP at capability"
                )

    def meet(self, at: str) -> str:
        """Fail here if told to.

        Returns:
            ``wrong`` or ``slow``, which the caller acts on, or an empty text.
        """
        how = self._how.get(at, "")
        if how == "raise":
            raise BackendError(f"the fake backend was told to fail at {at!r}; take it out of 'fail'")
        if how == "bug":
            raise ZeroDivisionError(f"the fake backend was told to have a bug at {at!r}")
        if how == "hang":
            threading.Event().wait()
        if how == "exit":
            os._exit(7)
        if how == "abort":
            os.abort()
        if how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        return how

    def meet_run(self, n_run: int) -> str:
        """:meth:`meet` for the ``n_run``-th run of an executable, counted from 1."""
        return self.meet(f"run:{n_run}") or self.meet("run")
