"""The command line. docs/cli.md lists every command, option, exit code and environment variable."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``hal``; the console script's entry point.

    Args:
        argv: The words after ``hal``; None takes them from the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
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
