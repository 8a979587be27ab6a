"""The command line. docs/cli.md lists every command, option, exit code and environment variable."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``hal``; the console script's entry point.

    Args:
        argv: The words after ``hal``; None takes them from the process.

    Returns:
        The exit code.
    """
    try:
        from hal.cli import signals

        with signals.watching():
            try:
                return _run(list(sys.argv[1:] if argv is None else argv))
            except (ImportError, signals.Signalled) as error:  # while the command line itself was loading
                ending = signals.ended_by(error)
                if ending is None:
                    raise
                sys.stderr.write(f"{ending}\n")
                return ending.exit_code
    except KeyboardInterrupt:  # before signals were watched, or after
        sys.stderr.write("interrupted\n")
        return 130


def _run(arguments: list[str]) -> int:
    if sys.stderr is None:  # closed, as by ``2>&-``: words go nowhere
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None:  # closed, as by ``>&-``; found before hours of measuring
        sys.stderr.write("error: the output could not be written: stdout is closed; send it somewhere else\n")
        return 4
    if arguments == ["--version"]:
        # Answered before the command line's own libraries load: scripts ask it often.
        from hal import __version__
        from hal.cli.outcome import guarded
        from hal.cli.output import emit

        def version() -> int:
            emit(f"hal {__version__}\n", sys.stdout)
            return 0

        return guarded(version, traceback=False)()
    from hal.cli import app

    return app.execute(arguments)
