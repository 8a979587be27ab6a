"""The file format of bundles: a zip archive of stored members that is written in one way and read in one way.

Layout: local header and data of each member, in the order of :func:`names`, then the central directory and
its end record. All headers follow from name, size and CRC-32 of the members, so the reader works out what
they must be and compares bytes. What is compressed, encrypted, appended, left out, doubled, linked, out of
order or named otherwise is refused without a rule of its own, and no header of a stranger's is followed.

Zip, so that any tool shows and extracts the members (``unzip m.hal model.onnx``); stored, because weights
hardly shrink, and a member that is read as it lies cannot grow.

Source: PKWARE, ".ZIP File Format Specification" 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from hal.errors import BundleError, StorageError
from hal.records import files

#: Version of the layout and of what the members mean. Readers refuse all others.
BUNDLE_VERSION = 1

MANIFEST, PROVENANCE, PLAN, PROFILE, MODEL = (
    "manifest.json",
    "provenance.json",
    "plan.json",
    "profile.json",
    "model.onnx",
)
_BLOB = "blobs/"

#: Most bytes of a member. Source: protobuf's limit of 2 GiB for a model; a profile of 20 targets with 2000
#: kernels is below 20 MiB; a blob holds the weights once or twice.
LIMITS: Mapping[str, int] = {
    MANIFEST: 1 << 20,
    PROVENANCE: 1 << 20,
    PLAN: 64 << 20,
    PROFILE: 64 << 20,
    MODEL: (2 << 30) - 1,
    _BLOB: (2 << 30) - 1,
}
#: Most bytes of a bundle: what the headers can say without the 64-bit extension. Source: as above, 4.4.1.4.
LARGEST = (4 << 30) - 1
#: Most compiled blobs. Source: more partitions than any plan has; it bounds the manifest.
MOST_BLOBS = 1024

S = TypeVar("S", bound=msgspec.Struct)

_FORMAT = "hal bundle"
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_LOCAL_FIELDS = (
    *("signature", "version needed", "flags", "compression method", "time", "date"),
    *("CRC-32", "compressed size", "size", "length of the name", "length of the extra field"),
)
#: Version needed for stored members, and midnight of 1 January 1980. Source: as above, 4.4.3 and 4.4.6.
_NEEDED, _TIME, _DATE = 10, 0, 0x21
#: Made by Unix, a plain file that all may read. Source: as above, 4.4.2 and 4.4.15; stat.h.
_MADE_BY, _ATTRIBUTES = 3 << 8 | _NEEDED, (stat.S_IFREG | 0o644) << 16


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the manifest says of a member.

    Attributes:
        name: One of :func:`names`.
        n_bytes: Its size.
        crc32: As the headers of the archive have it; for other tools.
        sha256: Of its content, as hex; what hal checks.
        backend: Of a blob: the backend that made it.
        key: Of a blob: what it was made by and for, see :func:`hal.session.bundle_blobs.key_of`.
    """

    name: str
    n_bytes: int
    crc32: int
    sha256: str
    backend: str = ""
    key: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first member: which others there are. Its own integrity is its CRC-32's.

    Attributes:
        format: Always ``hal bundle``.
        version: :data:`BUNDLE_VERSION` of the writer.
        hal_version: The writer.
        members: All others, in the order of the file.
    """

    format: str
    version: int
    hal_version: str
    members: tuple[Member, ...]


class _Head(msgspec.Struct):
    """What every version's manifest has."""

    format: str
    version: int
    hal_version: str


@dataclass(frozen=True)
class Blob:
    """A compiled partition as bytes: code of a native runtime.

    Attributes:
        backend: That made it.
        key: What it was made by and for.
        content: As ``CompiledBlob.blob`` returned it.
    """

    backend: str
    key: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Opened:
    """A bundle whose layout was checked and whose members were verified.

    Attributes:
        manifest: Its manifest.
        digest: sha256 of the manifest, as hex: it identifies the bundle, for it has the digests of all else.
        members: Content by name, of those that were wanted.
    """

    manifest: Manifest
    digest: str
    members: Mapping[str, bytes] = field(repr=False)


def names(n_blobs: int) -> list[str]:
    """Names of all members but the manifest, in the order of the file."""
    return [PROVENANCE, PLAN, PROFILE, MODEL, *(f"{_BLOB}{number}" for number in range(n_blobs))]


def limit_of(name: str) -> int:
    """Most bytes of a member."""
    return LIMITS[_BLOB if name.startswith(_BLOB) else name]


# --- writing -------------------------------------------------------------------------------------------


