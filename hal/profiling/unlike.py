"""What keeps two profiles from being compared: conditions under which they were measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hal.records.comparison import Unlike
from hal.records.machine import Environment
from hal.records.profile import ModelInfo, Profile
from hal.units import format_bytes

_NOT_THERE = "none"


def unlike(a: Profile, b: Profile) -> tuple[Unlike, ...]:
    """Every condition that differs: the model, its inputs, hal, and the environment field by field."""
    pairs = [
        ("model digest", a.model.digest[:12], b.model.digest[:12]),
        ("inputs", *_inputs(a.model, b.model)),
        ("hal_version", a.hal_version, b.hal_version),
    ]
    found = tuple(Unlike(field=field, a=ours, b=theirs) for field, ours, theirs in pairs if ours != theirs)
    return found + unlike_environments(a.environment, b.environment)


def unlike_environments(a: Environment, b: Environment) -> tuple[Unlike, ...]:
    """Every field of the environment that differs."""
    pairs = _environment(a, b)
    return tuple(Unlike(field=field, a=ours, b=theirs) for field, ours, theirs in pairs if ours != theirs)


def _inputs(a: ModelInfo, b: ModelInfo) -> tuple[str, str]:
    """Digests of the values; their origin in words where a profile has no digest, as older ones."""
    if a.inputs_digest and b.inputs_digest:
        return a.inputs_digest[:12], b.inputs_digest[:12]
    return a.inputs_from, b.inputs_from


def _environment(a: Environment, b: Environment) -> Iterator[tuple[str, str, str]]:
    for field in ("system", "machine", "cpu", "n_cpus", "n_usable_cpus", "python"):
        yield field, str(getattr(a, field)), str(getattr(b, field))
    # As printed: what the kernel keeps for itself changes by some pages from boot to boot.
    yield "memory", format_bytes(a.memory_bytes), format_bytes(b.memory_bytes)
    ours, theirs = set(a.cpu_features), set(b.cpu_features)
    yield "cpu_features that the other lacks", _listed(ours - theirs), _listed(theirs - ours)
    yield from _each("package", a.packages, b.packages)
    yield from _each("setting", a.settings, b.settings)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or _NOT_THERE


def _each(what: str, a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for name in sorted({*a, *b}):
        yield f"{what} {name}", a.get(name, _NOT_THERE), b.get(name, _NOT_THERE)
