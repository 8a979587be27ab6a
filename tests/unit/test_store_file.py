"""The file of the store: damage, versions, full disks, many writers, and death while writing."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest

from hal.errors import ProfileNotFound, StorageError, UserError
from hal.profiling.store import Store, load_profile
from hal.profiling.store_file import APPLICATION_ID, MIGRATIONS, open_file
from tests.golden import records
from tests.unit import stored
from tests.unit.stored import changed, column, day, kernel, profile, table, target, wanted

ROOT = Path(__file__).parents[2]
#: What each child process begins with; it writes ``profile(target(median_ns=N))``.
CHILD = "import sys\nfrom hal.profiling.store import Store\nfrom tests.unit.stored import profile, target\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the store lies."""
    monkeypatch.setenv("HAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "data"


def child(body: str, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + body],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,  # type: ignore[call-overload]
    )


# --- Versions ------------------------------------------------------------------------------------


def test_file_says_whose_it_is_when_it_was_made(folder: Path) -> None:
    Store.open().close()
    path = folder / "profiles.sqlite3"
    assert column(path, "PRAGMA application_id") == [APPLICATION_ID] == [int.from_bytes(b"HALP")]
    assert column(path, "PRAGMA user_version") == [len(MIGRATIONS)]
    assert column(path, "PRAGMA journal_mode") == ["wal"]


def test_open_brings_an_older_store_up_to_date_and_keeps_what_is_in_it(folder: Path) -> None:
    with Store.open() as store:
        id = store.put(profile())
    later = (*MIGRATIONS, ("CREATE TABLE more(a TEXT)", "INSERT INTO more VALUES ('x')"))
    for _ in range(2):
        connection, notes = open_file(folder / "profiles.sqlite3", later)
        assert connection.execute("SELECT a FROM more").fetchall() == [("x",)]
        assert connection.execute("SELECT id FROM profiles").fetchall() == [(id,)]
        assert connection.execute("PRAGMA user_version").fetchone() == (len(later),)
        assert notes == []
        connection.close()


def test_open_changes_nothing_when_a_step_of_bringing_it_up_to_date_fails(folder: Path) -> None:
    with Store.open() as store:
        id = store.put(profile())
    path = folder / "profiles.sqlite3"
    broken = (*MIGRATIONS, ("CREATE TABLE more(a TEXT)", "DROP TABLE profiles", "nonsense"))
    with pytest.raises(StorageError, match=r"^the store '.*' could not be used: near \"nonsense\""):
        open_file(path, broken)
    assert column(path, "PRAGMA user_version") == [len(MIGRATIONS)]
    assert column(path, "SELECT name FROM sqlite_master WHERE name = 'more'") == []
    with Store.open() as store:
        assert store.get(id) == profile()


def test_open_refuses_and_leaves_it_alone_when_a_newer_hal_wrote_it(folder: Path) -> None:
    Store.open().close()
    path = folder / "profiles.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    expected = (
        rf"^the store '.*' was written by a newer hal \(version 99 of its format; this hal knows up to "
        rf"{len(MIGRATIONS)}\); upgrade hal, or set HAL_HOME to another folder$"
    )
    with pytest.raises(StorageError, match=expected) as raised:
        Store.open()
    assert raised.value.exit_code == 4
    assert path.read_bytes() == before


@pytest.mark.parametrize("program", [0, 7])
def test_open_refuses_and_leaves_it_alone_when_another_program_wrote_it(folder: Path, program: int) -> None:
    folder.mkdir(parents=True)
    path = folder / "profiles.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs(a)")
    connection.execute(f"PRAGMA application_id = {program}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(
        StorageError, match=rf"is a database of another program \(application id {program}, expected 1212"
    ):
        Store.open()
    assert path.read_bytes() == before


