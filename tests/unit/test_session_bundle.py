"""The file format of bundles: what was written comes back, and everything else is refused with one error."""

from __future__ import annotations

import functools
import io
import os
import re
import stat
import tempfile
import zipfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import BundleError, OutputExists, StorageError
from hal.records import files
from hal.session import bundle
from tests.unit.bundled import PLAIN, lying, written

LAW = settings(max_examples=400, deadline=None, derandomize=True, database=None)
replace = msgspec.structs.replace


@functools.cache
def folder() -> Path:
    """One for all examples of a law."""
    return Path(tempfile.mkdtemp(prefix="hal-test-"))


@functools.cache
def good() -> bytes:
    return written(folder() / "good.hal")


def everything(_: bundle.Member) -> bool:
    return True


def contents(path: Path) -> tuple[dict[str, bytes], bundle.Manifest]:
    opened = bundle.read(path, wanted=everything)
    return dict(opened.members), opened.manifest


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(BundleError) as raised:
        bundle.read(path)
    assert repr(str(path)) in raised.value.message
    return raised.value.message


# --- there and back --------------------------------------------------------------------------------------


def test_contents_come_back_when_a_bundle_is_read(tmp_path):
    path = tmp_path / "m.hal"
    written(path)
    members, manifest = contents(path)
    assert members == {**PLAIN, "blobs/0": b"code" * 9, "blobs/1": b""}
    assert [(m.backend, m.key) for m in manifest.members[-2:]] == [("openvino", "k0"), ("fake", "k1")]
    assert (manifest.hal_version, manifest.version) == ("0.1.0", bundle.BUNDLE_VERSION)


def test_blobs_are_not_read_when_they_are_not_asked_for(tmp_path):
    path = tmp_path / "m.hal"
    content = written(path)
    at = content.index(b"code")
    path.write_bytes(content[:at] + b"CODE" + content[at + 4 :])
    assert bundle.read(path).members == PLAIN
    with pytest.raises(BundleError, match=r"the digest of 'blobs/0' is not the manifest's: it is damaged"):
        bundle.read(path, wanted=everything)


@LAW
@given(st.lists(st.binary(max_size=64), min_size=4, max_size=4), st.lists(st.binary(max_size=9), max_size=4))
def test_contents_come_back_when_they_are_any_bytes(parts, blobs):
    path = folder() / "any.hal"
    given_ = dict(zip(bundle.names(0), parts, strict=True))
    written(path, given_, [bundle.Blob("b", str(at), blob) for at, blob in enumerate(blobs)])
    found, _ = contents(path)
    assert list(found.values()) == [*parts, *blobs]


def test_bytes_are_the_same_when_a_bundle_is_written_again(tmp_path):
    assert written(tmp_path / "a.hal") == written(tmp_path / "b.hal")


def test_other_tools_read_the_members_when_they_open_a_bundle_as_a_zip(tmp_path):
    path = tmp_path / "m.hal"
    written(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", *PLAIN, "blobs/0", "blobs/1"]
        assert archive.read("model.onnx") == PLAIN[bundle.MODEL]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_the_digest_differs_when_any_content_does(tmp_path):
    written(tmp_path / "a.hal")
    written(tmp_path / "b.hal", {**PLAIN, bundle.PLAN: b"{ }"})
    assert bundle.read(tmp_path / "a.hal").digest != bundle.read(tmp_path / "b.hal").digest


# --- writing ---------------------------------------------------------------------------------------------


def test_an_existing_file_stays_when_it_is_not_to_be_replaced(tmp_path):
    path = tmp_path / "m.hal"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExists, match="exists"):
        bundle.write(path, PLAIN, hal_version="0.1.0")
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        bundle.write(tmp_path / "m.hal", PLAIN, hal_version="0.1.0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [bundle.PLAN, bundle.MODEL])
def test_writing_is_refused_when_a_member_is_too_large(tmp_path, monkeypatch, name):
    limits = {**bundle.LIMITS, name: len(PLAIN[name]) - 1}
    monkeypatch.setattr(bundle, "LIMITS", limits)
    expected = f"{name!r} has {len(PLAIN[name])} bytes; expected 0 to {limits[name]}; leave out what"
    with pytest.raises(BundleError, match=expected):
        bundle.write(tmp_path / "m.hal", PLAIN, hal_version="0.1.0")
    assert list(tmp_path.iterdir()) == []


# --- damage ----------------------------------------------------------------------------------------------


@LAW
@given(st.data())
def test_reading_fails_or_is_right_when_any_byte_is_another(data):
    content = good()
    at = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(1, 255))
    path = folder() / "flipped.hal"
    path.write_bytes(content[:at] + bytes([content[at] ^ value]) + content[at + 1 :])
    expected = contents(folder() / "good.hal")
    try:
        found = contents(path)
    except BundleError:
        return
    assert found == expected


def test_reading_fails_when_any_one_byte_is_flipped():
    content, path = good(), folder() / "each.hal"
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(BundleError):
            bundle.read(path, wanted=everything)


