"""The store's database file: opened, checked, brought up to date, moved aside where it is damaged."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from hal.errors import StorageError

#: Marks the file as hal's: "HALP". Source: SQLite, "PRAGMA application_id".
APPLICATION_ID = 0x48414C50
#: How long to wait for other processes. A profile is written in milliseconds; this is for stopped machines.
_WAIT_S = 30.0

#: Write-ahead logging needs memory that all writers share, which other hosts do not.
#: Source: SQLite, "Write-Ahead Logging", disadvantage 1 ("does not work over a network filesystem").
_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs",
    "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs",
}  # fmt: skip

#: One tuple of statements per version; a store of version n has had the first n. Never change one that
#: was published: add another.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE profiles(
            row INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            created TEXT NOT NULL,
            model TEXT NOT NULL,
            model_digest TEXT NOT NULL,
            machine TEXT NOT NULL,
            hal_version TEXT NOT NULL,
            n_targets INTEGER NOT NULL,
            fastest TEXT NOT NULL,
            fastest_ns INTEGER NOT NULL,
            payload BLOB NOT NULL,
            checksum TEXT NOT NULL)""",
        "CREATE INDEX profiles_created ON profiles(created)",
        """CREATE TABLE targets(
            profile TEXT NOT NULL REFERENCES profiles(id) ON DELETE CASCADE,
            target TEXT NOT NULL,
            model_digest TEXT NOT NULL,
            inputs_digest TEXT NOT NULL,
            environment TEXT NOT NULL,
            hal_version TEXT NOT NULL,
            policy TEXT NOT NULL,
            status TEXT NOT NULL,
            has_kernels INTEGER NOT NULL,
            measured TEXT NOT NULL)""",
        "CREATE INDEX targets_profile ON targets(profile)",
        "CREATE INDEX targets_wanted ON targets(model_digest, environment, measured)",
        """CREATE TABLE kernels(
            profile TEXT NOT NULL REFERENCES profiles(id) ON DELETE CASCADE,
            signature TEXT NOT NULL,
            target TEXT NOT NULL,
            environment TEXT NOT NULL,
            ops TEXT NOT NULL,
            measured TEXT NOT NULL,
            payload BLOB NOT NULL,
            checksum TEXT NOT NULL)""",
        "CREATE INDEX kernels_profile ON kernels(profile)",
        "CREATE INDEX kernels_wanted ON kernels(target, signature)",
        """CREATE TABLE machines(
            environment TEXT PRIMARY KEY,
            created TEXT NOT NULL,
            payload BLOB NOT NULL,
            checksum TEXT NOT NULL)""",
        """CREATE TABLE damaged(
            kind TEXT NOT NULL,
            id TEXT NOT NULL,
            found TEXT NOT NULL,
            reason TEXT NOT NULL,
            payload BLOB NOT NULL,
            checksum TEXT NOT NULL)""",
    ),
    (
        """CREATE TABLE plans(
            key TEXT PRIMARY KEY,
            profile TEXT NOT NULL REFERENCES profiles(id) ON DELETE CASCADE,
            payload BLOB NOT NULL,
            checksum TEXT NOT NULL)""",
        "CREATE INDEX plans_profile ON plans(profile)",
    ),
)

_log = logging.getLogger("hal")


class _Damaged(Exception):
    """The file is no sound database."""


