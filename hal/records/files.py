"""Records as files: whole or not at all, never over an existing file without being told to."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from hal.errors import OutputExists, StorageError, UserError

R = TypeVar("R")


def check_free(path: Path, *, force: bool) -> None:
    """Ask before long work whether its result may be written.

    Raises:
        OutputExists: The file exists and ``force`` is false.
        StorageError: It is a folder, a device or a link to nothing; or its folder is not there or may not
            be written.
    """
    _place(path, force=force)


def _place(path: Path, *, force: bool) -> Path:
    """The file itself, behind links: to replace a link would leave what it points to as it was."""
    try:
        place = Path(os.path.realpath(path)) if path.is_symlink() else path
        mode = _mode(place)
        has_folder = place.parent.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, links in a circle, a null character
        why = getattr(error, "strerror", None) or error
        raise StorageError(f"{str(path)!r} cannot be a file: {why}; name another one") from error
    if mode is None and place is not path:
        raise StorageError(
            f"{str(path)!r} is a link to {str(place)!r}, which does not exist; remove the link"
        )
    if mode is not None and stat.S_ISDIR(mode):
        raise StorageError(f"{str(path)!r} is a folder; name a file in it")
    if mode is not None and not stat.S_ISREG(mode):
        # To replace it would take a device away from the whole machine.
        raise StorageError(f"{str(path)!r} is a device or a pipe, not a file; name another one")
    if mode is not None and not force:
        raise OutputExists(f"{str(path)!r} exists; use --force to overwrite it, or name another file")
    if not has_folder:
        raise StorageError(f"the folder {str(place.parent)!r} does not exist; create it first")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise StorageError(f"the folder {str(place.parent)!r} may not be written; name a file in another one")
    return place


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(path: Path, content: bytes | Callable[[IO[bytes]], Any], *, force: bool = False) -> None:
    """Write a file so that it is whole or absent, even when the disk fills or the process dies.

    Args:
        path: The file.
        content: Bytes, or a function that writes them into an open file.
        force: Replace an existing file.

    Raises:
        OutputExists: The file exists and ``force`` is false.
        StorageError: As :func:`check_free`, or the disk is full.
    """
    place = _place(path, force=force)
    # Not tempfile.mkstemp: its files can be read by their owner only, and the mode would stay. Not after
    # the file either: a name of the greatest length would grow beyond it.
    temporary = place.with_name(f".hal-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(temporary, place)
        else:
            # A hard link fails if another process made the file meanwhile; replace would hide it.
            _link(temporary, place, path)
    except OSError as error:
        if isinstance(error, OutputExists):
            raise
        raise StorageError(
            f"{str(path)!r} could not be written: {error.strerror or error}; nothing was left behind. "
            "Free some space or name another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # already moved to its place, or never made
            temporary.unlink()


def _link(temporary: Path, place: Path, path: Path) -> None:
    try:
        os.link(temporary, place)
    except FileExistsError:
        raise OutputExists(f"{str(path)!r} appeared while writing; use --force to overwrite it") from None
    except OSError:  # a file system without hard links
        os.replace(temporary, place)


def to_json(record: msgspec.Struct) -> bytes:
    """A record as indented JSON; infinities become null, as JSON has none."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def from_json(data: bytes, kind: type[R], what: str) -> R:
    """Read a record.

    Raises:
        UserError: The text is not JSON of this kind; says where and what was expected.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UserError(f"{what} is not a {kind.__name__} record: {error}") from error
