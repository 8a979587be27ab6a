"""Records as files: whole or not at all, never over an existing file without being told to."""

from __future__ import annotations

import contextlib
import os
import secrets
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
        StorageError: The folder is not there.
    """
    try:
        exists, has_folder = path.exists(), path.parent.is_dir()
    except OSError as error:  # for example a name that is too long
        raise StorageError(f"{str(path)!r} cannot be a file: {error.strerror}; name another one") from error
    if exists and not force:
        raise OutputExists(f"{str(path)!r} exists; use --force to overwrite it, or name another file")
    if not has_folder:
        raise StorageError(f"the folder {str(path.parent)!r} does not exist; create it first")


def write(path: Path, content: bytes | Callable[[IO[bytes]], Any], *, force: bool = False) -> None:
    """Write a file so that it is whole or absent, even when the disk fills or the process dies.

    Args:
        path: The file.
        content: Bytes, or a function that writes them into an open file.
        force: Replace an existing file.

    Raises:
        OutputExists: The file exists and ``force`` is false.
        StorageError: The disk is full or the folder cannot be written.
    """
    check_free(path, force=force)
    # Not tempfile.mkstemp: its files can be read by their owner only, and the mode would stay.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(temporary, path)
        else:
            # A hard link fails if another process made the file meanwhile; replace would hide it.
            _link(temporary, path)
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


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise OutputExists(f"{str(path)!r} appeared while writing; use --force to overwrite it") from None
    except OSError:  # a file system without hard links
        os.replace(temporary, path)


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
