"""The store: every profile is kept, once, and found again by model, target and environment."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from hal.errors import ProfileNotFound, StorageError, UserError
from hal.profiling.store_file import explained, open_file, writing
from hal.profiling.store_rows import (
    Asked,
    Row,
    Stored,
    Summary,
    Wanted,
    checksum,
    iso,
    joined,
    kernel_rows,
    packed,
    profile_id,
    profile_row,
    target_rows,
    utc,
)
from hal.records.digests import content_digest
from hal.records.kernels import KernelRecord
from hal.records.machine import Environment, MachineProfile
from hal.records.places import data_folder
from hal.records.plan import Plan
from hal.records.profile import Profile
from hal.records.reading import read_machine, read_plan, read_profile

__all__ = ["Asked", "Store", "Stored", "Summary", "Wanted", "load_profile", "profile_id"]

R = TypeVar("R")

#: Fewer would be taken for a digest by chance, and prune would delete what nobody meant.
_DIGEST_DIGITS = 6
#: Profiles listed in an error.
_LISTED = 5
_SUMMARY = ", ".join(Summary.__struct_fields__)

_log = logging.getLogger("hal")


def load_profile(text: str) -> Profile:
    """The profile that a word of the command line names.

    Args:
        text: A file, else an id in the user's store, the start of one, or ``latest``.

    Raises:
        UserError: The file is no profile, or a newer hal wrote it.
        ProfileNotFound: There is no such file or profile, or several begin like this.
        StorageError: The file or the store cannot be read.
    """
    path = Path(text)
    try:
        if path.is_file():
            return read_profile(path.read_bytes(), repr(text))
    except OSError as error:
        raise StorageError(f"{text!r} cannot be read: {error.strerror or error}") from error
    if os.sep in text or path.suffix:
        raise ProfileNotFound(
            f"there is no file {text!r}; name a file that hal profile wrote, or an id from hal profiles list"
        )
    with Store.open() as store:
        try:
            return store.get(text)
        except ProfileNotFound as error:
            if store.notes:  # the file was damaged: that is why the profile is not there
                raise ProfileNotFound("; ".join([error.message, *store.notes])) from error
            raise


class Store:
    """All profiles of a user, in one file.

    Any number of processes may use it at once; each method is one transaction, whole or not at all. One
    object belongs to one thread.

    Attributes:
        path: The file.
        notes: Sentences the user should read: what was damaged and set aside.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, notes: list[str]) -> None:
        self.path = path
        self.notes = notes
        self._connection = connection

    @classmethod
    def open(cls, folder: Path | None = None) -> Self:
        """Open the store, and make it where it is not there.

        Args:
            folder: Where it lies; None for :func:`hal.records.places.data_folder`.

        Raises:
            StorageError: It cannot be made, read or written; a newer hal or another program wrote it.
        """
        path = (folder or data_folder()) / "profiles.sqlite3"
        return cls(path, *open_file(path))

    def close(self) -> None:
        """Let go of the file. A second call does nothing."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, id: str) -> bool:
        with explained(self.path):
            return (
                self._connection.execute("SELECT 1 FROM profiles WHERE id = ?", (id,)).fetchone() is not None
            )

    def put(self, profile: Profile) -> str:
        """Keep a profile; of two with equal content the newer date is kept.

        Returns:
            Its id.

        Raises:
            UserError: A date in it is no ISO 8601 time.
            StorageError: It could not be written; the store is as before.
        """
        id = profile_id(profile)
        row, targets, kernels = profile_row(profile, id), target_rows(profile, id), kernel_rows(profile, id)
        with explained(self.path), writing(self._connection):
            is_new = id not in self
            self._insert(
                "profiles",
                [row],
                "ON CONFLICT(id) DO UPDATE SET created = excluded.created, payload = excluded.payload, "
                "checksum = excluded.checksum WHERE excluded.created > created",
            )
            if is_new:
                self._insert("targets", targets)
                self._insert("kernels", kernels)
        return id

    def get(self, prefix: str) -> Profile:
        """A stored profile.

        Args:
            prefix: Its id, the start of it, or ``latest``.

        Raises:
            ProfileNotFound: No id begins like this, or several do; the text lists candidates.
            UserError: A newer hal wrote it.
            StorageError: The store cannot be read, or the profile in it is damaged; it was set aside.
        """
        id = self.find(prefix)
        found = self._profile(id)
        if found is None:
            raise StorageError(
                f"the profile {id} in the store was damaged and has been set aside; run hal profile again, "
                "or hal profiles import where it was exported"
            )
        return found

    def find(self, prefix: str) -> str:
        """The id that a user means.

        Args:
            prefix: An id, the start of one, or ``latest``.

        Raises:
            ProfileNotFound: No id begins like this, or several do; the text lists candidates.
            StorageError: The store cannot be read.
        """
        if prefix == "latest":
            found = self.summaries(limit=1)
        else:
            # Digits only: in a pattern, % and _ would stand for any text.
            is_id = re.fullmatch(r"[0-9a-f]+", prefix) is not None
            found = self._summaries("WHERE id LIKE ?", [f"{prefix}%"]) if is_id else []
        if len(found) == 1:
            return found[0].id
        if found:
            more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
            raise ProfileNotFound(
                f"{prefix!r} begins the ids of {len(found)} profiles: "
                f"{', '.join(map(str, found[:_LISTED]))}{more}; give more digits"
            )
        there = self.summaries(limit=_LISTED)
        if not there:
            raise ProfileNotFound(
                f"there is no profile {prefix!r}: the store {str(self.path)!r} is empty; "
                "run hal profile MODEL first"
            )
        raise ProfileNotFound(
            f"there is no profile {prefix!r}; the newest are {', '.join(map(str, there))}; "
            "hal profiles list shows all"
        )

    def summaries(self, model: str | None = None, limit: int | None = None) -> list[Summary]:
        """Stored profiles, newest first.

        Args:
            model: Only of models with this name, with a name that fits this shell pattern, or with a digest
                that begins with these 6 digits or more.
            limit: At most so many.

        Raises:
            StorageError: The store cannot be read.
        """
        where, values = "", []
        if model is not None:
            where = "WHERE model = ? OR model GLOB ?"
            values = [model] * 2
            if len(model) >= _DIGEST_DIGITS:
                where += " OR substr(model_digest, 1, length(?)) = ?"
                values *= 2
        return self._summaries(where, values, limit)

    def _summaries(self, where: str, values: Sequence[str], limit: int | None = None) -> list[Summary]:
        with explained(self.path):
            rows = self._connection.execute(
                f"SELECT {_SUMMARY} FROM profiles {where} ORDER BY created DESC, row DESC LIMIT ?",
                (*values, -1 if limit is None else limit),
            ).fetchall()
        return [Summary(**dict(zip(Summary.__struct_fields__, row, strict=True))) for row in rows]

    def remove(self, ids: Sequence[str]) -> None:
        """Delete profiles and the kernel records that came from them; ids that are not there are skipped.

        Raises:
            StorageError: The store could not be written; nothing is deleted.
        """
        with explained(self.path), writing(self._connection):
            self._connection.executemany("DELETE FROM profiles WHERE id = ?", [(id,) for id in ids])

    def prune(
        self,
        *,
        older_than: timedelta | None = None,
        keep: int | None = None,
        model: str | None = None,
        dry_run: bool = False,
    ) -> list[Summary]:
        """Delete old profiles.

        Args:
            older_than: Only profiles created longer ago than this.
            keep: The newest so many of each model's name stay.
            model: Only these models, as for :meth:`summaries`.
            dry_run: Delete nothing, only say what would be.

        Returns:
            What is deleted, newest first.

        Raises:
            UserError: Neither an age nor a number is given, or the number is negative.
            StorageError: The store could not be written; nothing is deleted.
        """
        if older_than is None and keep is None:
            raise UserError(
                "nothing says what to delete; give an age (--older-than 30d), a number to keep (--keep 5), "
                "or both"
            )
        if keep is not None and keep < 0:
            raise UserError(f"{keep} profiles cannot be kept; expected 0 or more")
        before = _before(older_than)
        seen: dict[str, int] = {}
        chosen = []
        for one in self.summaries(model):
            seen[one.model] = seen.get(one.model, 0) + 1
            if seen[one.model] > (keep or 0) and (before is None or one.created < before):
                chosen.append(one)
        if chosen and not dry_run:
            self.remove([one.id for one in chosen])
        return chosen

    def valid(self, wanted: Wanted) -> dict[str, Stored]:
        """What need not be measured again: per target its newest result under equal terms.

        A result is valid where model, inputs, environment, version of hal and policy are equal, it did not
        fail, and it has kernel times where these are wanted (a refused target cannot).

        Raises:
            StorageError: The store cannot be read.
        """
        if not wanted.inputs_digest or not wanted.policy:
            return {}
        with explained(self.path):
            rows = self._connection.execute(
                "SELECT target, profile, measured FROM targets WHERE model_digest = ? AND inputs_digest = ? "
                "AND environment = ? AND hal_version = ? AND policy = ? "
                "AND (status = 'refused' OR status IN ('ok', 'wrong') AND has_kernels >= ?) "
                "ORDER BY measured DESC, rowid DESC",
                (
                    wanted.model_digest,
                    wanted.inputs_digest,
                    content_digest(wanted.environment),
                    wanted.hal_version,
                    wanted.policy,
                    wanted.kernels,
                ),
            ).fetchall()
        opened: dict[str, Profile | None] = {}
        found: dict[str, Stored] = {}
        for target, id, measured in rows:
            if target in found or target not in wanted.targets:
                continue
            if id not in opened:
                try:
                    opened[id] = self._profile(id)
                except UserError as error:  # written by a hal between two versions, for example
                    opened[id] = None
                    self._note(error.message)
            profile = opened[id]
            if profile is not None:
                result = next(one for one in profile.targets if one.target == target)
                found[target] = Stored(result=result, profile_id=id, measured=measured)
        return found

    def put_machine(self, machine: MachineProfile) -> None:
        """Keep a machine profile, in place of an older one of the same environment.

        Raises:
            UserError: Its date is no ISO 8601 time.
            StorageError: It could not be written; the store is as before.
        """
        payload = packed(machine)
        row: Row = {
            "environment": content_digest(machine.environment),
            "created": utc(machine.created),
            "payload": payload,
            "checksum": checksum(payload),
        }
        with explained(self.path), writing(self._connection):
            self._insert(
                "machines",
                [row],
                "ON CONFLICT(environment) DO UPDATE SET created = excluded.created, "
                "payload = excluded.payload, checksum = excluded.checksum WHERE excluded.created >= created",
            )

    def machine(self, environment: Environment) -> MachineProfile | None:
        """The newest machine profile of an environment; None where none was kept.

        Raises:
            StorageError: The store cannot be read.
        """
        return self._sound("machines", "environment", content_digest(environment), read_machine)

    def put_plan(self, asked: Asked, plan: Plan) -> None:
        """Keep the plan that was chosen from a profile, as long as the profile is kept.

        Args:
            asked: All that the choice depends on.
            plan: In place of an older one under equal terms.

        Raises:
            StorageError: It could not be written, or the profile is not there; the store is as before.
        """
        payload = packed(plan)
        row: Row = {
            "key": content_digest(asked),
            "profile": asked.profile,
            "payload": payload,
            "checksum": checksum(payload),
        }
        with explained(self.path), writing(self._connection):
            self._insert(
                "plans",
                [row],
                "ON CONFLICT(key) DO UPDATE SET payload = excluded.payload, checksum = excluded.checksum",
            )

    def plan(self, asked: Asked) -> Plan | None:
        """The plan that was chosen under these terms; None where none was kept.

        Raises:
            UserError: A newer hal wrote it.
            StorageError: The store cannot be read.
        """
        return self._sound("plans", "key", content_digest(asked), read_plan)

    def kernels(
        self, target: str | None = None, op: str | None = None, environment: Environment | None = None
    ) -> list[KernelRecord]:
        """Kernel records of all stored profiles, the newest of each signature, target and environment.

        Args:
            target: Only of this target, as written by ``str(Target)``.
            op: Only kernels that compute an operator of this type.
            environment: Only measured in this one; None mixes machines.

        Raises:
            StorageError: The store cannot be read.
        """
        with explained(self.path):
            rows = self._connection.execute(
                "SELECT signature, target, environment, CAST(payload AS BLOB), checksum FROM kernels "
                "WHERE (:target IS NULL OR target = :target) AND (:op IS NULL OR instr(ops, :op)) "
                "AND (:environment IS NULL OR environment = :environment) ORDER BY measured DESC, rowid DESC",
                {
                    "target": target,
                    "op": None if op is None else joined((op,)),
                    "environment": None if environment is None else content_digest(environment),
                },
            ).fetchall()
        found: dict[tuple[str, str, str], KernelRecord] = {}
        n_damaged = 0
        for signature, where, measured_in, payload, expected in rows:
            if (signature, where, measured_in) in found:
                continue
            if checksum(payload) != expected:
                n_damaged += 1
                continue
            found[signature, where, measured_in] = msgspec.json.decode(payload, type=KernelRecord)
        if n_damaged:
            self._note(f"{n_damaged} damaged kernel records of the store {self.path.name} were left out")
        return list(found.values())

    def _insert(self, table: str, rows: Sequence[Row], conflict: str = "") -> None:
        if rows:
            names = ", ".join(rows[0])
            values = ", ".join(f":{name}" for name in rows[0])
            self._connection.executemany(f"INSERT INTO {table}({names}) VALUES ({values}) {conflict}", rows)

    def _profile(self, id: str) -> Profile | None:
        return self._sound("profiles", "id", id, read_profile)

    def _sound(self, table: str, key: str, id: str, read: Callable[[bytes, str], R]) -> R | None:
        """Read a row; a damaged one is moved to the table ``damaged``, with a note."""
        with explained(self.path):
            row = self._connection.execute(
                f"SELECT CAST(payload AS BLOB), checksum FROM {table} WHERE {key} = ?", (id,)
            ).fetchone()
        if row is None:
            return None
        payload, expected = row
        if checksum(payload) == expected:
            return read(zlib.decompress(payload), f"{table} {id} of the store")
        with explained(self.path), writing(self._connection):
            moved = (table, id, iso(datetime.now(UTC)), "wrong checksum", payload, expected)
            self._connection.execute("INSERT INTO damaged VALUES (?, ?, ?, ?, ?, ?)", moved)
            self._connection.execute(f"DELETE FROM {table} WHERE {key} = ?", (id,))
        self._note(
            f"{table} {id} of the store {self.path.name} is damaged (its checksum is wrong); it was set aside"
        )
        return None

    def _note(self, text: str) -> None:
        _log.warning("%s", text)
        self.notes.append(text)


def _before(age: timedelta | None) -> str | None:
    """The moment that was so long ago; None without an age."""
    if age is None:
        return None
    try:
        return iso(datetime.now(UTC) - age)
    except OverflowError:  # before the year 1: nothing is as old
        return ""
