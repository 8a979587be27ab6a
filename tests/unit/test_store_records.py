"""Digests, readers, rows and the published schema of profiles."""

from __future__ import annotations

import builtins
import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hal.errors import UserError
from hal.records import files, tables
from hal.records.digests import content_digest
from hal.records.places import cache_folder, data_folder
from hal.records.profile import SCHEMA_VERSION, KernelTable, Profile
from hal.records.reading import read_machine, read_profile
from scripts import write_schema
from tests.golden import records
from tests.unit import stored
from tests.unit.stored import kernel, profile, table, target

# --- Places --------------------------------------------------------------------------------------


def test_folders_lie_below_hal_home_when_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAL_HOME", str(tmp_path))
    assert (data_folder(), cache_folder()) == (tmp_path / "data", tmp_path / "cache")


def test_data_folder_is_the_users_when_hal_home_is_not_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HAL_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "hal"


# --- Digests -------------------------------------------------------------------------------------


class Old(msgspec.Struct, frozen=True):
    a: int
    names: frozenset[str] = frozenset()


class New(msgspec.Struct, frozen=True):
    a: int
    names: frozenset[str] = frozenset()
    b: str = ""
    c: dict[str, int] = {}
    d: tuple[Old, ...] = ()


def test_digest_is_the_same_when_fields_were_added_with_defaults() -> None:
    assert content_digest(Old(1)) == content_digest(New(1))
    many = frozenset(f"name {i}" for i in range(100))
    assert content_digest(Old(1, many)) == content_digest(New(1, frozenset(sorted(many, reverse=True))))


def test_digest_is_the_same_when_a_dictionary_was_filled_in_another_order() -> None:
    assert content_digest(New(1, c={"a": 1, "b": 2})) == content_digest(New(1, c={"b": 2, "a": 1}))


@pytest.mark.parametrize(
    "other", [New(2), New(1, b="x"), New(1, c={"": 0}), New(1, d=(Old(0),)), New(1, names=frozenset({"n"}))]
)
def test_digest_differs_when_a_field_does(other: New) -> None:
    assert content_digest(other) != content_digest(New(1))


def test_digest_stays_when_a_profile_goes_through_a_file() -> None:
    again = read_profile(files.to_json(records.FULL), "it")
    assert content_digest(again) == content_digest(records.FULL)


# --- Readers -------------------------------------------------------------------------------------


def test_read_profile_fills_in_defaults_when_the_version_is_older() -> None:
    plain = json.loads(files.to_json(profile()))
    for name in ("facts", "units", "ceilings", "links"):
        del plain[name]
    plain["schema_version"] = 1
    found = read_profile(json.dumps(plain).encode(), "it")
    assert found == msgspec.structs.replace(profile(), schema_version=1, ceilings=())


def test_readers_refuse_when_a_newer_hal_wrote_it() -> None:
    newer = {"schema_version": 99, "hal_version": "9.9", "anything": [1]}
    for read in (read_profile, read_machine):
        with pytest.raises(
            UserError,
            match=r"^'f' was written by hal 9\.9 in version 99 of the format; this hal reads up to",
        ):
            read(json.dumps(newer).encode(), "'f'")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Input data was truncated"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "missing required field `schema_version`"),
        ('{"schema_version": 1, "hal_version": "0"}', "missing required field"),
        ("\udcff".encode("utf-8", "surrogateescape"), "malformed"),
    ],
)
def test_read_profile_says_what_is_wrong_when_it_is_no_profile(text: str | bytes, why: str) -> None:
    with pytest.raises(UserError, match=rf"^'f' is not a Profile record: .*{why}"):
        read_profile(text if isinstance(text, bytes) else text.encode(), "'f'")


def test_read_machine_gives_back_the_same_when_written_as_json() -> None:
    assert read_machine(files.to_json(stored.machine()), "it") == stored.machine()


# --- Rows ----------------------------------------------------------------------------------------

SLOW_INSTRUMENTS = KernelTable(
    kernels=(
        kernel("last", 9, order=2),
        msgspec.structs.replace(kernel("first", 4, "Gone1", order=0), device="gpu:0", flops=None),
        msgspec.structs.replace(kernel("second", 4, "Add1", order=1), moved_bytes=None),
    ),
    total_ns=17,
    unattributed_ns=9,
    instrumented_ns=200,
    plain_ns=100,
)
ROWS = profile(
    target(kernels=table(kernel("fused", 2000, "Conv1", "Relu1"), kernel("=evil()", 1, "Add1", order=1))),
    target(records.BF16, kernels=SLOW_INSTRUMENTS),
    target(records.ORT, kernels=None),
    facts=stored.facts(Conv1="c", Relu1="r", Add1="a"),
)


