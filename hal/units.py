"""Human units, only for printed text. Records hold integers in base units."""

from __future__ import annotations

import math

_TIME_STEPS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns"))
_BYTE_STEPS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
_BYTE_NAMES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}


def format_ns(duration_ns: float) -> str:
    """A duration with three significant digits: ``format_ns(1_234_567) == '1.23 ms'``."""
    if not math.isfinite(duration_ns):
        return "n/a"
    for size, name in _TIME_STEPS:
        # 999.5 us would print as "1e+03 us": go to the next unit where rounding would overflow.
        if abs(duration_ns) >= size * 0.9995:
            return f"{_three_digits(duration_ns / size)} {name}"
    return f"{_three_digits(duration_ns)} ns"


def format_bytes(n_bytes: float) -> str:
    """A size with binary prefixes: ``format_bytes(1536) == '1.50 KiB'``."""
    for size, name in _BYTE_STEPS:
        if abs(n_bytes) >= size:
            return f"{int(n_bytes)} B" if name == "B" else f"{_three_digits(n_bytes / size)} {name}"
    return f"{int(n_bytes)} B"


def format_rate(per_s: float, unit: str) -> str:
    """A rate with decimal prefixes: ``format_rate(4.1e10, 'FLOP/s') == '41.0 GFLOP/s'``."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(per_s) >= size * 0.9995:
            return f"{_three_digits(per_s / size)} {prefix}{unit}"
    return f"{_three_digits(per_s)} {unit}"


def parse_bytes(text: str) -> int:
    """Read ``8GiB``, ``512 MB`` or ``1000`` as a count of bytes.

    Raises:
        ValueError: The text is not a number followed by a known unit.
    """
    stripped = text.strip().replace(" ", "")
    digits = stripped.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = stripped[len(digits) :].lower() or "b"
    try:
        return int(float(digits) * _BYTE_NAMES[unit])
    except (KeyError, ValueError):
        raise ValueError(
            f"{text!r} is not a size; expected a number and one of "
            f"{', '.join(sorted(_BYTE_NAMES))}, for example 8GiB"
        ) from None


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:.0f}"
    if magnitude >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}"
