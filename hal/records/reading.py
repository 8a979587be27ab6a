"""Profiles of machines and models, and plans, from JSON: older versions are read, newer ones refused."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from hal.errors import UserError
from hal.records.files import from_json
from hal.records.machine import MACHINE_SCHEMA_VERSION, MachineProfile
from hal.records.plan import PLAN_SCHEMA_VERSION, Plan
from hal.records.profile import SCHEMA_VERSION, Profile

R = TypeVar("R", Profile, MachineProfile, Plan)


class _Head(msgspec.Struct):
    """What every version has; all else is left to the full reader."""

    schema_version: int
    hal_version: str


def read_profile(data: bytes, what: str) -> Profile:
    """Read a profile of any version up to this one's.

    Args:
        data: JSON.
        what: Names the text in errors, for example the file.

    Raises:
        UserError: It is no profile, or a newer hal wrote it.
    """
    return _read(data, Profile, SCHEMA_VERSION, what)


def read_machine(data: bytes, what: str) -> MachineProfile:
    """Read a machine profile of any version up to this one's.

    Args:
        data: JSON.
        what: Names the text in errors, for example the file.

    Raises:
        UserError: It is no machine profile, or a newer hal wrote it.
    """
    return _read(data, MachineProfile, MACHINE_SCHEMA_VERSION, what)


def read_plan(data: bytes, what: str) -> Plan:
    """Read a plan of any version up to this one's.

    Args:
        data: JSON.
        what: Names the text in errors, for example the file.

    Raises:
        UserError: It is no plan, or a newer hal wrote it.
    """
    return _read(data, Plan, PLAN_SCHEMA_VERSION, what)


def _read(data: bytes, kind: type[R], newest: int, what: str) -> R:
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UserError(f"{what} is not a {kind.__name__} record: {error}") from error
    if head.schema_version > newest:
        raise UserError(
            f"{what} was written by hal {head.hal_version} in version {head.schema_version} of the format; "
            f"this hal reads up to version {newest}: upgrade hal"
        )
    return from_json(data, kind, what)
