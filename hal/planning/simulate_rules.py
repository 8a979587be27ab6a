"""Constraints that need no clock, as the simulator sees them: one plain loop for each."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hal.planning import violations
from hal.planning.problem import OUTSIDE, Assignment, Problem
from hal.planning.violations import Violation


def misfit(problem: Problem, assignment: Assignment) -> list[Violation]:
    """Whether the assignment is one of this problem's units, targets, and of numbered partitions at all."""
    target, partition = assignment.target.tolist(), assignment.partition.tolist()
    n = problem.n_units
    if (len(target), len(partition)) != (n, n):
        return [violations.sizes(n, len(target), len(partition))]
    if not 0 <= min(target) <= max(target) < problem.n_targets:
        return [violations.range_of_targets(problem, min(target), max(target))]
    numbers = set(partition)
    if numbers != set(range(len(numbers))):
        return [violations.gaps()]
    return []


def broken_rules(problem: Problem, assignment: Assignment) -> list[Violation]:
    """Supported targets, one target to a partition, order, start, error, numbers of partitions, groups."""
    target, partition = assignment.target.tolist(), assignment.partition.tolist()
    n = problem.n_units
    found = []
    infinite = [unit for unit in range(n) if problem.time[unit, target[unit]] == np.inf]
    found += [violations.unsupported(problem, unit, target[unit]) for unit in infinite[:3]]

    target_of: dict[int, int] = {}
    mixed = [unit for unit in range(n) if target_of.setdefault(partition[unit], target[unit]) != target[unit]]
    for unit in mixed[:1]:
        p = partition[unit]
        found.append(violations.mixed(problem, p, target[unit], target_of[p]))

    producer = problem.producer.tolist()
    against = [
        (tensor, reader)
        for tensor, reader in zip(problem.read_tensor.tolist(), problem.read_unit.tolist(), strict=True)
        if producer[tensor] != OUTSIDE and partition[producer[tensor]] > partition[reader]
    ]
    for tensor, reader in against[:1]:
        made_in, read_in = partition[producer[tensor]], partition[reader]
        found.append(violations.order(problem, tensor, reader, made_in, read_in, len(against)))

    if problem.start == "unit":
        if len(target_of) < n:
            found.append(violations.start(n, len(target_of)))
    else:
        if 0 < problem.max_partitions < len(target_of):
            found.append(violations.partitions(problem, len(target_of)))
        for b, count in sorted(Counter(target_of.values()).items()):
            if 0 < problem.partitions_per_target[b] < count:
                found.append(violations.partitions_per_target(problem, b, count))

    error = float(sum(problem.error[unit, target[unit]] for unit in range(n)))
    if violations.is_over(error, problem.max_error):
        found.append(violations.error(problem, error))

    shared: dict[int, int] = {}
    apart = [
        (unit, shared[group])
        for unit, group in enumerate(problem.same_device.tolist())
        if group >= 0 and shared.setdefault(group, target[unit]) != target[unit]
    ]
    found += [violations.same_device(problem, unit, target[unit], other) for unit, other in apart[:3]]
    return found