def test_reading_fails_when_the_file_ends_anywhere():
    content, path = good(), folder() / "cut.hal"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(BundleError, match=r"empty|truncated"):
            bundle.read(path)


@LAW
@given(st.binary(max_size=200))
def test_reading_fails_when_the_file_is_anything(content):
    path = folder() / "noise.hal"
    for start in (b"", b"PK\3\4", good()[:43], good()[:300]):
        path.write_bytes(start + content)
        with pytest.raises(BundleError):
            bundle.read(path)


@pytest.mark.parametrize("more", [b"\0", b"PK\5\6", b"x" * 5000])
def test_reading_fails_when_something_was_appended(tmp_path, more):
    told = refused(tmp_path / "m.hal", good() + more)
    assert f"{len(more)} bytes follow its end" in told
    assert "nothing of it was used" in told


def test_reading_fails_when_something_was_put_before(tmp_path):
    told = refused(tmp_path / "m.hal", b"#!/bin/sh\n" + good())
    assert r"it begins with b'#!/b', a bundle with b'PK\x03\x04'" in told


def test_reading_fails_when_a_file_is_empty(tmp_path):
    assert "is empty; expected a bundle that session.save wrote" in refused(tmp_path / "m.hal", b"")


def test_reading_fails_when_the_file_is_another_zip(tmp_path):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    told = refused(tmp_path / "m.hal", made.getvalue())
    assert "is a zip archive but not a bundle: its first member is not 'manifest.json'" in told


def test_reading_fails_when_there_is_no_file(tmp_path):
    with pytest.raises(BundleError, match=r"there is no file '.*m\.hal'; expected a bundle"):
        bundle.read(tmp_path / "m.hal")


def test_reading_fails_at_once_when_the_file_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "m.hal")
    with pytest.raises(BundleError, match="is not a file; expected a bundle"):
        bundle.read(tmp_path / "m.hal")
    with pytest.raises(BundleError, match="is not a file; expected a bundle"):
        bundle.read(tmp_path)


def test_reading_fails_when_the_name_is_none():
    with pytest.raises(BundleError, match="cannot be the name of a file"):
        bundle.read("m\0.hal")


def test_reading_fails_when_the_disk_does(tmp_path, monkeypatch):
    written(tmp_path / "m.hal")

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(bundle, "open", broken, raising=False)
    with pytest.raises(StorageError, match=r"m\.hal' cannot be read: Input/output error; check"):
        bundle.read(tmp_path / "m.hal")


# --- lies ------------------------------------------------------------------------------------------------


def zipped(path: Path, how: int) -> bytes:
    """The members of a good bundle, packed by Python's zipfile."""
    made = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(made, "w", how) as archive:
        for name in source.namelist():
            archive.writestr(zipfile.ZipInfo(name), source.read(name), how)
    return made.getvalue()


def test_reading_fails_when_members_are_compressed(tmp_path):
    written(tmp_path / "good.hal")
    told = refused(tmp_path / "m.hal", zipped(tmp_path / "good.hal", zipfile.ZIP_DEFLATED))
    assert "the header of 'manifest.json' is not as hal writes it" in told
    assert "is 20, not 10" in told or "its compression method is 8, not 0" in told


def test_reading_fails_when_another_tool_packed_the_members(tmp_path):
    written(tmp_path / "good.hal")
    assert "is not as hal writes it" in refused(
        tmp_path / "m.hal", zipped(tmp_path / "good.hal", zipfile.ZIP_STORED)
    )


ESCAPES = ["../m.onnx", "/etc/passwd", "model.onnx", "manifest.json", "blobs/../x", "blobs/9"]


@pytest.mark.parametrize("name", ESCAPES)
def test_reading_fails_when_a_member_has_another_name(tmp_path, name):
    path = tmp_path / "m.hal"

    def change(manifest):
        return replace(manifest, members=(*manifest.members[:3], replace(manifest.members[3], name=name)))

    if name == "model.onnx":  # twice
        lying(path, lambda m: replace(m, members=(*m.members, replace(m.members[3], name=name))))
    else:
        lying(path, change)
    told = refused(path, path.read_bytes())
    assert "its members must be provenance.json, plan.json, profile.json, model.onnx" in told
    assert f"member {name!r} is not expected there" in told


def test_reading_fails_when_members_are_missing(tmp_path):
    path = tmp_path / "m.hal"
    lying(path, lambda manifest: replace(manifest, members=manifest.members[:2]))
    assert "some are missing" in refused(path, path.read_bytes())


def test_reading_fails_when_there_are_too_many_blobs(tmp_path):
    path = tmp_path / "m.hal"
    blobs = tuple(
        bundle.Member(name=f"blobs/{at}", n_bytes=0, crc32=0, sha256="", backend="b", key="k")
        for at in range(bundle.MOST_BLOBS + 1)
    )
    lying(path, lambda manifest: replace(manifest, members=(*manifest.members, *blobs)))
    assert "it has 1025 compiled blobs; at most 1024 are read" in refused(path, path.read_bytes())


