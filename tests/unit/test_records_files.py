import errno
import os
import stat
from pathlib import Path

import msgspec
import pytest

from hal.errors import OutputExists, StorageError, UserError
from hal.records import files
from hal.records.targets import Device


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_makes_the_file_and_nothing_else_when_the_place_is_free(tmp_path):
    files.write(tmp_path / "a.json", b"one")
    files.write(tmp_path / "b.json", lambda file: file.write(b"two"))
    assert names(tmp_path) == ["a.json", "b.json"]
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path)] == [b"one", b"two"]


def test_write_refuses_and_leaves_the_old_when_the_file_exists(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(
        OutputExists, match=r"a\.json' exists; use --force to overwrite it, or name another file"
    ) as raised:
        files.write(path, b"new")
    assert isinstance(raised.value, FileExistsError)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_write_replaces_when_forced(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    files.write(path, b"new", force=True)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


def test_write_refuses_when_the_file_appears_meanwhile(tmp_path):
    path = tmp_path / "a.json"

    def content(file):
        file.write(b"ours")
        path.write_bytes(b"theirs")

    with pytest.raises(OutputExists, match=r"a\.json' appeared while writing; use --force to overwrite it"):
        files.write(path, content)
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["a.json"]


def test_write_names_the_folder_when_it_does_not_exist(tmp_path):
    with pytest.raises(StorageError, match=r"the folder '.*nowhere' does not exist; create it first"):
        files.write(tmp_path / "nowhere" / "a.json", b"x")
    assert names(tmp_path) == []


@pytest.mark.parametrize(("force", "old"), [(False, None), (True, None), (True, b"old")])
def test_write_leaves_nothing_behind_when_the_disk_is_full(tmp_path, monkeypatch, force, old):
    path = tmp_path / "a.json"
    if old:
        path.write_bytes(old)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    expected = "could not be written: No space left on device; nothing was left behind. Free some space"
    with pytest.raises(StorageError, match=expected) as raised:
        files.write(path, b"x" * 1000, force=force)
    assert isinstance(raised.value, OSError)
    assert names(tmp_path) == (["a.json"] if old else [])
    assert not old or path.read_bytes() == old


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_write_leaves_nothing_behind_when_the_content_meets_a_full_device(tmp_path):
    def content(_):
        with open("/dev/full", "wb") as device:
            device.write(b"x" * 100_000)

    with pytest.raises(StorageError, match="No space left on device"):
        files.write(tmp_path / "a.json", content)
    assert names(tmp_path) == []


def test_write_leaves_nothing_behind_when_the_content_raises(tmp_path):
    def content(file):
        file.write(b"half")
        raise KeyError("a fault of the caller")

    with pytest.raises(KeyError):
        files.write(tmp_path / "a.json", content)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_write_still_makes_the_file_when_the_file_system_has_no_links(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    files.write(tmp_path / "a.json", b"one")
    assert (tmp_path / "a.json").read_bytes() == b"one"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_write_gives_the_mode_that_any_new_file_has_when_it_makes_one(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "plain").write_bytes(b"x")
        files.write(tmp_path / "a.json", b"x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a.json")]
    assert modes[0] == modes[1]


def test_record_comes_back_when_written_as_json():
    record = Device(
        id="cpu:0", name="A", kind="cpu", silicon="s", memory_pool="m", properties={"clock_hz": 3}
    )
    assert files.from_json(files.to_json(record), Device, "device") == record


def test_from_json_says_what_and_where_when_the_text_is_no_record():
    with pytest.raises(
        UserError, match=r"profile\.json is not a Device record: .*missing required field `name`"
    ):
        files.from_json(b'{"id": "cpu:0"}', Device, "profile.json")
    with pytest.raises(UserError, match=r"profile\.json is not a Device record: "):
        files.from_json(b"{", Device, "profile.json")


def test_to_json_writes_null_when_a_number_is_infinite():
    class Number(msgspec.Struct):
        value: float

    assert b"null" in files.to_json(Number(float("inf")))


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["", ".", "/", "folder"])
def test_check_free_refuses_when_it_is_a_folder(tmp_path, monkeypatch, force, name):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=r"^'(\.|/|folder)' is a folder; name a file in it$") as raised:
        files.check_free(Path(name), force=force)
    assert raised.value.exit_code == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("force", [False, True])
def test_write_leaves_it_alone_when_it_is_a_device_or_a_pipe(tmp_path, force):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", Path("/dev/null")):
        expected = f"^{str(path)!r} is a device or a pipe, not a file; name another one$"
        with pytest.raises(StorageError, match=expected):
            files.check_free(path, force=force)
    with pytest.raises(StorageError, match="is a device or a pipe"):
        files.write(pipe, b"x", force=force)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["link", "pipe"]


def test_write_replaces_the_file_behind_the_link_when_forced(tmp_path):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(OutputExists, match=r"link' exists; use --force to overwrite it"):
        files.write(link, b"new")
    files.write(link, b"new", force=True)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "folder") == ["target"]


@pytest.mark.parametrize("force", [False, True])
def test_check_free_refuses_when_it_is_a_link_to_nothing(tmp_path, force):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(
        StorageError, match=r"link' is a link to '.*gone', which does not exist; remove the link$"
    ):
        files.check_free(tmp_path / "link", force=force)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError, match=r"loop' cannot be a file: .*; name another one$"):
        files.check_free(tmp_path / "loop", force=force)


def test_check_free_refuses_when_the_folder_may_not_be_written(tmp_path, monkeypatch):
    # Not by its mode: root may write wherever the file system can be written to.
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with pytest.raises(
        StorageError, match=r"^the folder '.*' may not be written; name a file in another one$"
    ):
        files.check_free(tmp_path / "a.json", force=True)


def test_write_makes_the_file_when_its_name_has_the_greatest_length(tmp_path):
    longest = "a" * os.pathconf(tmp_path, "PC_NAME_MAX")
    files.write(tmp_path / longest, b"x")
    assert names(tmp_path) == [longest]
    for name in (longest + "a", "null\0"):
        with pytest.raises(StorageError, match=r" cannot be a file: .*; name another one$"):
            files.check_free(tmp_path / name, force=False)
