"""Writes docs/*.schema.json again: python -m scripts.write_schema, when a record has changed."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from hal.records.plan import PLAN_SCHEMA_VERSION, Plan
from hal.records.profile import SCHEMA_VERSION, Profile

_DOCS = Path(__file__).parents[1] / "docs"
PLACE = _DOCS / "profile.schema.json"
PLAN_PLACE = _DOCS / "plan.schema.json"


def schema() -> str:
    """JSON Schema (draft 2020-12) of a profile's file, as msgspec derives it from the records."""
    return _written(f"A profile of hal, version {SCHEMA_VERSION} of the format", Profile)


def plan_schema() -> str:
    """JSON Schema of a plan's file."""
    return _written(f"A plan of hal, version {PLAN_SCHEMA_VERSION} of the format", Plan)


def _written(title: str, record: type[msgspec.Struct]) -> str:
    return json.dumps({"title": title, **msgspec.json.schema(record)}, indent=1) + "\n"


if __name__ == "__main__":
    for place, text in ((PLACE, schema()), (PLAN_PLACE, plan_schema())):
        place.write_text(text)
        print(f"wrote {place.name}")
