"""Comparing plans: what they cost, and which nodes they place differently."""

from __future__ import annotations

from hal.errors import UnlikeProfiles, problems
from hal.profiling.compare import end_to_end, side_of
from hal.profiling.unlike import unlike_environments
from hal.records.comparison import Difference, Unlike
from hal.records.plan import Plan
from hal.records.plan_comparison import Move, PlanComparison


def compare_plans(
    a: Plan,
    b: Plan,
    *,
    anyway: bool = False,
    limit: float | None = None,
    labels: tuple[str, str] = ("A", "B"),
) -> PlanComparison:
    """Compare two plans.

    Args:
        a: The baseline.
        b: What is compared with it.
        anyway: Compare although models or environments are unlike.
        limit: Share by which B may be slower; None for any. Measured figures count where both have them
            and the 95% interval of their ratio says so; else predicted ones.
        labels: What to call the two.

    Raises:
        UnlikeProfiles: Model, hal or environment differ, and ``anyway`` is false; names each field.
    """
    differing = _unlike(a, b)
    if differing and not anyway:
        found = [f"{one.field}: {one.a} in A, {one.b} in B" for one in differing]
        raise UnlikeProfiles(
            problems(f"{labels[0]} (A) and {labels[1]} (B) were planned under unlike conditions", found)
            + "\nplan both alike, or compare all the same with --anyway"
        )
    moves, n_same = _moves(a, b)
    measured = end_to_end(a.measured, b.measured, paired=False) if a.measured and b.measured else None
    return PlanComparison(
        a=side_of(a, labels[0]),
        b=side_of(b, labels[1]),
        unlike=differing,
        objectives=(a.constraints.objective, b.constraints.objective),
        predicted_ns=(a.predicted.latency_ns, b.predicted.latency_ns),
        bounds=(a.bound.gap, b.bound.gap),
        n_partitions=(len(a.partitions), len(b.partitions)),
        n_transfers=(_n_moved(a), _n_moved(b)),
        measured=measured,
        moves=moves,
        n_same=n_same,
        limit=limit,
        too_slow=limit is not None and _is_slower(a, b, measured, limit),
    )


def _is_slower(a: Plan, b: Plan, measured: Difference | None, limit: float) -> bool:
    if measured is None:
        return b.predicted.latency_ns > a.predicted.latency_ns * (1 + limit)
    return measured.faster == "a" and (measured.ratio is None or measured.ratio > 1 + limit)


def _unlike(a: Plan, b: Plan) -> tuple[Unlike, ...]:
    pairs = [
        ("model digest", a.model.digest[:12], b.model.digest[:12]),
        ("hal_version", a.hal_version, b.hal_version),
        ("objective", a.constraints.objective, b.constraints.objective),
        ("machine", a.machine, b.machine),
    ]
    found = tuple(Unlike(field=field, a=one, b=other) for field, one, other in pairs if one != other)
    if a.environment is not None and b.environment is not None:
        found += unlike_environments(a.environment, b.environment)
    return found


def _moves(a: Plan, b: Plan) -> tuple[tuple[Move, ...], int]:
    ours, theirs = ({n: p.target for p in plan.partitions for n in p.nodes} for plan in (a, b))
    moved: dict[tuple[str, str], list[str]] = {}
    n_same = 0
    for node in dict.fromkeys([*ours, *theirs]):
        pair = (ours.get(node, ""), theirs.get(node, ""))
        if pair[0] == pair[1]:
            n_same += 1
        else:
            moved.setdefault(pair, []).append(node)
    found = [Move(a=one, b=other, nodes=tuple(nodes)) for (one, other), nodes in moved.items()]
    return tuple(sorted(found, key=lambda move: -len(move.nodes))), n_same


def _n_moved(plan: Plan) -> int:
    return sum(transfer.source >= 0 for transfer in plan.transfers)
