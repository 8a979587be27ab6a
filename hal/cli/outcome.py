"""How a command ends: exit codes, one clear error, a traceback only where asked for."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

from hal.cli.output import ReaderGone, say
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
    130: "interrupted from the keyboard",
    141: "whoever read the output closed it early",
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
        except StorageError as error:  # the message itself could not be written: stderr is full
            return error.exit_code

    return run


def _mapped(command: Callable[[], int], traceback: bool) -> int:
    try:
        return command()
    except ReaderGone:
        raise
    except HalError as error:
        _trace(traceback)
        say(f"error: {error.message}")
        return error.exit_code
    except KeyboardInterrupt:
        _trace(traceback)
        say("interrupted")
        return 130
    except MemoryError as error:
        _trace(traceback)
        say(
            f"error: out of memory: {error or 'an allocation failed'}; "
            "give smaller shapes with --shape, or close other programs"
        )
        return 2
    except Exception as error:  # noqa: BLE001 - the last line before the user; nothing may pass it
        _trace(traceback)
        hint = "" if traceback else " with what the same command prints under --traceback"
        say(f"error: hal failed unexpectedly: {type(error).__name__}: {error}; please report this{hint}")
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
