"""Plans as JSON: what is written is read, older versions are, newer ones are not."""

from __future__ import annotations

import json

import msgspec
import pytest

from hal.errors import UserError
from hal.records.plan import PLAN_SCHEMA_VERSION, BoundaryCost, Plan
from hal.records.reading import read_plan
from scripts import write_schema
from tests.unit.planned import plan


def test_plan_is_read_as_it_was_written() -> None:
    made = plan()
    assert read_plan(msgspec.json.encode(made), "the file") == made


def test_plan_is_read_when_fields_that_came_later_are_missing() -> None:
    data = json.loads(msgspec.json.encode(plan()))
    for name in ("measured", "errors", "finalists", "throughput", "links", "estimated", "notes"):
        del data[name]
    for partition in data["partitions"]:
        del partition["runner_up"]
    found = read_plan(json.dumps(data).encode(), "the file")
    assert (found.measured, found.finalists, found.partitions[0].runner_up) == (None, (), None)


def test_plan_is_refused_when_a_newer_hal_wrote_it() -> None:
    data = json.loads(msgspec.json.encode(plan()))
    data |= {"schema_version": PLAN_SCHEMA_VERSION + 1, "hal_version": "9.1.0"}
    with pytest.raises(UserError) as raised:
        read_plan(json.dumps(data).encode(), "best.plan.json")
    assert str(raised.value) == (
        f"best.plan.json was written by hal 9.1.0 in version {PLAN_SCHEMA_VERSION + 1} of the format; this "
        f"hal reads up to version {PLAN_SCHEMA_VERSION}: upgrade hal"
    )


@pytest.mark.parametrize("data", [b"", b"[]", b'{"schema_version": 1}', b'{"schema_version": "1"}'])
def test_file_is_refused_when_it_is_no_plan(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^best\.plan\.json is not a Plan record: "):
        read_plan(data, "best.plan.json")


@pytest.mark.parametrize("field", ["n_in_flight", "batch", "worth_from"])
@pytest.mark.parametrize("number", [0, -1, 1025])
def test_file_is_refused_when_it_asks_for_no_or_too_many_requests_at_once(field: str, number: int) -> None:
    load = {"n_in_flight": 2, "batch": 8, "worth_from": 3} | {field: number}
    data = json.loads(msgspec.json.encode(plan())) | {"throughput": load}
    with pytest.raises(UserError, match=rf"Expected `int` [<>]= \d+ - at `\$.throughput.{field}`"):
        read_plan(json.dumps(data).encode(), "the file")


def test_boundary_cost_is_read_as_it_was_written() -> None:
    made = BoundaryCost(value="", source="a", destination="b", extra_ns=-5)
    assert msgspec.json.decode(msgspec.json.encode(made), type=BoundaryCost) == made


def test_published_schema_is_that_of_todays_plan() -> None:
    assert write_schema.PLAN_PLACE.read_text() == write_schema.plan_schema(), "python -m scripts.write_schema"


def test_published_schema_names_version_and_all_fields() -> None:
    found = json.loads(write_schema.PLAN_PLACE.read_text())
    assert f"version {PLAN_SCHEMA_VERSION} " in found["title"]
    assert set(found["$defs"]["Plan"]["properties"]) == set(Plan.__struct_fields__)
