"""Why no plan can be: which constraint cannot hold, and by how much. The cheap reasons come first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from hal.errors import Infeasible, problems
from hal.planning.domains import Flags, by_group, domains, groups, need
from hal.planning.exhaustive import applies as is_tiny
from hal.planning.exhaustive import search
from hal.planning.labelling import Labelling, labels, minimised
from hal.planning.milp_additive import offer
from hal.planning.partitions import Dag, dag
from hal.planning.problem import Problem
from hal.planning.search import Best, Budget
from hal.planning.violations import SLACK, is_over

#: Findings of one kind that are written out.
_SHOWN = 3
#: Pools and targets up to which every set of them is looked at.
_SETS = 10
#: Columns up to which HiGHS looks for a choice of targets that fits.
_COLUMNS = 200_000
#: Share of all memory that HiGHS's tolerances may make of nothing.
_BYTES = 1e-6
_TITLE = "no plan keeps all constraints"
_ADVICE = "raise the limit, allow more targets, or take pins away"


def refuse(problem: Problem) -> None:
    """Raise if a constraint cannot hold, as far as a look at each constraint alone tells; takes little time.

    Raises:
        Infeasible: All that was found, each with amounts.
    """
    found = [*_unsupported(problem)]
    found = found or [*_apart(problem)]
    if not found:
        found = [*_too_large(problem), *_too_heavy(problem), *_too_wrong(problem), *_too_many(problem)]
    if found:
        raise Infeasible(problems(_TITLE, found) + f"\nTo change that, {_ADVICE}.")


def explain(problem: Problem, best: Best, budget: Budget) -> None:
    """Find a plan where other solvers found none, or say why there is none.

    HiGHS looks for the choice of targets that passes the limits of memory by the fewest bytes. If that is
    more than nothing, no plan can be. Otherwise the choice is offered. Where it breaks another constraint
    (activations, partitions), tiny problems are searched through.

    Raises:
        Infeasible: No plan can be, with the constraint and the amount; or none was found: the text says.
    """
    fit(problem, best, budget)
    if best.proposal is None and is_tiny(problem):
        _searched(problem, best, budget)
    if best.proposal is None:
        why = "nothing was tried"
        if best.rejected is not None:
            why = "; ".join(one.text for one in best.rejected.violations)
        raise Infeasible(
            f"no plan was found within the time, and none is proven impossible; of the plans tried, this is "
            f"what the nearest breaks: {why}. Allow more time, or {_ADVICE}."
        )


def _names(names: tuple[str, ...], numbers: list[int]) -> str:
    shown = ", ".join(names[at] for at in numbers[:_SHOWN])
    return shown + (f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else "")


def _why(problem: Problem, unit: int, target: int) -> str:
    reason = problem.reasons.get((unit, target), "it cannot compute it")
    return f"{problem.target_names[target]}: {reason}"


def _unsupported(problem: Problem) -> Iterator[str]:
    alone = np.flatnonzero(~problem.allowed.any(axis=1)).tolist()
    for unit in alone[:_SHOWN]:
        reasons = "; ".join(_why(problem, unit, b) for b in range(problem.n_targets))
        yield f"no target can compute {problem.unit_names[unit]} ({reasons})"
    if len(alone) > _SHOWN:
        yield f"nor can any compute {len(alone) - _SHOWN} more units"


def _apart(problem: Problem) -> Iterator[str]:
    """Groups without a common target."""
    grouped = np.flatnonzero(problem.same_device >= 0)
    for number in np.unique(problem.same_device[grouped]).tolist():
        units = np.flatnonzero(problem.same_device == number)
        lacking = (~problem.allowed[units]).sum(axis=0)
        if lacking.all():
            b = int(lacking.argmin())
            missing = units[~problem.allowed[units, b]].tolist()
            yield (
                f"the {len(units)} units of group {number} must share a target and none can compute all: "
                f"the nearest lacks {len(missing)} of them, {_names(problem.unit_names, missing)} "
                f"({_why(problem, missing[0], b)})"
            )


def _possible(problem: Problem) -> tuple[Flags, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """bool[groups, t]: targets that can compute a group; and the group of each unit."""
    group = groups(problem)
    return by_group(group, ~problem.allowed) == 0, group


def _too_large(problem: Problem) -> Iterator[str]:
    """Groups that fit nowhere even alone."""
    can, group = _possible(problem)
    beside = np.zeros(can.shape)
    np.maximum.at(beside, group, need(problem))
    required = by_group(group, problem.weight_bytes) + beside
    capacity = problem.capacity[problem.pool]
    short = np.where(can, required - capacity, np.inf)
    for g in np.flatnonzero((short > capacity * SLACK).all(axis=1))[:_SHOWN].tolist():
        b = int(short[g].argmin())
        units = np.flatnonzero(group == g).tolist()
        pool = problem.pool_names[problem.pool[b]]
        yield (
            f"{_names(problem.unit_names, units)}: {required[g, b]:.0f} bytes are needed on "
            f"{problem.target_names[b]}, with what is held while it runs; {pool} has {capacity[b]:.0f}, "
            f"{short[g, b]:.0f} too few, and no other target is nearer"
        )


def _too_heavy(problem: Problem) -> Iterator[str]:
    """Sets of pools that must hold more weights than they can."""
    can, group = _possible(problem)
    weight = by_group(group, problem.weight_bytes)
    pools = np.flatnonzero(np.isfinite(problem.capacity)).tolist()
    sizes = range(1, len(pools) + 1) if len(pools) <= _SETS else (1, len(pools))
    for size in sizes:
        for chosen in itertools.combinations(pools, size):
            inside = np.isin(problem.pool, chosen)
            bound = np.asarray(~can[:, ~inside].any(axis=1), np.bool_)
            least = float(np.where(can, weight, np.inf)[np.ix_(bound, inside)].min(axis=1).sum())
            room = float(problem.capacity[list(chosen)].sum())
            if is_over(least, room):
                names = _names(problem.pool_names, list(chosen))
                yield (
                    f"units that can lie in {names} only: {int(bound[group].sum())}; their "
                    f"weights take at least {least:.0f} bytes and there are {room:.0f}, {least - room:.0f} "
                    "too few"
                )
                return


def _too_wrong(problem: Problem) -> Iterator[str]:
    can, group = _possible(problem)
    least = float(np.where(can, by_group(group, problem.error), np.inf).min(axis=1).sum())
    if is_over(least, problem.max_error):
        yield (
            f"the error is at least {least:.6g}, each unit on the target where its error is smallest; "
            f"at most {problem.max_error:.6g} is allowed, {least - problem.max_error:.6g} less"
        )


def _too_many(problem: Problem) -> Iterator[str]:
    """More partitions, or targets, than are allowed, because of what can compute which unit."""
    limits = problem.max_partitions, problem.partitions_per_target
    if problem.start == "unit" or not (limits[0] or limits[1].any()):
        return
    can, group = _possible(problem)
    units = can[group]
    most = problem.max_partitions
    if most:
        count = max(_changes(problem, units), _targets_needed(can))
        if count > most:
            yield (
                f"at least {count} partitions are needed, because of what can compute which unit; at most "
                f"{most} are allowed, {count - most} less"
            )
    for b in np.flatnonzero(problem.partitions_per_target).tolist():
        limit = int(problem.partitions_per_target[b])
        count = _returns(dag(problem), problem, units, b)
        if count > limit:
            yield (
                f"at least {count} partitions on {problem.target_names[b]} are needed, because units between "
                f"cannot run there; at most {limit} are allowed, {count - limit} less"
            )


def _changes(problem: Problem, can: Flags) -> int:
    """Partitions on some path, at the least: each change of target along a path needs a new one."""
    graph = dag(problem)
    count = np.where(can, 1, np.inf)
    for unit in problem.order.tolist():
        makers = graph.before[graph.before_at[unit] : graph.before_at[unit + 1]]
        if len(makers):
            stay = count[makers]
            least = np.minimum(stay, stay.min(axis=1, keepdims=True) + 1).max(axis=0)
            count[unit] = np.where(can[unit], least, np.inf)
    return int(float(count.min(axis=1).max()))


def _targets_needed(can: Flags) -> int:
    """The fewest targets that can compute everything between them; 1 where there are too many to try."""
    kinds = np.unique(can, axis=0)
    n_targets = can.shape[1]
    if n_targets > _SETS:
        return 1
    for size in range(1, n_targets + 1):
        for chosen in itertools.combinations(range(n_targets), size):
            if kinds[:, chosen].any(axis=1).all():
                return size
    return int(n_targets)


def _returns(graph: Dag, problem: Problem, can: Flags, b: int) -> int:
    """How often some path must enter target b: units that only b can compute, with others between."""
    must = can[:, b] & (can.sum(axis=1) == 1)
    # Twice the number of entries, and one less while the path is on b: the larger, the worse.
    state = np.zeros(problem.n_units, np.int64)
    for unit in problem.order.tolist():
        makers = graph.before[graph.before_at[unit] : graph.before_at[unit + 1]]
        worst = int(state[makers].max()) if len(makers) else 0
        if must[unit]:
            worst = worst if worst % 2 else worst + 1
        elif not can[unit, b]:
            worst = worst + 1 if worst % 2 else worst
        state[unit] = worst
    return (int(state.max()) + 1) // 2


def fit(problem: Problem, best: Best, budget: Budget) -> None:
    """Offer the choice of targets that passes memory by the fewest bytes.

    Nothing is done where nothing can bind, or where the problem is too large for HiGHS.

    Raises:
        Infeasible: Even that choice passes it.
    """
    if problem.n_units * problem.n_targets > _COLUMNS or np.isinf(problem.capacity).all():
        return
    least, target, is_proven = _least_excess(problem, budget, with_error=True)
    if is_proven and least > _BYTES * (1 + problem.capacity[np.isfinite(problem.capacity)].sum()):
        text = f"every choice of targets passes the memory there is, by {least:.0f} bytes at least"
        if target is not None:
            beside = _shortages(problem, target)
            text += f"; the nearest choice: {beside}" if beside else ""
        if np.isfinite(problem.max_error) and problem.error.any():
            without = _least_excess(problem, budget, with_error=False)
            if without[0] < least / 2 and without[1] is not None:
                error = float(problem.error[np.arange(problem.n_units), without[1]].sum())
                text = (
                    f"memory and the error budget cannot both be kept: within the error of "
                    f"{problem.max_error:.6g}, {least:.0f} bytes are missing; a choice that fits has "
                    f"the error {error:.6g}, {error - problem.max_error:.6g} too much"
                )
        raise Infeasible(f"{_TITLE}: {text}. To change that, {_ADVICE}.")
    if target is not None:
        offer(best, target, "fitting")


def _least_excess(
    problem: Problem, budget: Budget, with_error: bool
) -> tuple[float, np.ndarray[tuple[int], np.dtype[np.int32]] | None, bool]:
    """A proven lower bound of bytes over all pools' limits; a choice of targets; whether it is proven."""
    loose = problem.replace(
        capacity=np.full(problem.n_pools, np.inf), max_error=problem.max_error if with_error else np.inf
    )
    if not domains(loose).any(axis=1).all():
        return 0.0, None, False
    model = Labelling(loose, with_costs=False)
    beside = need(problem)
    total = []
    for pool in np.flatnonzero(np.isfinite(problem.capacity)).tolist():
        limit = float(problem.capacity[pool])
        inside = [int(b) for b in np.flatnonzero(problem.pool == pool)]
        terms = [term for b in inside for term in model.units(problem.weight_bytes[:, b], b)]
        most = float(problem.weight_bytes.max(axis=1).sum() + beside.max()) + 1
        weight, excess = model.column(upper=most), model.column(upper=most)
        model.row(0, 0, [*terms, (weight, -1.0)])
        model.row(-np.inf, limit, [(weight, 1.0), (excess, -1.0)])
        for unit in np.flatnonzero(beside[:, inside].any(axis=1)).tolist():
            held = [(model.at(unit, b), float(beside[unit, b])) for b in inside if model.at(unit, b) >= 0]
            if held:
                model.row(-np.inf, limit, [*held, (weight, 1.0), (excess, -1.0)])
        total.append((excess, 1.0))
    solved = minimised(model, total, max(budget.left, 0.5), stop_at=0.0)
    target = labels(model, solved.values) if solved.values is not None else None
    return max(solved.bound, 0.0) if np.isfinite(solved.bound) else 0.0, target, np.isfinite(solved.bound)