def test_profile_stays_when_a_newer_hal_put_it_there(folder: Path) -> None:
    newer = msgspec.structs.replace(profile(), schema_version=99, hal_version="9.9")
    with Store.open() as store:
        id = store.put(newer)
        with pytest.raises(
            UserError, match=r"was written by hal 9\.9 in version 99 of the format; .*upgrade hal$"
        ):
            store.get(id)
        assert store.valid(wanted(hal_version="9.9")) == {}
        assert "upgrade hal" in store.notes[0]
        assert [one.id for one in store.summaries()] == [id]


# --- Damage --------------------------------------------------------------------------------------


def _text(path: Path) -> None:
    path.write_text("this is no database at all, but a text of some length\n" * 100)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def _overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 6] = b"\xa5" * (4096 * 5)
    path.write_bytes(content)


def _header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:16] = b"\0" * 16
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_text, _cut, _overwritten, _header])
def test_damaged_file_is_moved_aside_and_a_new_one_begun(
    folder: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open() as store:
        for n in range(30):
            store.put(
                profile(target(median_ns=n + 1), records.target(records.BF16, 5, kernels=records.KERNELS))
            )
    path = folder / "profiles.sqlite3"
    damage(path)  # type: ignore[operator]
    damaged = path.read_bytes()
    with caplog.at_level(logging.WARNING, "hal"), Store.open() as store:
        assert store.summaries() == []
        id = store.put(profile())
        (note,) = store.notes
    (aside,) = folder.glob("profiles.damaged-*.sqlite3")
    assert aside.read_bytes() == damaged
    assert note.startswith("the store profiles.sqlite3 is damaged (")
    assert note.endswith(f"; it was moved to {aside.name} in the same folder and a new one was begun")
    assert note in caplog.text
    with Store.open() as store:
        assert store.notes == []
        assert store.get(id) == profile()


def test_each_damaged_file_is_kept_when_it_happens_twice_in_a_second(folder: Path) -> None:
    for n in range(3):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "profiles.sqlite3").write_text(f"damage {n} " * 200)
        Store.open().close()
    kept = sorted(path.read_text()[:8] for path in folder.glob("profiles.damaged-*.sqlite3"))
    assert kept == ["damage 0", "damage 1", "damage 2"]


def test_load_profile_says_that_the_store_was_damaged_when_nothing_is_found(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "profiles.sqlite3").write_text("damage " * 200)
    with pytest.raises(
        ProfileNotFound, match=r"is empty; run hal .*; the store profiles\.sqlite3 is damaged"
    ):
        load_profile("latest")


def test_damage_seen_in_the_middle_is_told_when_the_file_was_sound_at_first(folder: Path) -> None:
    with Store.open() as store:
        for n in range(90):  # more than SQLite keeps in memory
            store.put(profile(target(median_ns=n + 1), notes=(stored.noise(n),)))
    with Store.open() as store:
        _overwritten(folder / "profiles.sqlite3")
        with pytest.raises(
            StorageError, match=r"is damaged \(.*\); run the command again: the file is moved aside"
        ):
            store.prune(keep=0)
    with Store.open() as store:
        assert "was moved to" in store.notes[0]


