"""How a command ends: exit codes, one clear error, a traceback only where asked for."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

from hal.cli.output import ReaderGone, say, shortened
from hal.cli.signals import Signalled, ended_by
from hal.errors import HalError, StorageError

P = ParamSpec("P")

#: Meaning of each exit code, as docs/cli.md states them.
EXIT_CODES = {
    0: "the command did what was asked",
    1: "the command ran and its answer is no",
    2: "the request cannot be met as it stands",
    3: "a plugin failed",
    4: "a file could not be read or written",
    70: "hal itself is wrong",
    129: "the terminal was closed",
    130: "interrupted from the keyboard",
    141: "whoever read the output closed it early",
    143: "asked to end",
}


def guarded(command: Callable[P, int], *, traceback: bool) -> Callable[P, int]:
    """Wrap a command so that whatever happens ends in an exit code and at most one message.

    Args:
        command: Returns 0, or 1 where its answer is no.
        traceback: Print where an error came from, above its message.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return _mapped(lambda: command(*args, **kwargs), traceback)
        except (ReaderGone, BrokenPipeError):  # also where the message itself found no reader
            _forget_stdout()
            return 141
        except StorageError as error:  # the message itself could not be written: stderr is full or gone
            return (ended_by(error) or error).exit_code

    return run


def _mapped(command: Callable[[], int], traceback: bool) -> int:
    try:
        return command()
    except ReaderGone:
        raise
    except (Exception, KeyboardInterrupt, Signalled) as error:  # noqa: BLE001 - the last line before the user
        _trace(traceback)
        ending = ended_by(error)
        if ending is not None:
            say(str(ending))
            return ending.exit_code
        return _told(error, traceback)


def _told(error: BaseException, traceback: bool) -> int:
    """Print an error's message; returns its exit code."""
    if isinstance(error, HalError):
        say(f"error: {shortened(error.message)}")
        return error.exit_code
    if isinstance(error, MemoryError):
        say(
            f"error: out of memory: {shortened(str(error)) or 'an allocation failed'}; "
            "give smaller shapes with --shape, or close other programs"
        )
        return 2
    hint = "" if traceback else " with what the same command prints under --traceback"
    what = f"{type(error).__name__}: {shortened(str(error))}"
    say(f"error: hal failed unexpectedly: {what}; please report this{hint}")
    return 70


def _trace(wanted: bool) -> None:
    if wanted:
        import traceback

        say(traceback.format_exc().rstrip())


def _forget_stdout() -> None:
    # Python flushes stdout once more at exit and would complain about the closed pipe there.
    # Source: Python documentation, signal module, "Note on SIGPIPE".
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
