"""``hal top``."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from hal.cli import options
from hal.cli.output import emit, show
from hal.cli.signals import Signalled

if TYPE_CHECKING:
    from hal.session.asking import Told

#: Seconds from one look to the next. Source: ours; top(1) takes 3, and its readers wait for it.
INTERVAL_S = 1.0


def top(
    once: Annotated[bool, typer.Option("--once", help="Print once and stop.")] = False,
    json: options.Json = False,
) -> int:
    """Watch the sessions of your running programs that allow it: those compiled with watch=True.

    Ctrl-C ends it. Where stdout is no terminal, it prints once and stops.
    """
    from hal.session.asking import ask_all

    if once or not (json or sys.stdout.isatty()):
        _print(ask_all(), json=json)
        return 0
    try:
        if json:
            _lines()
        else:
            _live()
    except (KeyboardInterrupt, Signalled) as error:
        # Ctrl-C is how it is left; whatever else asks it to end is told of as usual.
        if isinstance(error, Signalled) and error.number != signal.SIGINT:
            raise
    return 0


def _print(found: list[Told], *, json: bool) -> None:
    from hal.cli import top_text

    if json:
        emit(f"{top_text.as_json(found)}\n", sys.stdout)
    else:
        show(top_text.top_text(found, []), sys.stdout)


def _lines() -> None:
    """One line of JSON each interval."""
    from hal.session.asking import ask_all

    while True:
        _print(ask_all(), json=True)
        _pause()


def _live() -> None:
    """One table that is drawn over."""
    from rich.console import Group
    from rich.live import Live

    from hal.cli import top_text
    from hal.cli.output import console
    from hal.session.asking import ask_all

    before: list[Told] = []
    with Live(console=console(sys.stdout), auto_refresh=False, screen=True) as live:
        while True:
            found = ask_all()
            live.update(Group(*top_text.top_text(found, before)), refresh=True)
            before = found
            _pause()


def _pause() -> None:
    # A signal ends the waiting: it raises in this thread.
    threading.Event().wait(INTERVAL_S)
