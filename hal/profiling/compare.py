"""Comparing profiles: target by target, end to end and block by block, with what noise may explain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

from hal import stats
from hal.errors import TargetError, UnlikeProfiles, problems
from hal.planning import units
from hal.profiling.unlike import unlike
from hal.records.comparison import (
    COMPARISON_SCHEMA_VERSION,
    BlockDifference,
    Comparison,
    Difference,
    KernelSum,
    Side,
    TargetComparison,
)
from hal.records.facts import ModelFacts
from hal.records.plan import Plan
from hal.records.profile import KernelCost, KernelTable, Profile, TargetProfile, Timing, UnitCost
from hal.stats import RatioEstimate
from hal.version import __version__


def compare_profiles(
    a: Profile,
    b: Profile,
    *,
    targets: Sequence[str] | None = None,
    anyway: bool = False,
    labels: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Compare the targets that two profiles share.

    Their bursts did not run side by side, so significance comes from
    :func:`hal.stats.independent_ratio` over the medians of bursts: runs within a burst are alike.

    Args:
        a: The baseline.
        b: What is compared with it.
        targets: Only these, or shell patterns of them; None for all.
        anyway: Compare although models or environments are unlike.
        labels: What to call the two.

    Raises:
        UnlikeProfiles: Model, inputs, hal or environment differ, and ``anyway`` is false; names each field.
        TargetError: They share no target, or none of those asked for.
    """
    differing = unlike(a, b)
    if differing and not anyway:
        found = [f"{one.field}: {one.a} in A, {one.b} in B" for one in differing]
        raise UnlikeProfiles(
            problems(f"{labels[0]} (A) and {labels[1]} (B) were measured under unlike conditions", found)
            + "\nmeasure both alike, or compare all the same with --anyway"
        )
    ours, theirs = ({one.target: one for one in profile.targets} for profile in (a, b))
    names = _chosen([name for name in ours if name in theirs], targets, ours, theirs)
    facts = a.facts or b.facts if a.model.digest == b.model.digest else None
    no_facts = (
        "the models differ, so their layers cannot be matched"
        if a.model.digest != b.model.digest
        else "neither profile tells of the model's nodes (it is of an older hal); measure again"
    )
    return Comparison(
        schema_version=COMPARISON_SCHEMA_VERSION,
        hal_version=__version__,
        a=side_of(a, labels[0]),
        b=side_of(b, labels[1]),
        targets=tuple(_compared(ours[name], theirs[name], facts, no_facts, paired=False) for name in names),
        unlike=differing,
        only_a=tuple(name for name in ours if name not in theirs),
        only_b=tuple(name for name in theirs if name not in ours),
    )


def compare_targets(profile: Profile, a: str, b: str, *, label: str = "A") -> Comparison:
    """Compare two targets of one profile.

    Where they ran in turn, significance comes from :func:`hal.stats.paired_ratio` over rounds, in which both
    met the same noise; else as in :func:`compare_profiles`. Blocks are compared by recorded instrumented
    runs, which are never interleaved.

    Args:
        profile: Both are in it.
        a: The baseline.
        b: What is compared with it.
        label: What to call the profile.

    Raises:
        TargetError: One of them is not there, both are the same, or one gave no right answer.
    """
    by_name = {one.target: one for one in profile.targets}
    missing = [name for name in (a, b) if name not in by_name]
    if missing:
        raise TargetError(
            f"{label} has no target {' and no target '.join(map(repr, missing))}; "
            f"it has {', '.join(by_name) or 'none'}"
        )
    if a == b:
        raise TargetError(f"{a!r} is named twice; name two targets: {label} has {', '.join(by_name)}")
    ours, theirs = by_name[a], by_name[b]
    compared = _compared(
        ours,
        theirs,
        profile.facts,
        "the profile does not tell of the model's nodes (it is of an older hal); measure again",
        paired=_in_turn(ours, theirs),
    )
    if compared.reason:
        raise TargetError(f"{a} and {b} of {label} cannot be compared: {compared.reason}")
    side = side_of(profile, label)
    return Comparison(
        schema_version=COMPARISON_SCHEMA_VERSION,
        hal_version=__version__,
        a=side,
        b=side,
        targets=(compared,),
    )


def _chosen(
    shared: Sequence[str],
    patterns: Sequence[str] | None,
    ours: dict[str, TargetProfile],
    theirs: dict[str, TargetProfile],
) -> list[str]:
    lists = (
        f"both have {', '.join(shared) or 'none'}; "
        f"only A has {', '.join(name for name in ours if name not in theirs) or 'none'}; "
        f"only B has {', '.join(name for name in theirs if name not in ours) or 'none'}"
    )
    if not shared:
        raise TargetError(f"A and B share no target: {lists}")
    if not patterns:
        return list(shared)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in shared):
            raise TargetError(f"no target of both A and B fits {pattern!r}: {lists}")
    return [name for name in shared if any(fnmatchcase(name, pattern) for pattern in patterns)]


def side_of(record: Profile | Plan, label: str) -> Side:
    """What a comparison says of a record that is compared."""
    return Side(
        label=label,
        model=record.model.name,
        digest=record.model.digest,
        created=record.created,
        hal_version=record.hal_version,
    )


def _in_turn(a: TargetProfile, b: TargetProfile) -> bool:
    """Whether burst i of both ran in one round."""
    return a.timing is not None and b.timing is not None and a.timing.group == b.timing.group


