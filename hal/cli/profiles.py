"""``hal profiles``: the profiles that were kept."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hal.cli import options
from hal.cli.output import emit, say, show
from hal.errors import HalError, StorageError, UserError, problems

if TYPE_CHECKING:
    from hal.profiling.store import Store
    from hal.records.profile import Profile

_Id = Annotated[
    str, typer.Argument(metavar="ID", help="An id from the list, the start of one, latest, or a file.")
]
_OfModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Only of models with this name, name pattern or start of the digest (6 digits or more).",
    ),
]

_DAYS = {"d": 1, "w": 7}


def profiles() -> int:
    """The profiles that hal kept: list, show, export, import, prune."""
    return 0


def list_profiles(model: _OfModel = None, json: options.Json = False) -> int:
    """List the stored profiles, newest first."""
    from hal.cli import profiles_text

    with _opened() as store:
        found = store.summaries(model)
    if json:
        emit(profiles_text.list_json(found), sys.stdout)
    else:
        show(profiles_text.list_text(found, model), sys.stdout)
    return 0


def show_profile(
    id: _Id,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Kernels listed per target.")] = 10,
    json: options.Json = False,
) -> int:
    """Print a stored profile as hal profile prints it."""
    from hal.cli.profile_text import profile_text
    from hal.profiling.store import load_profile
    from hal.records import files

    found = load_profile(id)
    if json:
        emit(files.to_json(found).decode(), sys.stdout)
    else:
        show(profile_text(found, top), sys.stdout)
    return 0


def export(
    id: _Id,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="What to write: its name ends in .json, .parquet, .csv, .html ..."
        ),
    ],
    force: options.Force = False,
    json: options.Json = False,
) -> int:
    """Write a stored profile to a file; the end of its name says in which format.

    JSON holds everything; Parquet and CSV one row per kernel.
    """
    from hal.cli import profiles_text
    from hal.cli.exports import export_for
    from hal.profiling.store import load_profile, profile_id
    from hal.records import files

    made = export_for(file)
    files.check_free(file, force=force)
    found = load_profile(id)
    content = made(found)
    files.write(file, content, force=force)
    if json:
        emit(profiles_text.export_json(profile_id(found), file, len(content)), sys.stdout)
    say(f"Wrote {file}")
    return 0


def import_profiles(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Profiles that hal wrote as JSON.")],
    json: options.Json = False,
) -> int:
    """Put profiles from files into the store. All are read first: one that cannot be stops all."""
    from hal.cli import profiles_text
    from hal.profiling.store import profile_id

    read = _read_all(paths)
    outcomes = []
    with _opened() as store:
        for path, found in zip(paths, read, strict=True):
            is_new = profile_id(found) not in store
            outcomes.append(
                profiles_text.Imported(
                    id=store.put(found), file=str(path), model=found.model.name, is_new=is_new
                )
            )
    if json:
        emit(profiles_text.import_json(outcomes), sys.stdout)
    else:
        show(profiles_text.import_text(outcomes), sys.stdout)
    return 0


def prune(
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="30d", help="Only profiles older than so many days or weeks."),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option("--keep", min=0, metavar="N", help="Keep the newest N of each model's name."),
    ] = None,
    model: _OfModel = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing; list what would be deleted.")
    ] = False,
    json: options.Json = False,
) -> int:
    """Delete old profiles from the store, and list them. Needs --older-than, --keep or both."""
    from hal.cli import profiles_text

    age = None if older_than is None else parse_age(older_than)
    with _opened() as store:
        removed = store.prune(older_than=age, keep=keep, model=model, dry_run=dry_run)
    if json:
        emit(profiles_text.prune_json(removed, dry_run), sys.stdout)
    else:
        show(profiles_text.prune_text(removed, dry_run), sys.stdout)
    return 0


def parse_age(text: str) -> timedelta:
    """Read ``30d`` or ``4w``.

    Raises:
        UserError: It is no number of days or weeks.
    """
    found = re.fullmatch(r"([0-9]{1,6})([dw])", text.strip())
    if found is None:
        raise UserError(
            f"--older-than {text!r} is no age; expected days or weeks of at most six digits, for example 30d "
            "or 4w"
        )
    return timedelta(days=int(found[1]) * _DAYS[found[2]])


@contextmanager
def _opened() -> Iterator[Store]:
    """The user's store; says at the end what was found damaged."""
    from hal.profiling.store import Store

    with Store.open() as store:
        try:
            yield store
        finally:
            for note in store.notes:
                say(f"warning: {note}")


def _read_all(paths: list[Path]) -> list[Profile]:
    from hal.records.reading import read_profile

    found, wrong = [], []
    for path in paths:
        try:
            found.append(read_profile(_bytes(path), repr(str(path))))
        except HalError as error:
            if len(paths) == 1:
                raise
            wrong.append(error.message)
    if wrong:
        raise UserError(problems("nothing was imported", wrong))
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a null character in the name
        why = getattr(error, "strerror", None) or error
        raise StorageError(f"{str(path)!r} cannot be read: {why}; name a profile that hal wrote") from error
