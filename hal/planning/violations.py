"""What breaks a constraint, in words: the checks and the simulator judge apart and say it alike."""

from __future__ import annotations

from typing import NamedTuple

from hal.planning.problem import Problem

#: Share by which sums of floating-point numbers may pass a limit: rounding, not a violation.
SLACK = 1e-9


class Violation(NamedTuple):
    """A constraint that does not hold.

    Attributes:
        constraint: ``order``, ``target``, ``memory``, ``error``, ``partitions``, ``partitions_per_target``,
            ``same_device`` or ``start``.
        amount: What the assignment has.
        limit: What is allowed.
        text: One sentence with the values.
    """

    constraint: str
    amount: float
    limit: float
    text: str


def is_over(amount: float, limit: float) -> bool:
    """Whether an amount passes a limit by more than rounding."""
    return amount > limit * (1 + SLACK)


def sizes(n_units: int, n_targets: int, n_partitions: int) -> Violation:
    """The assignment is not one of this problem's units."""
    text = f"it places {n_targets} units in {n_partitions} partitions; expected {n_units} of each"
    return Violation("target", n_targets, n_units, text)


def range_of_targets(problem: Problem, lowest: int, highest: int) -> Violation:
    """A target has a number that no target has."""
    text = f"targets are numbered {lowest} to {highest}; expected 0 to {problem.n_targets - 1}"
    return Violation("target", highest if lowest >= 0 else lowest, problem.n_targets - 1, text)


def gaps() -> Violation:
    """Numbers of partitions are left out."""
    return Violation("order", 1, 0, "partitions are not numbered from 0 without gaps")


def order(problem: Problem, tensor: int, reader: int, made_in: int, read_in: int, count: int) -> Violation:
    """Tensors are read before they are made; `count` of them, one as the example."""
    maker = int(problem.producer[tensor])
    late, early = problem.unit_names[maker], problem.unit_names[reader]
    text = (
        f"{early} in partition {read_in} reads what {late} makes in partition {made_in}, which runs later; "
        f"reads against the order: {count}"
    )
    return Violation("order", count, 0, text)


def unsupported(problem: Problem, unit: int, target: int) -> Violation:
    """A target cannot compute a unit."""
    why = problem.reasons.get((unit, target), "it cannot compute it")
    text = f"{problem.unit_names[unit]} is on {problem.target_names[target]}: {why}"
    return Violation("target", 1, 0, text)


def mixed(problem: Problem, partition: int, target: int, other: int) -> Violation:
    """A partition is on two targets."""
    one, two = problem.target_names[target], problem.target_names[other]
    return Violation("target", 1, 0, f"partition {partition} has units on {one} and on {two}")


def start(n_units: int, n_partitions: int) -> Violation:
    """Units that start alone share partitions."""
    text = f"{n_units} units share {n_partitions} partitions; expected one each, because units start alone"
    return Violation("start", n_partitions, n_units, text)


def error(problem: Problem, amount: float) -> Violation:
    """The error budget is passed."""
    limit = float(problem.max_error)
    return Violation("error", amount, limit, f"the error is {amount:.6g}; at most {limit:.6g} is allowed")


def partitions(problem: Problem, count: int) -> Violation:
    """There are too many partitions."""
    limit = problem.max_partitions
    return Violation("partitions", count, limit, f"partitions: {count}; at most {limit} are allowed")


def partitions_per_target(problem: Problem, target: int, count: int) -> Violation:
    """A target has too many partitions."""
    limit = int(problem.partitions_per_target[target])
    text = f"partitions on {problem.target_names[target]}: {count}; at most {limit} are allowed"
    return Violation("partitions_per_target", count, limit, text)


def same_device(problem: Problem, unit: int, target: int, other: int) -> Violation:
    """Units that must share a target do not."""
    where, there = problem.target_names[target], problem.target_names[other]
    text = f"{problem.unit_names[unit]} is on {where}; units of its group are on {there}"
    return Violation("same_device", 1, 0, text)


def memory(problem: Problem, pool: int, peak: float) -> Violation:
    """A pool is too small."""
    limit = float(problem.capacity[pool])
    text = f"{problem.pool_names[pool]} needs {peak:.0f} bytes; it has {limit:.0f}"
    return Violation("memory", peak, limit, text)
