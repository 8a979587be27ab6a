"""Writes docs/profile.schema.json again: python -m scripts.write_schema, when a record has changed."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from hal.records.profile import SCHEMA_VERSION, Profile

PLACE = Path(__file__).parents[1] / "docs" / "profile.schema.json"


def schema() -> str:
    """JSON Schema (draft 2020-12) of a profile's file, as msgspec derives it from the records."""
    made = {
        "title": f"A profile of hal, version {SCHEMA_VERSION} of the format",
        **msgspec.json.schema(Profile),
    }
    return json.dumps(made, indent=1) + "\n"


if __name__ == "__main__":
    PLACE.write_text(schema())
    print(f"wrote {PLACE.name}")