@pytest.mark.parametrize(("name", "backend", "key"), [("model.onnx", "b", "k"), ("blobs/0", "", "k")])
def test_reading_fails_when_a_blob_has_no_key_or_another_member_has_one(tmp_path, name, backend, key):
    path = tmp_path / "m.hal"
    one = bundle.Member(name=name, n_bytes=0, crc32=0, sha256="", backend=backend, key=key)
    keep = 3 if name == "model.onnx" else 4
    lying(path, lambda manifest: replace(manifest, members=(*manifest.members[:keep], one)))
    assert f"{name!r} must have a backend and a key if it is a blob, else none" in refused(
        path, path.read_bytes()
    )


@pytest.mark.parametrize("size", [-1, 65 << 20, 1 << 40])
def test_nothing_is_allocated_when_a_member_says_that_it_is_huge(tmp_path, size):
    path = tmp_path / "m.hal"
    written(path)
    manifest = bundle.read(path).manifest
    first = msgspec.json.encode(
        replace(manifest, members=tuple(replace(m, n_bytes=size) for m in manifest.members[:4]))
    )
    assert re.search(
        f"'provenance.json' has {size} bytes; expected 0 to 1048576", refused(path, starting(first))
    )


def starting(first: bytes) -> bytes:
    """A file that begins with this manifest and has nothing else."""
    heads, _ = bundle._frame(first, ())
    return heads[0] + first


def test_reading_fails_when_members_are_too_large_together(tmp_path):
    path = tmp_path / "m.hal"
    lying(path, lambda m: m)
    manifest = bundle.read(path).manifest
    big = tuple(
        bundle.Member(name=f"blobs/{at}", n_bytes=(2 << 30) - 1, crc32=0, sha256="", backend="b", key="k")
        for at in range(2)
    )
    first = msgspec.json.encode(replace(manifest, members=(*manifest.members, *big)))
    assert re.search(
        r"its members have \d+ bytes; a bundle has at most 4294967295", refused(path, starting(first))
    )


def test_reading_fails_when_a_crc_is_no_32_bits(tmp_path):
    path = tmp_path / "m.hal"
    lying(path, lambda m: m)
    manifest = bundle.read(path).manifest
    first = msgspec.json.encode(
        replace(manifest, members=tuple(replace(m, crc32=1 << 32) for m in manifest.members))
    )
    assert re.search(
        "'provenance.json' has CRC-32 4294967296; expected 32 bits", refused(path, starting(first))
    )


def test_reading_fails_when_the_manifest_is_huge(tmp_path, monkeypatch):
    path = tmp_path / "m.hal"
    written(path)
    monkeypatch.setattr(bundle, "LIMITS", {**bundle.LIMITS, bundle.MANIFEST: 100})
    assert "bytes; at most 100 are read" in refused(path, path.read_bytes())


def test_reading_fails_when_a_digest_is_anothers(tmp_path):
    path = tmp_path / "m.hal"

    def change(manifest):
        return replace(manifest, members=tuple(replace(m, sha256="0" * 64) for m in manifest.members))

    lying(path, change)
    told = refused(path, path.read_bytes())
    assert "the digest of 'provenance.json' is not the manifest's: it is damaged" in told


def test_reading_fails_when_the_directory_says_something_else(tmp_path):
    # As a symbolic link the last member would be written through, were a bundle ever extracted.
    content = good()
    plain, link = (stat.S_IFREG | 0o644) << 16, (stat.S_IFLNK | 0o777) << 16
    changed = content.replace(plain.to_bytes(4, "little"), link.to_bytes(4, "little"))
    assert len(changed) == len(content) != 0
    assert changed != content
    assert "the directory at its end is not as hal writes it" in refused(tmp_path / "m.hal", changed)


@pytest.mark.parametrize("version", [0, 2, -1, 2**63])
def test_reading_fails_when_the_version_is_another(tmp_path, version):
    path = tmp_path / "m.hal"
    lying(path, lambda m: {"format": "hal bundle", "version": version, "hal_version": "9.9", "new": True})
    told = refused(path, path.read_bytes())
    assert f"was written by hal 9.9 in version {version} of the format; this hal reads version 1" in told
    assert "use a hal that fits, or compile the model again and save it" in told


def test_reading_fails_when_the_format_is_another(tmp_path):
    path = tmp_path / "m.hal"
    lying(path, lambda m: replace(m, format="bundle of hay"))
    assert "its manifest says 'bundle of hay'; expected 'hal bundle'" in refused(path, path.read_bytes())


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"null",
        b'{"format": "hal bundle"}',
        b'{"format": "hal bundle", "version": 1, "hal_version": "0", "members": [], "more": 1}',
        b'{"format": "hal bundle", "version": 1, "hal_version": "0", "members": [{"name": 1}]}',
        b'{"format": "\xff", "version": 1, "hal_version": "0", "members": []}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\x80\x04\x95.",
    ],
)
def test_reading_fails_when_the_manifest_is_not_one(tmp_path, manifest):
    path = tmp_path / "m.hal"
    lying(path, lambda _: manifest)
    told = refused(path, path.read_bytes())
    assert "'manifest.json' in" in told
    assert "is not what it should be" in told
    assert "get the bundle again from where it came" in told