def _compared(
    a: TargetProfile, b: TargetProfile, facts: ModelFacts | None, no_facts: str, *, paired: bool
) -> TargetComparison:
    faults = [_fault(a, "A"), _fault(b, "B")]
    if any(faults) or a.timing is None or b.timing is None:
        return TargetComparison(
            a=a.target,
            b=b.target,
            reason="; ".join(filter(None, faults)),
            b_lost=not faults[0] and bool(faults[1]),
        )
    notes = [
        f"the figure of {side} is unstable: {timing.reason or 'no reason was told'}"
        for side, timing in (("A", a.timing), ("B", b.timing))
        if not timing.stable
    ]
    if a.policy != b.policy:
        notes.append("A and B were not measured for equally long (--time-s)")
    whole = end_to_end(a.timing, b.timing, paired=paired)
    missing = "; ".join(
        f"{side} has no kernel times{f' ({one.kernels_missing})' if one.kernels_missing else ''}"
        for side, one in (("A", a), ("B", b))
        if one.kernels is None
    )
    if facts is None or a.kernels is None or b.kernels is None:
        return TargetComparison(
            a=a.target,
            b=b.target,
            end_to_end=whole,
            blocks_missing=missing or no_facts,
            notes=tuple(notes),
        )
    return TargetComparison(
        a=a.target,
        b=b.target,
        end_to_end=whole,
        blocks=_blocks(facts, a.kernels, b.kernels),
        a_kernels=_sum(a.kernels, facts),
        b_kernels=_sum(b.kernels, facts),
        notes=tuple(notes),
    )


def _fault(target: TargetProfile, side: str) -> str:
    if target.status == "ok" and target.timing is not None:
        return ""
    told = {"ok": "was not timed", "failed": "failed"}.get(target.status, f"is {target.status}")
    return f"{target.target} {told} in {side}{f': {target.reason}' if target.reason else ''}"


def end_to_end(a: Timing, b: Timing, *, paired: bool) -> Difference:
    """The difference of two targets' plain runs.

    Args:
        a: The baseline.
        b: What is compared with it.
        paired: Whether burst i of both ran in one round.
    """
    ours, theirs = ([stats.median(burst) for burst in timing.bursts_ns if burst] for timing in (a, b))
    if not ours or not theirs:
        return difference(a.median_ns, b.median_ns, None)
    if not paired:
        return difference(
            a.median_ns, b.median_ns, stats.independent_ratio(theirs, ours), "bursts", len(ours), len(theirs)
        )
    # A target that had enough earlier took part in fewer rounds.
    n = min(len(ours), len(theirs))
    return difference(a.median_ns, b.median_ns, stats.paired_ratio(theirs[:n], ours[:n]), "pairs", n, n)


def _blocks(facts: ModelFacts, a: KernelTable, b: KernelTable) -> tuple[BlockDifference, ...]:
    found = units.blocks(facts, a, b)
    ops = {node.name: node.op for node in facts.nodes}
    ours, theirs = (units.kernels_of(facts, found, table) for table in (a, b))
    both = [(unit.costs.get(units.A), unit.costs.get(units.B)) for unit in found]
    whole_ns = sum(other.median_ns - one.median_ns for one, other in both if one and other)
    made = []
    for unit, (one, other) in zip(found, both, strict=True):
        differing = None
        if one is not None and other is not None:
            differing = _block(one, other, ours.get(unit.name, ()), theirs.get(unit.name, ()))
        made.append(
            BlockDifference(
                name=unit.name,
                nodes=unit.nodes,
                ops=tuple(dict.fromkeys(ops[name] for name in unit.nodes)),
                a=one,
                b=other,
                difference=differing,
                share=(differing.b_ns - differing.a_ns) / whole_ns if differing and whole_ns else None,
            )
        )
    return tuple(made)


def _block(a: UnitCost, b: UnitCost, ours: Sequence[KernelCost], theirs: Sequence[KernelCost]) -> Difference:
    one, other = units.sums_ns(ours), units.sums_ns(theirs)
    # What is folded takes no time in any run.
    one = one if ours else (0,) * len(other)
    other = other if theirs else (0,) * len(one)
    if not one or not other:
        return difference(a.median_ns, b.median_ns, None)
    estimate = stats.independent_ratio(other, one)
    return difference(a.median_ns, b.median_ns, estimate, "runs", len(one), len(other))


def difference(
    a_ns: int, b_ns: int, estimate: RatioEstimate | None, method: str = "", n_a: int = 0, n_b: int = 0
) -> Difference:
    """Two medians with what is known of their ratio.

    Args:
        a_ns: Median of A.
        b_ns: Median of B.
        estimate: Of the ratio of B to A; None where there are no samples.
        method: How it was made, see :class:`Difference`.
        n_a: Samples of A.
        n_b: Samples of B.
    """
    medians = b_ns / a_ns if a_ns else math.inf if b_ns else 1.0
    if estimate is None or (estimate.low == 0 and estimate.high == math.inf):
        # No samples, or too few for 95%.
        return Difference(a_ns=a_ns, b_ns=b_ns, ratio=_finite(medians), n_a=n_a, n_b=n_b)
    faster = "a" if estimate.low > 1 else "b" if estimate.high < 1 else ""
    if method != "pairs" and (b_ns - a_ns) * (1 if faster == "a" else -1) <= 0:
        # Of two samples that were not taken together, one with two modes, the medians can say the opposite.
        faster = ""
    return Difference(
        a_ns=a_ns,
        b_ns=b_ns,
        ratio=_finite(estimate.ratio if method == "pairs" else medians),
        low=_finite(estimate.low),
        high=_finite(estimate.high),
        faster=faster,
        method=method,
        n_a=n_a,
        n_b=n_b,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sum(table: KernelTable, facts: ModelFacts) -> KernelSum:
    known = {node.name for node in facts.nodes}
    return KernelSum(
        total_ns=table.total_ns,
        unattributed_ns=sum(kernel.median_ns for kernel in table.kernels if known.isdisjoint(kernel.nodes)),
        overhead=table.overhead,
        inflated=table.inflated,
    )
