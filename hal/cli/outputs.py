"""The files that a command writes: looked at before long work, written after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hal.cli.output import say
from hal.errors import UserError

#: A file, None where it was not asked for, and what makes its content.
Form = tuple[Path | None, Callable[[], bytes]]


def check_outputs(paths: Sequence[Path | None], *, force: bool) -> None:
    """Ask before long work whether its results may be written.

    Args:
        paths: None where a file was not asked for.
        force: Files may be there.

    Raises:
        OutputExists: One exists and ``force`` is false.
        StorageError: One cannot be written.
        UserError: Two are the same.
    """
    from hal.records import files

    asked = [one for one in paths if one is not None]
    for one in asked:
        files.check_free(one, force=force)
    if len({one.resolve() for one in asked}) < len(asked):
        raise UserError(
            f"two of the files to write are the same: {', '.join(map(str, asked))}; name each once"
        )


def write_outputs(forms: Sequence[Form], *, force: bool) -> None:
    """Write the files that were asked for, each told on stderr.

    Raises:
        OutputExists: One appeared meanwhile and ``force`` is false.
        StorageError: One cannot be written.
    """
    from hal.records import files

    for path, content in forms:
        if path is not None:
            files.write(path, content(), force=force)
            say(f"Wrote {path}")
