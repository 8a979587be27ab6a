"""What a portfolio hands back: the finalists, the bound, and who did what in which time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hal.planning.check import Checked
from hal.planning.problem import Assignment, Problem
from hal.planning.search import Best, Proposal

#: Plans of each solver that stay candidates for the final, its latest improvements.
_KEPT_PER_SOLVER = 2


@dataclass(frozen=True)
class Run:
    """One solver's turn.

    Attributes:
        name: Of the solver.
        seconds: It took.
        objective: Of the best plan after it, whoever found that; infinite where there is none.
        bound: The best lower bound after it.
    """

    name: str
    seconds: float
    objective: float
    bound: float


@dataclass(frozen=True)
class Solution:
    """Plans that keep all constraints, and how far from optimal the best can be.

    Attributes:
        proposals: Distinct, the best first, with every single-target plan that keeps the constraints.
        bound: No plan is below it.
        bound_source: Who proved it.
        gap: (objective - bound) / objective of the best.
        runs: Solvers in the order in which they ran.
    """

    proposals: tuple[Proposal, ...]
    bound: float
    bound_source: str
    gap: float
    runs: tuple[Run, ...]

    @property
    def best(self) -> Proposal:
        """The best plan."""
        return self.proposals[0]

    @property
    def is_optimal(self) -> bool:
        """Whether the gap is zero, rounding aside."""
        return self.gap <= 1e-9

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each solver, summed over its turns."""
        found: dict[str, float] = {}
        for run in self.runs:
            found[run.name] = found.get(run.name, 0.0) + run.seconds
        return found


class Finalists(Best):
    """The best plan, and the best few of each solver beside it.

    Args:
        problem: The problem.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._found: dict[str, list[tuple[float, Assignment]]] = {}

    def offer(self, assignment: Assignment, solver: str, claimed: float | None = None) -> float:
        """As :meth:`Best.offer`; each solver's best plans and the nearest rejected one are remembered."""
        nearest = self.rejected
        value = super().offer(assignment, solver, claimed)
        if nearest is not None and self.rejected is not None and _excess(nearest) < _excess(self.rejected):
            self.rejected = nearest
        if value < float("inf"):
            mine = self._found.setdefault(solver, [])
            if len(mine) < _KEPT_PER_SOLVER or value < mine[-1][0]:
                mine.append((value, assignment))
                mine.sort(key=lambda one: one[0])
                del mine[_KEPT_PER_SOLVER:]
        return value

    def distinct(self, most: int, always: str) -> list[tuple[float, str, Assignment]]:
        """The best plans of all solvers, no plan twice, the best first.

        Args:
            most: How many, at most; those of solvers whose name starts with ``always`` are there in any case.
            always: Start of a name.
        """
        plans = sorted(
            ((value, name, plan) for name, mine in self._found.items() for value, plan in mine),
            # Among equals the best plan's own solver comes first, then single-target plans.
            key=lambda one: (one[0], not self._is_best(one[2]), not one[1].startswith(always)),
        )
        seen: set[bytes] = set()
        chosen: list[tuple[float, str, Assignment]] = []
        for value, name, plan in plans:
            key = plan.target.tobytes() + plan.partition.tobytes()
            if key in seen:
                continue
            seen.add(key)
            if len(chosen) < most or name.startswith(always):
                chosen.append((value, name, plan))
        return chosen

    def _is_best(self, plan: Assignment) -> bool:
        return self.proposal is not None and self.proposal.assignment is plan


def _excess(checked: Checked) -> float:
    """By how much of its limit a plan passes limits; infinite where it could not be carried out."""
    if not math.isfinite(checked.values.latency):
        return math.inf
    return sum((one.amount - one.limit) / max(one.limit, 1.0) for one in checked.violations)
