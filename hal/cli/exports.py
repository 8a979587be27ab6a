"""What a stored profile can be written as: one table, by how the file's name ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hal.errors import UserError

if TYPE_CHECKING:
    from hal.records.profile import Profile

#: Makes the bytes of a file.
Export = Callable[["Profile"], bytes]


def _json(profile: Profile) -> bytes:
    from hal.records import files

    return files.to_json(profile)


def _parquet(profile: Profile) -> bytes:
    from hal.records import tables

    return tables.parquet(profile)


def _csv(profile: Profile) -> bytes:
    from hal.records import tables

    return tables.comma_separated(profile)


def _html(profile: Profile) -> bytes:
    from hal import report

    return report.html(profile).encode()


def _trace(profile: Profile) -> bytes:
    from hal import report

    return report.chrome_trace(profile)


def _speedscope(profile: Profile) -> bytes:
    from hal import report

    return report.speedscope(profile)


#: By the end of the file's name; of several that fit the longest counts.
EXPORTS: dict[str, Export] = {
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".html": _html,
    ".trace.json": _trace,
    ".speedscope.json": _speedscope,
}


def export_for(path: Path) -> Export:
    """How to write a file.

    Raises:
        UserError: Its name ends in nothing that is known.
    """
    name = path.name.lower()
    fitting = [ending for ending in EXPORTS if name.endswith(ending)]
    if not fitting:
        raise UserError(
            f"{str(path)!r} does not say what to write; end its name in {', '.join(sorted(EXPORTS))}"
        )
    return EXPORTS[max(fitting, key=len)]
