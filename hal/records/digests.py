"""Digests of records by what they say, the same before and after fields are added to their types."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import msgspec


def content_digest(record: msgspec.Struct) -> str:
    """SHA-256 of a record, as 64 hexadecimal digits.

    Fields at their default are left out, so that a record read by a later version of hal, whose type has
    more fields, keeps its digest.
    """
    plain = msgspec.json.encode(_lean(record), order="deterministic")
    return hashlib.sha256(plain).hexdigest()


def _lean(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {
            field.name: _lean(getattr(value, field.name))
            for field in _fields(type(value))
            if not _is_default(field, getattr(value, field.name))
        }
    if isinstance(value, tuple | list):
        return [_lean(one) for one in value]
    if isinstance(value, dict):
        return {name: _lean(one) for name, one in value.items()}
    return value


def _is_default(field: msgspec.structs.FieldInfo, value: Any) -> bool:
    if field.default is not msgspec.NODEFAULT:
        return bool(value == field.default)
    if field.default_factory is not msgspec.NODEFAULT:
        return bool(value == field.default_factory())
    return False


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)
