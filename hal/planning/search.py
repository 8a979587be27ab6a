"""What solvers work with: a budget of time, and the best plan and the best bound so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from hal.errors import InternalError
from hal.planning.check import Checked, check
from hal.planning.compiled import compiling_s
from hal.planning.problem import Assignment, Problem

#: Relative difference that rounding may make between a solver's claim and the evaluator's value.
_TOLERANCE = 1e-6


def search_clock() -> float:
    """Seconds of searching: it stands still while code is compiled, which happens once per version."""
    return time.monotonic() - compiling_s()


class Budget:
    """Seconds that may be spent on searching.

    Args:
        seconds: From now on.
        now: The clock, in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = search_clock) -> None:
        self._now = now
        self._end = now() + seconds

    @property
    def left(self) -> float:
        """Seconds left, not below 0."""
        return max(self._end - self._now(), 0.0)

    @property
    def is_spent(self) -> bool:
        """Whether nothing is left."""
        return self.left <= 0

    def part(self, seconds: float) -> Budget:
        """A budget of at most so many seconds, within this one."""
        return Budget(min(seconds, self.left), self._now)


class Proposal(NamedTuple):
    """A plan that keeps all constraints.

    Attributes:
        assignment: The plan.
        objective: Its value.
        solver: Who found it.
        checked: All values.
    """

    assignment: Assignment
    objective: float
    solver: str
    checked: Checked


class Best:
    """The best plan and the highest lower bound of a problem, whoever found them.

    Args:
        problem: The problem.

    Attributes:
        proposal: The best plan that keeps all constraints; None so far.
        bound: No plan is below it; 0 so far.
        bound_source: Who proved it.
        rejected: The last plan that broke a constraint.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.proposal: Proposal | None = None
        self.bound = 0.0
        self.bound_source = "nothing is below 0"
        self.rejected: Checked | None = None

    @property
    def objective(self) -> float:
        """Of the best plan; infinite where there is none."""
        return self.proposal.objective if self.proposal else float("inf")

    @property
    def gap(self) -> float:
        """(objective - bound) / objective; 0 is optimal, 1 where there is no plan."""
        if self.proposal is None:
            return 1.0
        return max(self.objective - self.bound, 0.0) / self.objective if self.objective else 0.0

    @property
    def is_optimal(self) -> bool:
        """Whether the gap is zero, rounding aside."""
        return self.gap <= 1e-9

    def offer(self, assignment: Assignment, solver: str, claimed: float | None = None) -> float:
        """Check a plan and keep it if it is the best.

        Args:
            assignment: The plan.
            solver: Who found it.
            claimed: What the solver takes its objective for.

        Returns:
            Its objective; infinite where it breaks a constraint.

        Raises:
            InternalError: The claim is not the value.
        """
        checked = check(self.problem, assignment)
        if checked.violations:
            self.rejected = checked
            return float("inf")
        value = checked.objective(self.problem)
        if claimed is not None and abs(claimed - value) > _TOLERANCE * max(abs(value), 1e-30):
            raise InternalError(f"{solver} claims {claimed!r} for a plan whose value is {value!r}; report it")
        if value < self.objective:
            self.proposal = Proposal(assignment, value, solver, checked)
        return value

    def prove(self, bound: float, source: str) -> None:
        """Raise the lower bound."""
        if bound > self.bound:
            self.bound, self.bound_source = bound, source