def open_file(
    path: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS
) -> tuple[sqlite3.Connection, list[str]]:
    """Open the database, make it where it is not there, and bring it up to date.

    A damaged file is moved aside, never deleted, and a new one is begun.

    Args:
        path: The file.
        migrations: As :data:`MIGRATIONS`.

    Returns:
        A connection that commits at once outside of ``BEGIN``, and sentences that the user should read.

    Raises:
        StorageError: It cannot be made, read or written; a newer hal or another program wrote it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the folder of the store, {str(path.parent)!r}, cannot be made: {error.strerror}; "
            "set HAL_HOME to a folder that may be written"
        ) from error
    with explained(path):
        try:
            return _prepared(path, migrations), []
        except _Damaged:
            with _alone(path.parent):
                return _replaced(path, migrations)


def _replaced(path: Path, migrations: Sequence[Sequence[str]]) -> tuple[sqlite3.Connection, list[str]]:
    try:  # another process may have begun a new one while this one waited
        return _prepared(path, migrations), []
    except _Damaged as error:
        aside = _move_aside(path)
        note = (
            f"the store {path.name} is damaged ({error}); it was moved to {aside.name} in the same folder "
            "and a new one was begun"
        )
    _log.warning("%s", note)
    return _prepared(path, migrations), [note]


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into errors that say what to do.

    Raises:
        StorageError: Instead of any ``sqlite3.Error``.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"the store {str(path)!r} {_reason(error)}") from error


def _reason(error: sqlite3.Error) -> str:
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return "could not be written: the disk is full; free some space, or set HAL_HOME to another folder"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return (
            f"is in use by another process and stayed so for {_WAIT_S:.0f} s; try again when that has ended"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return f"may not be written ({error}); set HAL_HOME to a folder that may"
    if _is_damage(error):
        return f"is damaged ({error}); run the command again: the file is moved aside and a new one is begun"
    return f"could not be used: {error}; free some space, or set HAL_HOME to another folder"


def _code(error: sqlite3.Error) -> int:
    # The upper bits say more than is needed. Source: SQLite, "Result and Error Codes".
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _is_damage(error: sqlite3.Error) -> bool:
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _prepared(path: Path, migrations: Sequence[Sequence[str]]) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
    # A flipped bit in a text must not make the row unreadable: its checksum tells.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    try:
        _check(connection, path, len(migrations))
        connection.execute("PRAGMA auto_vacuum = FULL")  # of use for a new file only, before its first table
        _set_journal(connection, path)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection, migrations)
    except sqlite3.DatabaseError as error:
        connection.close()
        if _is_damage(error):
            raise _Damaged(str(error)) from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path, newest: int) -> None:
    """Refuse what is not ours to change, before anything is written."""
    connection.execute("BEGIN")  # all of one moment: another process may just be making the tables
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (program,) = connection.execute("PRAGMA application_id").fetchone()
    (n_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    connection.execute("COMMIT")
    if program != APPLICATION_ID and (program or n_tables):
        raise StorageError(
            f"{str(path)!r} is a database of another program (application id {program}, expected "
            f"{APPLICATION_ID}); move it away, or set HAL_HOME to another folder"
        )
    if version > newest:
        raise StorageError(
            f"the store {str(path)!r} was written by a newer hal (version {version} of its format; this hal "
            f"knows up to {newest}); upgrade hal, or set HAL_HOME to another folder"
        )
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _Damaged(" ".join(str(found).split()))


def _set_journal(connection: sqlite3.Connection, path: Path) -> None:
    remote = _file_system(path.parent) in _NETWORK
    wanted = "delete" if remote else "wal"
    if connection.execute("PRAGMA journal_mode").fetchone() == (wanted,):
        return
    until_s = time.monotonic() + _WAIT_S
    while True:
        try:
            (got,) = connection.execute(f"PRAGMA journal_mode = {wanted}").fetchone()
            break
        except sqlite3.OperationalError as error:
            # SQLite does not wait by itself where two processes change the mode at once.
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until_s:
                raise
            time.sleep(0.01)
    if got != "wal":
        _log.warning(
            "the store %s uses the journal mode %r, because its file system (%s) has no write-ahead logging; "
            "writers wait for readers",
            path.name,
            got,
            _file_system(path.parent) or "unknown",
        )


def _file_system(folder: Path) -> str:
    """Type of the file system that holds a folder; empty where the system does not tell."""
    place = Path(os.path.realpath(folder))
    try:
        mounts = {Path(found.mountpoint): found.fstype for found in psutil.disk_partitions(all=True)}
    except (OSError, RuntimeError):  # a sandbox without the list of mounts
        return ""
    return next((mounts[parent].lower() for parent in (place, *place.parents) if parent in mounts), "")


def _migrate(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]]) -> None:
    if connection.execute("PRAGMA user_version").fetchone() == (len(migrations),):
        return
    with writing(connection):
        # Read again under the lock: another process may have done it.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for statement in (one for step in migrations[version:] for one in step):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {max(version, len(migrations))}")


@contextlib.contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction: all of the block or, where it raises or the process dies, nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself takes back what meets a full disk
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps two processes from moving aside, one after the other, the old file and then the new."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _move_aside(path: Path) -> Path:
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    names = (
        f"{path.stem}.damaged-{now}{number}{path.suffix}" for number in ("", *(f"-{i}" for i in range(1, 99)))
    )
    aside = next(place for place in (path.with_name(name) for name in names) if not place.exists())
    try:
        # What belongs to the file first: a new database must not find the log of the old one.
        for ending in ("-wal", "-shm", "-journal", ""):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{ending}", f"{aside}{ending}")
    except OSError as error:
        raise StorageError(
            f"the store {str(path)!r} is damaged and could not be moved aside: {error.strerror}; "
            "move it away yourself, or set HAL_HOME to another folder"
        ) from error
    return aside