def write(
    path: Path,
    contents: Mapping[str, bytes],
    blobs: Sequence[Blob] = (),
    *,
    hal_version: str,
    force: bool = False,
) -> None:
    """Write a bundle, whole or not at all.

    Args:
        path: The file.
        contents: Of the members ``provenance.json``, ``plan.json``, ``profile.json`` and ``model.onnx``.
        blobs: Compiled partitions.
        hal_version: Of the writer.
        force: Replace an existing file.

    Raises:
        BundleError: A member or the whole is larger than a bundle can hold.
        OutputExists: The file exists and ``force`` is false.
        StorageError: It cannot be written.
    """
    parts = [contents[name] for name in names(0)] + [blob.content for blob in blobs]
    about = [("", "")] * len(contents) + [(blob.backend, blob.key) for blob in blobs]
    members = tuple(
        Member(
            name=name,
            n_bytes=len(part),
            crc32=zlib.crc32(part),
            sha256=hashlib.sha256(part).hexdigest(),
            backend=backend,
            key=key,
        )
        for name, part, (backend, key) in zip(names(len(blobs)), parts, about, strict=True)
    )
    manifest = Manifest(format=_FORMAT, version=BUNDLE_VERSION, hal_version=hal_version, members=members)
    if fault := _sizes(members):
        raise BundleError(f"{str(path)!r} cannot be written: {fault}; leave out what it can do without")
    first = msgspec.json.encode(manifest)
    heads, tail = _frame(first, members)

    def content(file: IO[bytes]) -> None:
        for head, part in zip(heads, [first, *parts], strict=True):
            file.write(head)
            file.write(part)
        file.write(tail)

    files.write(path, content, force=force)


def _frame(first: bytes, members: Sequence[Member]) -> tuple[list[bytes], bytes]:
    """Every byte of the archive that is not content: local headers, and what follows the last member."""
    heads, entries, at = [], [], 0
    for name, crc, size in _entries(first, members):
        encoded = name.encode()
        shared = (_NEEDED, 0, 0, _TIME, _DATE, crc, size, size, len(encoded), 0)
        heads.append(_LOCAL.pack(b"PK\3\4", *shared) + encoded)
        entries.append(
            _CENTRAL.pack(b"PK\1\2", _MADE_BY, *shared, 0, 0, 0, _ATTRIBUTES, at) + encoded,
        )
        at += len(heads[-1]) + size
    directory = b"".join(entries)
    n = len(entries)
    return heads, directory + _END.pack(b"PK\5\6", 0, 0, n, n, len(directory), at, 0)


def _entries(first: bytes, members: Sequence[Member]) -> Iterator[tuple[str, int, int]]:
    yield MANIFEST, zlib.crc32(first), len(first)
    for member in members:
        yield member.name, member.crc32, member.n_bytes


# --- reading -------------------------------------------------------------------------------------------


def is_no_blob(member: Member) -> bool:
    """Whether a member is data, not code."""
    return not member.name.startswith(_BLOB)


def read(path: str | os.PathLike[str], *, wanted: Callable[[Member], bool] = is_no_blob) -> Opened:
    """Read a bundle, and believe nothing that it says before it is checked.

    The whole layout is checked before any member is read, and every member that is read against its digest.
    Nothing is written, extracted, imported or run. At most the file's own size is taken of memory.

    Args:
        path: The file.
        wanted: Which members to read; without it all but the compiled blobs.

    Raises:
        BundleError: It is no bundle, of another version, or damaged; says what is wrong and what to do.
        StorageError: It cannot be read.
    """
    what = repr(os.fspath(path))
    try:
        # A pipe or a device would block or never end, so it must not even be opened.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BundleError(f"{what} is not a file; expected a bundle that session.save wrote")
        with open(path, "rb") as file:
            return _read(file, what, wanted)
    except FileNotFoundError:
        raise BundleError(f"there is no file {what}; expected a bundle that session.save wrote") from None
    except OSError as error:
        raise StorageError(
            f"{what} cannot be read: {error.strerror or error}; check its permissions and its disk"
        ) from error
    except ValueError as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{what} cannot be the name of a file: {error}") from error  # a null character


def _read(file: IO[bytes], what: str, wanted: Callable[[Member], bool]) -> Opened:
    size = os.fstat(file.fileno()).st_size
    first = _first(file, what)
    manifest = _manifest(first, what)
    members = manifest.members
    if fault := _members(members) or _sizes(members):
        raise _refused(what, fault)
    heads, tail = _frame(first, members)
    lengths = [len(first), *(member.n_bytes for member in members)]
    expected = sum(map(len, heads)) + sum(lengths) + len(tail)
    if size != expected:
        how = "it is truncated" if size < expected else f"{size - expected} bytes follow its end"
        raise _refused(what, f"it has {size} bytes, and its manifest describes {expected}: {how}")
    at = 0
    starts = []
    for name, head, length in zip([MANIFEST, *(m.name for m in members)], heads, lengths, strict=True):
        file.seek(at)
        found = file.read(len(head))
        if found != head:
            raise _refused(what, f"the header of {name!r} is not as hal writes it: {_unlike(found, head)}")
        starts.append(at + len(head))
        at = starts[-1] + length
    file.seek(at)
    if file.read(len(tail) + 1) != tail:
        raise _refused(what, "the directory at its end is not as hal writes it")
    contents = {}
    for member, start in zip(members, starts[1:], strict=True):
        if not wanted(member):
            continue
        file.seek(start)
        content = file.read(member.n_bytes)
        # Where the file shrank meanwhile, the digest tells.
        if hashlib.sha256(content).hexdigest() != member.sha256:
            raise _refused(what, f"the digest of {member.name!r} is not the manifest's: it is damaged")
        contents[member.name] = content
    return Opened(manifest, hashlib.sha256(first).hexdigest(), contents)


