"""``hal profiles``, from its words to its exit code."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from hal.cli import main
from hal.cli.exports import EXPORTS, export_for
from hal.cli.output import plain
from hal.cli.profile_text import profile_text
from hal.errors import UserError
from hal.profiling.store import Store, profile_id
from hal.records import files, tables
from hal.records.profile import Profile
from hal.records.reading import read_profile
from tests.golden import records
from tests.unit.stored import changed, day, profile, target

BERT = profile(target(records.BF16, 2_000_000), name="bert", digest="b" * 64, created=day(3))
DIGITS = msgspec.structs.replace(records.FULL, created=day(1))

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COLUMNS", raising=False)  # tables of the width of a pipe
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def ids() -> tuple[str, str]:
    """Of the two profiles in the store: BERT, made last, and DIGITS."""
    with Store.open() as store:
        return store.put(BERT), store.put(DIGITS)


def stored_ids() -> set[str]:
    with Store.open() as store:
        return {one.id for one in store.summaries()}


def test_profiles_prints_its_commands_when_none_is_given(capsys: Capture) -> None:
    assert main(["profiles"]) == 2
    err = capsys.readouterr().err
    assert all(f"  {name} " in err for name in ("list", "show", "export", "import", "prune"))


def test_list_shows_newest_first(ids: tuple[str, str], capsys: Capture) -> None:
    assert main(["profiles", "list"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split() for line in out.splitlines()] == [
        ["id", "created", "(UTC)", "model", "targets", "fastest", "median"],
        ["─" * max(map(len, out.splitlines()))],
        [ids[0], "2026-01-04", "00:00", "bert", "1", records.BF16, "2.00", "ms"],
        [ids[1], "2026-01-02", "00:00", "digits", "6", records.BF16, "70.1", "us"],
    ]


def test_list_is_json_when_asked(ids: tuple[str, str], capsys: Capture) -> None:
    assert main(["profiles", "list", "--model", "be*", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["profiles"]
    assert found == {
        "id": ids[0],
        "created": day(3),
        "model": "bert",
        "model_digest": "b" * 64,
        "machine": "Example CPU",
        "hal_version": "0.1.0",
        "n_targets": 1,
        "fastest": records.BF16,
        "fastest_ns": 2_000_000,
    }


def test_list_says_how_to_begin_when_there_is_nothing(capsys: Capture) -> None:
    assert main(["profiles", "list"]) == 0
    assert (
        capsys.readouterr().out
        == "no profile is stored; run hal profile MODEL, or hal profiles import FILE\n"
    )
    assert main(["profiles", "list", "--model", "x\x1b"]) == 0
    assert capsys.readouterr().out.startswith("no profile of a model 'x\\x1b' is stored;")


def test_list_escapes_names_when_a_model_is_hostile(capsys: Capture) -> None:
    with Store.open() as store:
        store.put(profile(name="[red]\x1b[2J\x07" + "n" * 500))
    assert main(["profiles", "list"]) == 0
    out = capsys.readouterr().out
    assert "[red]" in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_list_warns_when_the_store_is_damaged(ids: tuple[str, str], capsys: Capture) -> None:
    with Store.open() as store:
        path = store.path
    path.write_text("damage " * 1000)
    assert main(["profiles", "list"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("no profile is stored;")
    assert err.startswith("warning: the store profiles.sqlite3 is damaged (")
    assert "it was moved to profiles.damaged-" in err


def test_show_prints_what_profile_prints(ids: tuple[str, str], capsys: Capture) -> None:
    assert main(["profiles", "show", ids[1][:8]]) == 0
    assert capsys.readouterr().out == plain(profile_text(DIGITS, 10), 100)
    assert main(["profiles", "show", ids[1], "--top", "1"]) == 0
    assert capsys.readouterr().out == plain(profile_text(DIGITS, 1), 100)
    assert main(["profiles", "show", "latest", "--json"]) == 0
    assert read_profile(capsys.readouterr().out.encode(), "stdout") == BERT
    Path("mine.json").write_bytes(files.to_json(DIGITS))
    assert main(["profiles", "show", "mine.json", "--json"]) == 0
    assert read_profile(capsys.readouterr().out.encode(), "stdout") == DIGITS


def test_show_lists_candidates_when_there_is_no_such_profile(ids: tuple[str, str], capsys: Capture) -> None:
    assert main(["profiles", "show", "zz"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: there is no profile 'zz'; the newest are {ids[0]} (bert, ")


def test_show_ends_with_4_when_the_profile_is_damaged(ids: tuple[str, str], capsys: Capture) -> None:
    with Store.open() as store:
        changed(store.path, "UPDATE profiles SET payload = 'x' WHERE id = ?", ids[0])
    assert main(["profiles", "show", "latest"]) == 4
    assert "was damaged and has been set aside; run hal profile again" in capsys.readouterr().err
    assert main(["profiles", "show", "latest", "--json"]) == 0


@pytest.mark.parametrize("ending", sorted(EXPORTS))
def test_export_writes_the_format_that_the_name_ends_in(
    ids: tuple[str, str], capsys: Capture, ending: str
) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'tables')")
    path = Path(f"out{ending}")
    assert main(["profiles", "export", ids[1], str(path)]) == 0
    assert capsys.readouterr() == ("", f"Wrote {path}\n")
    assert path.read_bytes() == EXPORTS[ending](DIGITS)
    assert main(["profiles", "export", ids[0], str(path)]) == 2
    assert f"'{path}' exists; use --force to overwrite it" in capsys.readouterr().err
    assert main(["profiles", "export", ids[0], str(path), "--force", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"id": ids[0], "file": str(path), "bytes": path.stat().st_size}
    assert path.read_bytes() == EXPORTS[ending](BERT)


def test_export_writes_nothing_when_the_name_ends_in_nothing_known(
    ids: tuple[str, str], capsys: Capture
) -> None:
    assert main(["profiles", "export", "latest", "out.xls"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: 'out.xls' does not say what to write; end its name in ")
    assert all(ending in err for ending in (".csv", ".json", ".parquet"))
    assert list(Path().iterdir()) == []


def test_export_takes_the_longest_ending_when_several_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(_: Profile) -> bytes:
        return b""

    monkeypatch.setitem(EXPORTS, ".trace.json", trace)
    assert export_for(Path("A.TRACE.JSON")) is trace
    assert export_for(Path("a.json")) is not trace
    with pytest.raises(UserError, match=r"end its name in .*\.trace\.json"):
        export_for(Path("json"))


def test_csv_has_a_row_per_kernel_when_exported(ids: tuple[str, str]) -> None:
    assert main(["profiles", "export", ids[1], "k.csv"]) == 0
    assert len(Path("k.csv").read_text().splitlines()) == 1 + len(tables.kernel_rows(DIGITS)) == 9


def test_import_puts_files_into_the_store_once(ids: tuple[str, str], capsys: Capture) -> None:
    other = profile(target(median_ns=77), name="other")
    for name, made in {"a.json": BERT, "b.json": other}.items():
        Path(name).write_bytes(files.to_json(made))
    assert main(["profiles", "import", "a.json", "b.json"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        [ids[0], "bert", "a.json", "was", "there"],
        [profile_id(other), "other", "b.json", "imported"],
    ]
    assert stored_ids() == {*ids, profile_id(other)}
    assert main(["profiles", "import", "b.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["profiles"] == [
        {"id": profile_id(other), "file": "b.json", "model": "other", "is_new": False}
    ]


def test_export_and_import_carry_a_profile_to_another_store(
    ids: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["profiles", "export", ids[1], "p.json"]) == 0
    monkeypatch.setenv("HAL_HOME", str(tmp_path / "elsewhere"))
    assert main(["profiles", "import", "p.json"]) == 0
    with Store.open() as store:
        assert store.get(ids[1]) == DIGITS
        assert [one.id for one in store.summaries()] == [ids[1]]


def test_import_takes_nothing_and_names_every_fault_when_one_file_is_wrong(capsys: Capture) -> None:
    Path("good.json").write_bytes(files.to_json(BERT))
    Path("text.json").write_text("hello")
    newer = msgspec.structs.replace(BERT, schema_version=99, hal_version="9.9")
    Path("newer.json").write_bytes(files.to_json(newer))
    assert main(["profiles", "import", "good.json", "text.json", "newer.json", "gone.json"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: nothing was imported:\n")
    assert "  - 'text.json' is not a Profile record: " in err
    assert "  - 'newer.json' was written by hal 9.9 in version 99 of the format; this hal reads up to" in err
    assert "  - 'gone.json' cannot be read: No such file or directory; name a profile that hal wrote" in err
    assert stored_ids() == set()
    assert main(["profiles", "import", "gone.json"]) == 4


def test_prune_lists_what_it_deletes(ids: tuple[str, str], capsys: Capture) -> None:
    with Store.open() as store:
        young = store.put(profile(created=(datetime.now(UTC) - timedelta(days=1)).isoformat()))
    arguments = ["profiles", "prune", "--older-than", "1w", "--model", "digits"]
    assert main([*arguments, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].split()[0] == ids[1]
    assert out.endswith("\n1 profile would be deleted\n")
    assert stored_ids() == {*ids, young}
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dry_run"], [one["id"] for one in told["profiles"]]) == (False, [ids[1]])
    assert stored_ids() == {ids[0], young}
    assert main(["profiles", "prune", "--keep", "1"]) == 0
    assert capsys.readouterr().out == "0 profiles deleted\n"
    assert main(["profiles", "prune", "--keep", "0"]) == 0
    assert capsys.readouterr().out.endswith("\n2 profiles deleted\n")
    assert stored_ids() == set()


@pytest.mark.parametrize("age", ["", "30", "d", "-1d", "1.5d", "1h", "1234567d", "3\u0664d"])
def test_prune_says_what_an_age_is_when_it_is_none(ids: tuple[str, str], capsys: Capture, age: str) -> None:
    assert main(["profiles", "prune", f"--older-than={age}"]) == 2
    assert "is no age; expected days or weeks of at most six digits, for example 30d or 4w" in (
        capsys.readouterr().err
    )
    assert stored_ids() == set(ids)


@pytest.mark.parametrize("arguments", [[], ["--model", "bert"], ["--dry-run"]])
def test_prune_refuses_when_nothing_says_what_to_delete(
    ids: tuple[str, str], capsys: Capture, arguments: list[str]
) -> None:
    assert main(["profiles", "prune", *arguments]) == 2
    assert "error: nothing says what to delete; give an age (--older-than 30d)" in capsys.readouterr().err
    assert main(["profiles", "prune", "--keep", "-1"]) == 2
    assert stored_ids() == set(ids)


def test_profiles_end_with_4_when_the_store_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HAL_HOME", str(tmp_path / "file"))
    for words in (["list"], ["show", "latest"], ["prune", "--keep", "1"]):
        assert main(["profiles", *words]) == 4
        assert "cannot be made: Not a directory; set HAL_HOME to a folder" in capsys.readouterr().err