def test_damaged_profile_is_set_aside_and_the_rest_stays_usable(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open() as store:
        good = store.put(profile(target(median_ns=1), created=day(1)))
        bad = store.put(profile(target(median_ns=2), created=day(2)))
        changed(store.path, "UPDATE profiles SET payload = substr(payload, 1, 90) || 'x' WHERE id = ?", bad)
        with (
            caplog.at_level(logging.WARNING, "hal"),
            pytest.raises(
                StorageError, match=rf"^the profile {bad} in the store was damaged and has been set aside;"
            ),
        ):
            store.get("latest")
        why = "is damaged (its checksum is wrong); it was set aside"
        expected = f"profiles {bad} of the store profiles.sqlite3 {why}"
        assert store.notes == [expected]
        assert expected in caplog.text
        assert store.get("latest") == profile(target(median_ns=1), created=day(1))
        assert [one.id for one in store.summaries()] == [good]
        assert column(store.path, "SELECT id FROM damaged") == [bad]
        assert store.put(profile(target(median_ns=2), created=day(2))) == bad
        assert store.get(bad).created == day(2)


def test_valid_takes_the_next_when_the_newest_profile_is_damaged(folder: Path) -> None:
    with Store.open() as store:
        store.put(profile(target(median_ns=1), created=day(1)))
        bad = store.put(profile(target(median_ns=2), created=day(2)))
        changed(store.path, "UPDATE profiles SET checksum = 'x' WHERE id = ?", bad)
        assert store.valid(wanted())[records.FP32].measured == day(1)
        assert len(store.notes) == 1


def test_damaged_kernel_records_are_left_out_when_others_are_sound(folder: Path) -> None:
    with Store.open() as store:
        made = table(kernel("a", 1, "Conv1"), kernel("b", 2, "Conv2"))
        store.put(profile(target(kernels=made), facts=stored.facts(Conv1="s", Conv2="t")))
        changed(store.path, "UPDATE kernels SET payload = 'x' WHERE instr(payload, 'median_ns\":1,')")
        assert [record.median_ns for record in store.kernels()] == [2]
        assert store.notes == ["1 damaged kernel records of the store profiles.sqlite3 were left out"]


def test_damaged_machine_profile_is_set_aside(folder: Path) -> None:
    with Store.open() as store:
        store.put_machine(stored.machine())
        changed(store.path, "UPDATE machines SET payload = 'x'")
        assert store.machine(stored.ENVIRONMENT) is None
        store.put_machine(stored.machine())
        assert store.machine(stored.ENVIRONMENT) == stored.machine()


# --- Places that cannot be written ---------------------------------------------------------------


def test_open_says_what_to_do_when_the_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(
        StorageError,
        match=r"^the folder of the store, '.*data', cannot be made: Not a directory; set HAL_HOME to a",
    ):
        Store.open()


def test_open_says_what_to_do_when_the_file_cannot_be_opened(folder: Path) -> None:
    (folder / "profiles.sqlite3").mkdir(parents=True)
    with pytest.raises(
        StorageError,
        match=r"^the store '.*' may not be written \(unable to open .*\); set HAL_HOME to a folder that",
    ):
        Store.open()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write")
def test_open_says_what_to_do_when_the_file_may_only_be_read() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        Path(place).chmod(0o755)
        Store.open(Path(place)).close()
        body = f"import os\nfrom pathlib import Path\nos.seteuid(65534)\nStore.open(Path({place!r}))"
        _, err = child(body).communicate(timeout=60)
    assert "hal.errors.StorageError: the store " in err
    assert (
        "may not be written (attempt to write a readonly database); set HAL_HOME to a folder that may" in err
    )


def test_put_keeps_the_old_and_says_what_to_do_when_the_disk_is_full(folder: Path) -> None:
    with Store.open() as store:
        store.put(profile())
    body = """
import resource, signal
store = Store.open()
limit = store.path.stat().st_size + 20_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
n = 0
try:
    while True:
        n += 1
        store.put(profile(target(median_ns=n + 5)))
except OSError as error:
    print(n, error)
print(len(store.summaries()))
"""
    out, err = child(body).communicate(timeout=60)
    assert err == ""
    told, n_left = out.splitlines()
    n, _, text = told.partition(" ")
    assert text.startswith("the store '")
    assert "free some space, or set HAL_HOME to another folder" in text
    assert int(n_left) == int(n)  # the first one, and all that were put before the one that failed
    with Store.open() as store:
        assert len(store.summaries()) == int(n)
        assert all(store.get(one.id) for one in store.summaries())


def test_put_says_who_is_in_the_way_when_another_process_never_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hal.profiling.store_file._WAIT_S", 0.01)
    with Store.open() as store:
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            StorageError, match=r"is in use by another process and stayed so for .* s; try again"
        ):
            store.put(profile())
        other.execute("ROLLBACK")
        other.close()
        assert store.get(store.put(profile())) == profile()