def _shortages(problem: Problem, target: np.ndarray[tuple[int], np.dtype[np.int32]]) -> str:
    units = np.arange(problem.n_units)
    weights = np.bincount(problem.pool[target], problem.weight_bytes[units, target], problem.n_pools)
    beside = np.zeros(problem.n_pools)
    np.maximum.at(beside, problem.pool[target], need(problem)[units, target])
    return ", ".join(
        f"{problem.pool_names[pool]} needs {weights[pool] + beside[pool]:.0f} bytes and has "
        f"{problem.capacity[pool]:.0f}"
        for pool in range(problem.n_pools)
        if is_over(float(weights[pool] + beside[pool]), float(problem.capacity[pool]))
    )


def _searched(problem: Problem, best: Best, budget: Budget) -> None:
    """Search a tiny problem through, and where there is no plan, relax one limit until there is."""
    budget = budget if not budget.is_spent else Budget(1.0)
    is_done, _ = search(problem, best, budget)
    if best.proposal is not None or not is_done:
        return
    free = problem.capacity.copy()
    roomy = problem.replace(capacity=np.full(problem.n_pools, np.inf), objective="memory")
    is_done, excess = search(roomy, Best(roomy), Budget(5.0), free=free)
    found = []
    if is_done and np.isfinite(excess):
        names = _names(problem.pool_names, np.flatnonzero(np.isfinite(problem.capacity)).tolist())
        found.append(
            f"{names}: weights, activations and workspace pass what there is by {excess:.0f} bytes at least, "
            "in whatever order and however placed"
        )
    lowest = problem.max_partitions + 1
    for limit in range(lowest, problem.n_units + 1) if lowest > 1 else ():
        relaxed = problem.replace(max_partitions=limit)
        if _has_plan(relaxed):
            found.append(
                f"at least {limit} partitions are needed; at most {problem.max_partitions} are allowed, "
                f"{limit - problem.max_partitions} less"
            )
            break
    limits = problem.partitions_per_target
    for more in range(1, problem.n_units + 1) if limits.any() else ():
        if _has_plan(problem.replace(partitions_per_target=np.where(limits > 0, limits + more, 0))):
            found.append(
                f"the limits of partitions per target are too low: {more} more would do, and fewer would not"
            )
            break
    found = found or ["each limit alone can be kept; together they cannot, all plans were tried"]
    raise Infeasible(problems(_TITLE, found) + f"\nTo change that, {_ADVICE}.")


def _has_plan(problem: Problem) -> bool:
    best = Best(problem)
    search(problem, best, Budget(2.0))
    return best.proposal is not None
