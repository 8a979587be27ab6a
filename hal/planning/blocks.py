"""The last touch to any plan: partitions that are one call too many, or on the second best target."""

from __future__ import annotations

import numpy as np

from hal.planning.call_moves import Rules, excess, over_count, worth
from hal.planning.calls import applies, rules_of
from hal.planning.check import check
from hal.planning.compiled import compiled
from hal.planning.evaluate import members
from hal.planning.flat import Flat, flat
from hal.planning.partitions import partitioned
from hal.planning.problem import Assignment, Floats, Ints, Problem, Small

#: Units that may be walked over in all, which bounds the time to a second or two.
_MOST_UNITS = 20_000_000


def polished(problem: Problem, assignment: Assignment) -> Assignment:
    """A plan that is as good or better, with no more partitions for the same value.

    First the same targets in as few partitions as :func:`~hal.planning.partitions.partitioned` finds, if that
    is better. Then, as long as anything is gained: merge a partition with one of the same target that reads
    from it, or that comes next; and give a partition another target. What cannot run in one piece is
    split again. The plan comes back as it was where the result would break a constraint that it keeps, or
    where units start alone, or for the objective memory.

    Source: first-improvement descent, as in Papadimitriou, Steiglitz, "Combinatorial Optimization", 1982,
    chapter 19.

    Args:
        problem: The problem.
        assignment: Any plan that can be carried out.
    """
    if not applies(problem):
        return assignment
    f, rules = flat(problem), rules_of(problem)
    before = check(problem, assignment)
    value, best = before.objective(problem), assignment
    few = partitioned(problem, assignment.target)
    fewer = check(problem, few)
    if len(fewer.violations) <= len(before.violations) and fewer.objective(problem) < value:
        best, before, value = few, fewer, fewer.objective(problem)
    target, group = best.target.copy(), best.partition.copy()
    descend(f, rules, target, group, max(16, _MOST_UNITS // problem.n_units))
    found = Assignment(target, group)
    after = check(problem, found)
    is_better = (after.objective(problem), found.n_partitions) < (value, best.n_partitions)
    return found if is_better and len(after.violations) <= len(before.violations) else best


@compiled
def descend(f: Flat, rules: Rules, target: Small, group: Small, evaluations: int) -> float:
    """Merge and move whole partitions as long as that pays; the plan in the arrays is changed.

    Args:
        f: The problem.
        rules: Its constraints: a plan never passes its limits by more than before.
        target: Of each unit.
        group: Partition of each unit.
        evaluations: At most.

    Returns:
        The objective of the plan; infinite where it cannot run.
    """
    n, n_targets = f.time.shape
    partition = np.empty(n, np.int32)
    starts, ends = np.empty(n), np.empty(n)
    value, count = worth(f, rules, target, group, partition, starts, ends)
    if not np.isfinite(value):
        return value
    group[:] = partition
    old_target, old_group = target.copy(), group.copy()
    over = excess(_use(rules, target), rules.limits)
    p = idle = 0
    while idle < count and evaluations > 0:
        p = p % count
        at, units = members(group, count)
        b = target[units[at[p]]]
        tried = np.full(count + n_targets, False)
        has_moved = False
        # Where to: first partitions of the same target behind this one, then other targets.
        for choice in range(at[p], at[p + 1] + 1 + n_targets):
            if has_moved or evaluations <= 0:
                break
            options = np.empty(0, np.int64)
            if choice < at[p + 1]:
                options = _readers(f, group, units[choice])
            elif choice == at[p + 1]:
                options = _following(target, group, b, p, count)
            else:
                options = np.array([count + choice - at[p + 1] - 1])
            for option in options:
                if tried[option] or option == p:
                    continue
                tried[option] = True
                to = option - count if option >= count else b
                if option < count and target[units[at[option]]] != b:
                    continue
                if option >= count and (to == b or np.isinf(f.time[units[at[p] : at[p + 1]], to]).any()):
                    continue
                for unit in units[at[p] : at[p + 1]]:
                    target[unit] = to
                    if option < count:
                        group[unit] = option
                evaluations -= 1
                new_value, new_count = np.inf, 0
                new_over = excess(_use(rules, target), rules.limits)
                if new_over <= over and _is_together(rules, target):
                    new_value, new_count = worth(f, rules, target, group, partition, starts, ends)
                if new_value < np.inf and over_count(target, partition, new_count, rules.per_target):
                    new_value = np.inf
                if new_value < value * (1 - 1e-12) or (new_value <= value and new_count < count):
                    value, count, over = new_value, new_count, new_over
                    group[:] = partition
                    old_target[:], old_group[:] = target, group
                    has_moved = True
                    break
                for unit in units[at[p] : at[p + 1]]:
                    target[unit], group[unit] = old_target[unit], old_group[unit]
        idle = 0 if has_moved else idle + 1
        p += not has_moved
    return value


@compiled
def _readers(f: Flat, group: Small, unit: int) -> Ints:
    """Partitions that read what a unit makes."""
    count = 0
    for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
        count += f.readers_at[f.made[at_made] + 1] - f.readers_at[f.made[at_made]]
    found, size = np.empty(count, np.int64), 0
    for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
        x = f.made[at_made]
        for at in range(f.readers_at[x], f.readers_at[x + 1]):
            found[size] = group[f.readers[at]]
            size += 1
    return found


@compiled
def _following(target: Small, group: Small, b: int, p: int, count: int) -> Ints:
    """The next partition of a target; empty where there is none."""
    found = count
    for unit in range(len(target)):
        if target[unit] == b and p < group[unit] < found:
            found = group[unit]
    return np.full(1 if found < count else 0, found, np.int64)


@compiled
def _use(rules: Rules, target: Small) -> Floats:
    """Weights in each pool, then the error."""
    use = np.zeros(len(rules.limits))
    for unit in range(len(target)):
        use[rules.pool[target[unit]]] += rules.weight[unit, target[unit]]
        use[-1] += rules.error[unit, target[unit]]
    return use


@compiled
def _is_together(rules: Rules, target: Small) -> bool:
    """Whether the units of each item share a target."""
    for item in range(len(rules.item_at) - 1):
        for at in range(rules.item_at[item] + 1, rules.item_at[item + 1]):
            if target[rules.items[at]] != target[rules.items[at - 1]]:
                return False
    return True