def test_writers_take_turns_without_a_log_when_the_file_system_is_of_the_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open() as store:
        id = store.put(profile())
    home = str(folder.parent)
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=home, fstype="NFS4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    with caplog.at_level(logging.WARNING, "hal"), Store.open() as store:
        assert store.get(id) == profile()
        store.put(profile(target(median_ns=3)))
        assert column(store.path, "PRAGMA journal_mode") == ["delete"]
        assert store.notes == []
    assert "journal mode 'delete', because its file system (nfs4) has no write-ahead logging" in caplog.text
    assert len(caplog.records) == 1
    with caplog.at_level(logging.WARNING, "hal"):
        Store.open().close()
    assert len(caplog.records) == 1  # said once: the file remembers its mode


# --- Several processes, and death ----------------------------------------------------------------


def test_every_profile_is_kept_when_processes_begin_and_fill_a_store_at_once(folder: Path) -> None:
    writers = [
        child(
            "print('ready', flush=True)\nsys.stdin.readline()\n"
            f"with Store.open() as store:\n"
            f"    for n in range(15):\n"
            f"        print(store.put(profile(target(median_ns=1 + n + 10 * {number}))))\n"
            f"    assert store.notes == [], store.notes\n"
        )
        for number in range(4)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"  # type: ignore[union-attr]
    for writer in writers:
        writer.stdin.write("go\n")  # type: ignore[union-attr]
        writer.stdin.flush()  # type: ignore[union-attr]
    told = [writer.communicate(timeout=120) for writer in writers]
    assert [err for _, err in told] == [""] * 4
    ids = {id for out, _ in told for id in out.split()}
    with Store.open() as store:
        assert {one.id for one in store.summaries()} == ids
        assert sorted(one.fastest_ns for one in store.summaries()) == list(range(1, 46))
        assert all(store.get(id) for id in ids)
    assert column(folder / "profiles.sqlite3", "PRAGMA integrity_check") == ["ok"]
    assert list(folder.glob("*damaged*")) == []


def test_one_new_store_is_begun_when_processes_find_the_damage_at_once(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "profiles.sqlite3").write_text("damage " * 2000)
    body = (
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "with Store.open() as store:\n    print(store.put(profile(target(median_ns={n}))))\n"
    )
    finders = [child(body.format(n=number + 1)) for number in range(4)]
    for finder in finders:
        assert finder.stdout.readline() == "ready\n"  # type: ignore[union-attr]
    for finder in finders:
        finder.stdin.write("go\n")  # type: ignore[union-attr]
        finder.stdin.flush()  # type: ignore[union-attr]
    told = [finder.communicate(timeout=120) for finder in finders]
    assert all(finder.returncode == 0 for finder in finders), told
    assert len(list(folder.glob("profiles.damaged-*.sqlite3"))) == 1
    with Store.open() as store:
        assert sorted(one.fastest_ns for one in store.summaries()) == [1, 2, 3, 4]


def test_every_committed_profile_is_readable_when_writers_are_killed(folder: Path) -> None:
    body = """
start = int(sys.stdin.readline())
with Store.open() as store:
    for n in range(10_000):
        print(store.put(profile(target(median_ns=start + n), notes=("x" * 40_000, str(n)))), flush=True)
"""
    committed: set[str] = set()
    for number, n_lines in enumerate([1, 7, 2, 12, 4, 9]):
        writer = child(body)
        writer.stdin.write(f"{1 + number * 10_000}\n")  # type: ignore[union-attr]
        writer.stdin.flush()  # type: ignore[union-attr]
        ids = [writer.stdout.readline().strip() for _ in range(n_lines)]  # type: ignore[union-attr]
        writer.kill()  # in the middle of the next transaction, or between two
        rest, err = writer.communicate(timeout=60)
        assert writer.returncode == -9
        assert err == ""
        committed.update([*ids, *(line for line in rest.splitlines() if len(line) == 12)])
        with Store.open() as store:
            assert store.notes == []
            assert committed <= {one.id for one in store.summaries()}
            assert all(store.get(one.id) for one in store.summaries())
            assert store.notes == []
        assert column(folder / "profiles.sqlite3", "PRAGMA integrity_check") == ["ok"]
    assert len(committed) >= 35
