"""Progress of long work, on stderr: a live line on a terminal, one line per stage elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from hal.cli.output import console, emit, one_line

if TYPE_CHECKING:
    from rich.progress import Progress

#: Redraws per second. Each costs a little time on a core that may be measuring: the fewer the better.
_REDRAWS_PER_S = 2


class StageLines:
    """Prints the name of each stage once."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._last = ""

    def stage(self, text: str) -> None:
        """Say what is happening now."""
        if text != self._last:
            self._last = text
            emit(f"{one_line(text)}\n", self._file)

    def advance(self, n_done: int, n_total: int) -> None:
        """Nothing: counts would fill a log."""


class LiveLine:
    """One line that is drawn over: a spinner, the stage, a bar and the time it took so far."""

    def __init__(self, drawn: Progress) -> None:
        self._drawn = drawn
        self._task = drawn.add_task("starting", total=None)

    def stage(self, text: str) -> None:
        """Say what is happening now."""
        self._drawn.update(self._task, description=one_line(text, 70))

    def advance(self, n_done: int, n_total: int) -> None:
        """Say how much is done."""
        self._drawn.update(self._task, completed=n_done, total=n_total)


@contextlib.contextmanager
def shown(file: TextIO | None = None) -> Iterator[StageLines | LiveLine]:
    """Show progress while the block runs; the live line is gone after it."""
    stream = file or sys.stderr
    if not stream.isatty():
        yield StageLines(stream)
        return
    from rich import progress

    columns = (
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=20),
        progress.TimeElapsedColumn(),
    )
    drawn = progress.Progress(
        *columns, console=console(stream), transient=True, refresh_per_second=_REDRAWS_PER_S
    )
    with drawn:
        yield LiveLine(drawn)