def _first(file: IO[bytes], what: str) -> bytes:
    """The manifest's bytes, after its header and its CRC-32 were checked."""
    wanted = MANIFEST.encode()
    head = file.read(_LOCAL.size + len(wanted))
    if not head:
        raise BundleError(f"{what} is empty; expected a bundle that session.save wrote")
    if not b"PK\3\4".startswith(head[:4]):
        raise BundleError(
            f"{what} is not a bundle: it begins with {head[:4]!r}, a bundle with {b'PK' + bytes((3, 4))!r}; "
            "expected a file that session.save wrote"
        )
    if len(head) < _LOCAL.size + len(wanted):
        raise _refused(what, f"it ends after {len(head)} bytes: it is truncated")
    if head[_LOCAL.size :] != wanted:
        raise BundleError(
            f"{what} is a zip archive but not a bundle: its first member is not {MANIFEST!r}; expected a "
            "file that session.save wrote (other tools' archives are refused, even of a bundle's members)"
        )
    crc, size = struct.unpack_from("<II", head, 14)
    expected = _LOCAL.pack(b"PK\3\4", _NEEDED, 0, 0, _TIME, _DATE, crc, size, size, len(wanted), 0) + wanted
    if head != expected:
        raise _refused(what, f"the header of {MANIFEST!r} is not as hal writes it: {_unlike(head, expected)}")
    if size > LIMITS[MANIFEST]:
        raise _refused(what, f"its manifest has {size} bytes; at most {LIMITS[MANIFEST]} are read")
    first = file.read(size)
    if len(first) < size:
        raise _refused(what, f"it ends within its manifest, {size - len(first)} bytes short: it is truncated")
    if zlib.crc32(first) != crc:
        raise _refused(what, "the CRC-32 of its manifest is not its header's: it is damaged")
    return first


def _manifest(first: bytes, what: str) -> Manifest:
    head = decode(first, _Head, f"{MANIFEST!r} in {what}")
    if head.format != _FORMAT:
        raise BundleError(f"{what} is not a bundle: its manifest says {head.format!r}; expected {_FORMAT!r}")
    if head.version != BUNDLE_VERSION:
        raise BundleError(
            f"{what} was written by hal {head.hal_version} in version {head.version} of the format; this hal "
            f"reads version {BUNDLE_VERSION}: use a hal that fits, or compile the model again and save it"
        )
    return decode(first, Manifest, f"{MANIFEST!r} in {what}")


def decode(data: bytes, kind: type[S], what: str) -> S:
    """Read a record out of a bundle.

    Raises:
        BundleError: It is not JSON of this kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # ValueError: text that is no UTF-8; RecursionError: brackets in brackets without end.
        raise BundleError(
            f"{what} is not what it should be: {error}; get the bundle again from where it came"
        ) from error


def _members(members: Sequence[Member]) -> str:
    """What is wrong with the members' names; empty where nothing is."""
    n_blobs = max(len(members) - len(names(0)), 0)
    expected = names(n_blobs)
    if n_blobs > MOST_BLOBS:
        return f"it has {n_blobs} compiled blobs; at most {MOST_BLOBS} are read"
    told = [member.name for member in members]
    if told != expected:
        listed = ", ".join(expected[:5])
        wrong = next((name for name, other in zip(told, expected, strict=False) if name != other), None)
        where = f"member {wrong!r} is not expected there" if wrong is not None else "some are missing"
        return f"its members must be {listed}, each once and in this order; {where}"
    bad = [m.name for m in members if bool(m.backend and m.key) != m.name.startswith(_BLOB)]
    return f"{bad[0]!r} must have a backend and a key if it is a blob, else none" if bad else ""


def _sizes(members: Sequence[Member]) -> str:
    """What is wrong with the members' sizes; empty where nothing is."""
    for member in members:
        if not 0 <= member.n_bytes <= limit_of(member.name):
            return f"{member.name!r} has {member.n_bytes} bytes; expected 0 to {limit_of(member.name)}"
        if not 0 <= member.crc32 < 1 << 32:
            return f"{member.name!r} has CRC-32 {member.crc32}; expected 32 bits"
    total = sum(member.n_bytes for member in members) + 2 * LIMITS[MANIFEST]
    return f"its members have {total} bytes; a bundle has at most {LARGEST}" if total > LARGEST else ""


def _unlike(found: bytes, expected: bytes) -> str:
    """The first field of a local header that differs, in words."""
    if len(found) < len(expected):
        return "it is cut short"
    for name, one, other in zip(
        _LOCAL_FIELDS, _LOCAL.unpack_from(found), _LOCAL.unpack_from(expected), strict=True
    ):
        if one != other:
            return f"its {name} is {one!r}, not {other!r}"
    return f"its name is {found[_LOCAL.size :]!r}, not {expected[_LOCAL.size :]!r}"


def _refused(what: str, fault: str) -> BundleError:
    return BundleError(
        f"{what} cannot be used: {fault}; nothing of it was used. Get it again from where it came, or "
        "compile the model again and save it"
    )
