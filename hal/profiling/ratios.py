"""Ratios between targets, round by round: noise that hits both sides of a round cancels."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hal import stats
from hal.errors import TargetError
from hal.records.profile import Profile, Ratio, TargetProfile


def against_fastest(targets: Sequence[TargetProfile]) -> tuple[Ratio, ...]:
    """Each target that answered rightly over the fastest of them."""
    good = [
        (target.timing.median_ns, target) for target in targets if target.status == "ok" and target.timing
    ]
    if not good:
        return ()
    fastest = min(good, key=lambda pair: pair[0])[1]
    return _ratios(targets, fastest)


def rebase(record: Profile, baseline: str) -> Profile:
    """The same profile with ratios against another target.

    Raises:
        TargetError: That target has no timing in it, or answered wrongly.
    """
    good = {target.target: target for target in record.targets if target.status == "ok" and target.timing}
    if baseline not in good:
        raise TargetError(
            f"baseline {baseline!r} was not measured or answered wrongly; "
            f"right ones are {', '.join(good) or 'none'}"
        )
    return msgspec.structs.replace(record, ratios=_ratios(record.targets, good[baseline]))


def _ratios(targets: Sequence[TargetProfile], baseline: TargetProfile) -> tuple[Ratio, ...]:
    good = (target for target in targets if target.status == "ok")
    return tuple(ratio for target in good if (ratio := _ratio(target, baseline)) is not None)


def _ratio(target: TargetProfile, baseline: TargetProfile) -> Ratio | None:
    ours, theirs = target.timing, baseline.timing
    if ours is None or theirs is None or ours.group != theirs.group:
        return None
    # Burst number i of each target of a group belongs to round i; a target that had enough earlier
    # took part in fewer rounds.
    ratios = [
        stats.median(a) / max(stats.median(b), 1)
        for a, b in zip(ours.bursts_ns, theirs.bursts_ns, strict=False)
    ]
    return Ratio(
        target=target.target,
        baseline=baseline.target,
        median=stats.median(ratios),
        p10=stats.percentile(ratios, 10),
        p90=stats.percentile(ratios, 90),
        n_rounds=len(ratios),
    )
