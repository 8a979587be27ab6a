"""What stands in the store: rows as the tables hold them, and records as they are asked for and found."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

import msgspec

from hal.errors import UserError
from hal.records.digests import content_digest
from hal.records.kernels import KernelRecord, kernel_records
from hal.records.machine import Environment
from hal.records.plan import Constraints
from hal.records.profile import Profile, TargetProfile

#: Digits of a content digest that name a profile. Of a million profiles two share 12 with a chance of 1 in
#: 560 (birthday bound: n^2 / 2 / 16^12).
_ID_DIGITS = 12

#: A row by the names of its columns.
Row = dict[str, str | int | bytes]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the list of profiles.

    Attributes:
        id: Names the profile in the store.
        created: ISO 8601 in UTC.
        model: Its name.
        model_digest: Of the bound graph and its weights.
        machine: The processor.
        hal_version: Of the hal that measured.
        n_targets: Targets in it, whatever their status.
        fastest: The fastest target that answered rightly; empty where none did.
        fastest_ns: Its end-to-end median; 0 where there is none.
    """

    id: str
    created: str
    model: str
    model_digest: str
    machine: str
    hal_version: str
    n_targets: int
    fastest: str
    fastest_ns: int

    def __str__(self) -> str:
        return f"{self.id} ({self.model}, {self.created})"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is about to be measured: results stored under equal terms need not be measured again.

    Attributes:
        model_digest: Of the bound graph, as in :class:`hal.records.profile.ModelInfo`.
        inputs_digest: Of the inputs' values; with an empty one nothing is valid.
        environment: Of this process.
        hal_version: Of this hal.
        policy: ``Policy.digest``; with an empty one nothing is valid.
        targets: As written by ``str(Target)``.
        kernels: Whether kernel times are needed.
    """

    model_digest: str
    inputs_digest: str
    environment: Environment
    hal_version: str
    policy: str
    targets: tuple[str, ...]
    kernels: bool = True


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A target's result found in the store.

    Attributes:
        result: As it was recorded.
        profile_id: The profile it stands in.
        measured: When it was measured, ISO 8601 in UTC.
    """

    result: TargetProfile
    profile_id: str
    measured: str


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a choice of a plan depends on.

    Attributes:
        profile: Id of the profile it is made from.
        constraints: The objective among them.
        budget_s: Seconds for each search.
        hal_version: Of the hal that chooses.
    """

    profile: str
    constraints: Constraints
    budget_s: float
    hal_version: str


def profile_id(profile: Profile) -> str:
    """The id a profile has in every store: 12 hexadecimal digits of its content, ``created`` left out."""
    return content_digest(msgspec.structs.replace(profile, created=""))[:_ID_DIGITS]


def profile_row(profile: Profile, id: str) -> Row:
    """The row of a profile.

    Raises:
        UserError: Its date is no ISO 8601 time.
    """
    best = profile.ranking[0] if profile.ranking else None
    payload = packed(profile)
    return {
        "id": id,
        "created": utc(profile.created),
        "model": profile.model.name,
        "model_digest": profile.model.digest,
        "machine": profile.environment.cpu,
        "hal_version": profile.hal_version,
        "n_targets": len(profile.targets),
        "fastest": best.target if best else "",
        "fastest_ns": best.timing.median_ns if best and best.timing else 0,
        "payload": payload,
        "checksum": checksum(payload),
    }


def target_rows(profile: Profile, id: str) -> list[Row]:
    """A row per target, with the terms under which its result is valid.

    Raises:
        UserError: A date is no ISO 8601 time.
    """
    environment = content_digest(profile.environment)
    return [
        {
            "profile": id,
            "target": one.target,
            "model_digest": profile.model.digest,
            "inputs_digest": profile.model.inputs_digest,
            "environment": environment,
            "hal_version": profile.hal_version,
            "policy": one.policy,
            "status": one.status,
            "has_kernels": int(one.kernels is not None),
            "measured": utc(one.measured or profile.created),
        }
        for one in profile.targets
    ]


def kernel_rows(profile: Profile, id: str) -> list[Row]:
    """A row per signature and target.

    Raises:
        UserError: A date is no ISO 8601 time.
    """
    environment = content_digest(profile.environment)
    measured = {one.target: utc(one.measured or profile.created) for one in profile.targets}
    rows: list[Row] = []
    for record in one_of_each(kernel_records(profile)):
        payload = msgspec.json.encode(record)
        rows.append(
            {
                "profile": id,
                "signature": record.signature,
                "target": record.target,
                "environment": environment,
                "ops": joined(record.ops),
                "measured": measured[record.target],
                "payload": payload,
                "checksum": checksum(payload),
            }
        )
    return rows


def packed(record: msgspec.Struct) -> bytes:
    """A record as compressed JSON."""
    return zlib.compress(msgspec.json.encode(record))


def checksum(payload: bytes) -> str:
    """SHA-256, as 64 hexadecimal digits."""
    return hashlib.sha256(payload).hexdigest()


def joined(ops: Sequence[str]) -> str:
    """Operators between line feeds, so that a search for one finds whole names."""
    return "".join(f"\n{op}\n" for op in ops)


def one_of_each(records: Iterable[KernelRecord]) -> Iterator[KernelRecord]:
    """Layers of one shape repeat in a model: the one of middle cost stands for them."""
    alike: dict[tuple[str, str], list[KernelRecord]] = {}
    for record in records:
        alike.setdefault((record.signature, record.target), []).append(record)
    for group in alike.values():
        yield sorted(group, key=lambda record: record.median_ns)[len(group) // 2]


def utc(text: str) -> str:
    """A time as ISO 8601 in UTC with seconds, so that texts sort as times do.

    Raises:
        UserError: It is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(
            f"the profile is dated {text!r}; expected an ISO 8601 time, for example 2026-01-31T12:00:00+00:00"
        ) from error
    return iso(found if found.tzinfo else found.replace(tzinfo=UTC))


def iso(moment: datetime) -> str:
    """A moment as ISO 8601 in UTC with seconds."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")
