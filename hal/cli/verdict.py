"""The closing lines of a profile: which target to use. Only targets that answered rightly are named."""

from __future__ import annotations

from collections.abc import Iterable

from hal.cli.figures import error_of, median_of
from hal.records.profile import Profile, TargetProfile
from hal.records.targets import Target
from hal.units import format_ns


def verdict(profile: Profile) -> tuple[str, ...]:
    """The result in words.

    Returns:
        ``the result is:`` and the fastest target in fp32 and the fastest overall, each with what
        cannot be told from it in the noise; or that no target answered rightly.
    """
    ranking = profile.ranking
    if not ranking:
        return ("the result is: none of the targets answered rightly, so none is recommended",)
    fastest = ranking[0]
    exact = [target for target in ranking if _precision(target) == "fp32"]
    lines = ["the result is:"]
    if not exact:
        lines.append("fastest in fp32: none; no target in fp32 answered rightly")
    elif exact[0] is fastest:
        lines.append(f"fastest, in fp32 and overall: {_named(fastest, ranking)}")
        return tuple(lines)
    else:
        lines.append(f"fastest in fp32: {_named(exact[0], exact)}")
    gain = ""
    if exact:
        gain = f", {median_of(exact[0]) / max(median_of(fastest), 1):.2f} times as fast"
    lines.append(f"fastest overall: {_named(fastest, ranking)}{gain}, computing in {_precision(fastest)}")
    return tuple(lines)


def _named(target: TargetProfile, rivals: Iterable[TargetProfile]) -> str:
    error = "answers not checked" if target.relative_l2 is None else f"error {error_of(target)}"
    parts = [f"{format_ns(median_of(target))} a run", error]
    if target.accuracy is not None:
        parts.append(f"accuracy {target.accuracy:.4f}")
    if target.timing is not None and not target.timing.stable:
        parts.append("unstable")
    ties = [rival.target for rival in rivals if rival is not target and _tied(target, rival)]
    if ties:
        parts.append(f"within the noise of {', '.join(ties)}")
    return f"{target.target} ({', '.join(parts)})"


def _tied(winner: TargetProfile, rival: TargetProfile) -> bool:
    # Overlapping intervals of the medians are no proof of a tie, but no proof of a difference either.
    if winner.timing is None or rival.timing is None:
        return False
    return rival.timing.interval_low_ns <= winner.timing.interval_high_ns


def _precision(target: TargetProfile) -> str:
    return Target.parse(target.target).configuration.precision
