"""Writing to the terminal: data to stdout, words to stderr, and nothing that a model's author chose.

Names of nodes, models and devices come from files and plugins. Control characters in them could
move the cursor, recolour or retitle a terminal, so every text is escaped on its way out.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from hal.errors import StorageError
from hal.escapes import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

#: Columns where stdout is no terminal and COLUMNS is not set: a target's row fits without folding.
_WIDTH_OF_A_PIPE = 100
#: With fewer columns nothing can be read, with none rich prints nothing at all.
_LEAST_WIDTH = 20
#: Most characters of one text: an error of a plugin may be megabytes long. Both ends say most.
_LONGEST = 2000


class ReaderGone(Exception):
    """Whoever read stdout has closed it, as ``head`` does; not an error."""


def shortened(text: str, limit: int = _LONGEST) -> str:
    """Cut out the middle of a text that is longer than ``limit``.

    The middle goes because names of nodes share long beginnings and differ at the end, and an error
    begins with what failed and ends with what to do.
    """
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def one_line(text: str, limit: int = _LONGEST) -> str:
    """Escape a text, line feeds included, and cut out its middle where it is longer than ``limit``."""
    # Cut before too: escaping megabytes takes seconds.
    return shortened(printable(shortened(text, limit).replace("\n", "\\n")), limit)


def emit(text: str, file: TextIO) -> None:
    """Write and flush.

    Raises:
        ReaderGone: The other end is closed.
        StorageError: It could not be written, for example because the disk is full.
    """
    with _writing():
        try:
            file.write(text)
        except UnicodeEncodeError:
            encoding = file.encoding or "ascii"
            file.write(text.encode(encoding, "backslashreplace").decode(encoding))
        file.flush()


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        raise StorageError(
            f"the output could not be written: {error.strerror or error}; "
            "free some space or send it somewhere else"
        ) from error


def say(text: str) -> None:
    """Words for the person at the terminal, on stderr."""
    emit(printable(text) + "\n", sys.stderr)


def console(file: TextIO, width: int | None = None) -> Console:
    """A rich console that prints only what it is given: no markup, no emoji, no guessed colours.

    Args:
        file: Where to print.
        width: Columns; None for the terminal's, or COLUMNS, or 100.
    """
    from rich.console import Console

    # With both sizes given rich does not look at COLUMNS itself. The height is of no use to what is printed.
    columns = width or _columns(file)
    return Console(file=file, width=columns, height=25, markup=False, emoji=False, highlight=False)


def _columns(file: TextIO) -> int:
    wanted = os.environ.get("COLUMNS", "")
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 5 and int(wanted) >= _LEAST_WIDTH:
        return int(wanted)
    with contextlib.suppress(OSError, ValueError):  # no terminal, or one that does not tell
        columns = os.get_terminal_size(file.fileno()).columns
        if columns >= _LEAST_WIDTH:
            return columns
    return _WIDTH_OF_A_PIPE


def show(found: Iterable[RenderableType], file: TextIO, width: int | None = None) -> None:
    """Print tables and lines, whole, without the blanks that pad lines of tables.

    Raises:
        ReaderGone: The other end is closed.
        StorageError: It could not be written.
    """
    printer = console(file, width)
    # rich writes to the file even while it captures.
    with _writing(), printer.capture() as capture:
        for part in found:
            printer.print(part)
    lines = (line.rstrip() for line in capture.get().splitlines())
    emit("".join(f"{line}\n" for line in lines), file)


def plain(found: Iterable[RenderableType], width: int) -> str:
    """What :func:`show` prints, as a string without colours."""
    file = io.StringIO()
    show(found, file, width)
    return file.getvalue()


def table(*columns: tuple[str, str]) -> Table:
    """An empty table.

    Args:
        columns: Heading and kind of each: ``text`` folds at the column's width, ``name`` is kept on
            one line, ``number`` too and stands to the right.
    """
    from rich import box
    from rich.table import Table

    made = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0)
    )
    for heading, kind in columns:
        made.add_column(
            heading,
            justify="right" if kind == "number" else "left",
            no_wrap=kind != "text",
            overflow="fold" if kind == "text" else "ellipsis",
        )
    return made


def cell(text: str, limit: int = _LONGEST, style: str = "") -> Text:
    """A text for a table: escaped, at most ``limit`` characters."""
    from rich.text import Text

    return Text(one_line(text, limit), style=style)


def line(text: str, style: str = "") -> Text:
    """A line of words between tables: escaped, wrapped at the terminal's width."""
    from rich.text import Text

    return Text(printable(shortened(text)), style=style)


def indented(text: str, by: int = 2) -> RenderableType:
    """Words set in from the left, every line of them."""
    from rich.padding import Padding

    return Padding(line(text), (0, 0, 0, by))