def test_rows_hold_one_kernel_each_in_the_order_of_execution() -> None:
    rows = tables.kernel_rows(ROWS)
    assert [(row["target"], row["kernel"]) for row in rows] == [
        (records.FP32, "fused"),
        (records.FP32, "=evil()"),
        (records.BF16, "first"),
        (records.BF16, "second"),
        (records.BF16, "last"),
    ]
    assert all(list(row) == list(tables.COLUMNS) for row in rows)
    assert rows[0] == {
        "target": records.FP32,
        "order": 0,
        "kernel": "fused",
        "type": "jit",
        "device": "cpu:0",
        "ops": ["Conv", "Relu"],
        "nodes": ["Conv1", "Relu1"],
        "module": "body",
        "source": "net.py:7",
        "median_ns": 2000,
        "p10_ns": 2000,
        "p90_ns": 2000,
        "n": 50,
        "inflated": False,
        "flops": 1000,
        "moved_bytes": 500,
        "weight_bytes": 0,
        "activation_bytes": 100,
        "flops_per_s": 0.5e9,
        "bytes_per_s": 0.25e9,
    }
    assert [row["module"] for row in rows] == ["body", "body.Add1.inner", "", "body.Add1.inner", ""]
    assert [row["device"] for row in rows] == ["cpu:0", "cpu:0", "gpu:0", "cpu:0", "cpu:0"]
    assert [row["inflated"] for row in rows] == [False, False, True, True, True]
    assert [row["flops_per_s"] is None for row in rows] == [False, False, True, False, False]
    assert [row["bytes_per_s"] is None for row in rows] == [False, False, False, True, False]


def test_rows_are_made_when_the_profile_has_no_facts() -> None:
    rows = tables.kernel_rows(records.FULL)
    assert len(rows) == 2 * len(records.KERNELS.kernels)
    assert {row["module"] for row in rows} == {""}


def test_modules_share_whole_names_only() -> None:
    facts = stored.facts(Conv1="c", Conv12="d")
    (row,) = tables.kernel_rows(
        profile(target(kernels=table(kernel("k", 1, "Conv1", "Conv12"))), facts=facts)
    )
    assert row["module"] == "body"


def test_to_pandas_keeps_types_when_figures_are_missing() -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed (extra 'tables')")
    frame = ROWS.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == list(tables.COLUMNS)
    assert frame["flops"].dtype == "Int64"
    assert frame["median_ns"].dtype == "int64"
    assert frame["flops"].isna().tolist() == [False, False, True, False, False]
    assert frame.groupby("target")["median_ns"].sum().to_dict() == {records.FP32: 2001, records.BF16: 17}
    empty = profile(target(kernels=None)).to_pandas()
    assert (len(empty), list(empty.columns)) == (0, list(tables.COLUMNS))


@pytest.mark.parametrize("made", [ROWS, profile(target(kernels=None))], ids=["rows", "empty"])
def test_parquet_holds_the_rows_when_read_again(made: Profile) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra 'tables')")
    found = pq.read_table(io.BytesIO(tables.parquet(made)))
    assert found.column_names == list(tables.COLUMNS)
    assert found.to_pylist() == tables.kernel_rows(made)
    assert str(found.schema.field("nodes").type).startswith("list<")


def test_csv_holds_the_rows_when_read_again() -> None:
    found = list(csv.DictReader(io.StringIO(tables.comma_separated(ROWS).decode())))
    assert [row["kernel"] for row in found] == [row["kernel"] for row in tables.kernel_rows(ROWS)]
    assert found[0]["nodes"] == "Conv1;Relu1"
    assert found[2]["flops"] == ""
    assert tables.comma_separated(profile(target(kernels=None))).decode() == ",".join(tables.COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("library", "make", "what"),
    [("pandas", Profile.to_pandas, "a table for pandas"), ("pyarrow", tables.parquet, "a Parquet file")],
)
def test_tables_say_what_to_install_when_the_library_is_missing(
    monkeypatch: pytest.MonkeyPatch, library: str, make: Any, what: str
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == library:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    expected = rf"^{what} needs {library}, which is not installed; run: pip install hal-runtime\[tables\]$"
    with pytest.raises(UserError, match=expected):
        make(ROWS)


# --- The schema ----------------------------------------------------------------------------------


def test_published_schema_is_that_of_todays_records() -> None:
    assert write_schema.PLACE.read_text() == write_schema.schema(), "run: python -m scripts.write_schema"


def test_published_schema_names_version_and_all_fields() -> None:
    found = json.loads(write_schema.PLACE.read_text())
    assert f"version {SCHEMA_VERSION} " in found["title"]
    assert set(found["$defs"]["Profile"]["properties"]) == set(Profile.__struct_fields__)
    assert "facts" not in found["$defs"]["Profile"]["required"]
