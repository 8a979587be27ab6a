"""Stored profiles as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hal.cli import figures
from hal.cli.output import cell, line, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from hal.profiling.store import Summary


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a file.

    Attributes:
        id: The profile's id in the store.
        file: As typed.
        model: The profile's model.
        is_new: False where a profile of equal content was there.
    """

    id: str
    file: str
    model: str
    is_new: bool


def list_text(found: Sequence[Summary], model: str | None) -> Iterator[RenderableType]:
    """What ``hal profiles list`` prints."""
    if not found:
        of_model = "" if model is None else f" of a model {model!r}"
        yield line(f"no profile{of_model} is stored; run hal profile MODEL, or hal profiles import FILE")
        return
    yield _summaries(found)


def list_json(found: Sequence[Summary]) -> str:
    """What ``hal profiles list --json`` prints."""
    return _json({"profiles": msgspec.to_builtins(tuple(found))})


def export_json(id: str, path: Path, n_bytes: int) -> str:
    """What ``hal profiles export --json`` prints."""
    return _json({"id": id, "file": str(path), "bytes": n_bytes})


def import_text(outcomes: Sequence[Imported]) -> Iterator[RenderableType]:
    """What ``hal profiles import`` prints."""
    made = table(("id", "name"), ("model", "name"), ("file", "text"), ("state", "name"))
    for one in outcomes:
        state = "imported" if one.is_new else "was there"
        made.add_row(cell(one.id), cell(one.model, 30), cell(one.file), cell(state))
    yield made


def import_json(outcomes: Sequence[Imported]) -> str:
    """What ``hal profiles import --json`` prints."""
    return _json({"profiles": msgspec.to_builtins(tuple(outcomes))})


def prune_text(removed: Sequence[Summary], dry_run: bool) -> Iterator[RenderableType]:
    """What ``hal profiles prune`` prints."""
    if removed:
        yield _summaries(removed)
    n = f"{len(removed)} profile{'' if len(removed) == 1 else 's'}"
    yield line(f"{n} would be deleted" if dry_run else f"{n} deleted", "bold")


def prune_json(removed: Sequence[Summary], dry_run: bool) -> str:
    """What ``hal profiles prune --json`` prints."""
    return _json({"dry_run": dry_run, "profiles": msgspec.to_builtins(tuple(removed))})


def _summaries(found: Sequence[Summary]) -> Table:
    made = table(
        ("id", "name"),
        ("created (UTC)", "name"),
        ("model", "name"),
        ("targets", "number"),
        ("fastest", "name"),
        ("median", "number"),
    )
    for one in found:
        made.add_row(
            cell(one.id),
            cell(one.created[:16].replace("T", " ")),
            cell(one.model, 24),
            cell(str(one.n_targets)),
            cell(one.fastest or figures.NOTHING, 30),
            cell(figures.time_text(one.fastest_ns) if one.fastest else figures.NOTHING),
        )
    return made


def _json(content: object) -> str:
    return json.dumps(content, indent=1) + "\n"
