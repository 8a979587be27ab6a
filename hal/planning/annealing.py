"""Latency by simulated annealing over targets, order and partitions; a step takes microseconds."""

from __future__ import annotations

import numpy as np

from hal.planning.annealing_steps import rules, steps
from hal.planning.domains import domains
from hal.planning.flat import flat
from hal.planning.list_scheduling import RULES, listed
from hal.planning.problem import Problem, Small
from hal.planning.search import Best, Budget
from hal.planning.slack import settle
from hal.planning.timeline import Bools, keep, line, off_the_line, on_a_line, tails, timed

#: First temperatures of the rounds, in mean times of a unit in the plan; cold rounds improve a plan where it
#: is, hot ones leave it. Found on the public problems and on made-up ones like them: no value is best on all.
_HOT = (0.3, 1.0, 0.3, 3.0)
#: The last temperature of a round, by its first.
_COOLING = 0.01
#: Shares of the time left that the rounds take.
_SHARES = (0.25, 0.4, 0.6, 1.0)
#: Seconds of steps between two looks at the clock.
_CHUNK_S = 0.02


def applies(problem: Problem) -> bool:
    """Whether the objective is the latency."""
    return problem.objective == "latency"


def annealing(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Anneal from the best plan so far, or from list scheduling, in rounds until the budget is spent.

    A step puts a unit, a connected set of units or a stretch of the line on another target, swaps the targets
    of two units, moves a unit along the line, or joins and splits partitions. The temperature falls
    geometrically with the time, round after round, each from the best plan so far. Weights, the error budget
    and limits on partitions may be broken at a price, which rises while that lasts. Activations are only
    looked at when a plan is offered: where one does not fit, the pool counts as smaller from then on.

    The clock decides how many steps are taken; for one seed, the same numbers of steps find the same plans.

    Source: Kirkpatrick, Gelatt and Vecchi, "Optimization by Simulated Annealing", Science 220, 1983; drawing
    what is accepted before evaluating, so that evaluating can stop early, is common in local search.
    """
    if not applies(problem) or not domains(problem).any(axis=1).all():
        return
    search = Search(problem, seed)
    search.begin(best)
    for hot, share in zip(_HOT, _SHARES, strict=True):
        part = budget.part(share * budget.left)
        whole = part.left
        search.restart()
        while not part.is_spent and not best.is_optimal:
            before = part.left
            # Until a plan keeps the rules, it stays warm: frozen early, tight memory never fits.
            has_plan = np.isfinite(search.latency)
            search.anneal(search.n_steps, hot * _COOLING ** (1 - before / whole) if has_plan else 1.0)
            spent = before - part.left
            search.n_steps = max(1, int(search.n_steps * min(4.0, _CHUNK_S / max(spent, 1e-6))))
            search.offer(best)
        if best.is_optimal:
            return


class Search:
    """One line that is annealed, and the best line found.

    Args:
        problem: The problem; each unit has a target.
        seed: Of chance.

    Attributes:
        latency: Of the best line that keeps the rules, as far as annealing knows them; infinite so far.
        n_steps: Steps to the next look at the clock.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        self.n_steps = 20
        self.flat = flat(problem)
        self.rules = rules(problem)
        self._tail = tails(self.flat)
        self.random = np.random.default_rng(seed)
        self.state = np.array([np.inf, np.inf, 0.0])
        self._price = 0.0
        self._offered = np.inf

    @property
    def latency(self) -> float:
        """Of the best line; infinite where none kept the rules."""
        return float(self.state[1])

    def begin(self, best: Best) -> None:
        """Start from the best plan so far, or, where there is none, from list scheduling."""
        if best.proposal is not None:
            chosen = best.proposal.assignment
            self._put(chosen.target, *on_a_line(self.problem, chosen))
            self.state[1] = self._offered = best.proposal.objective
        else:
            found = listed(self.problem, RULES[0])
            assert found is not None
            self._put(*found, np.full(self.problem.n_units, self.problem.start == "partition"))

    def restart(self) -> None:
        """Go back to the best line, or stay where none kept the rules."""
        if np.isfinite(self.latency):
            self._put(self.target, self.unit_at, self.glued)
        self._price = self.state[0]

    def anneal(self, n_steps: int, temperature: float) -> None:
        """Take steps at one temperature, in mean times of a unit in the plan."""
        plan = self.line
        busy = self.problem.time[np.arange(self.problem.n_units), plan.target].sum()
        unit = (busy or self.state[0]) / self.problem.n_units or 1.0
        steps(
            self.flat,
            self.rules,
            plan,
            self.random,
            n_steps,
            temperature * unit,
            self._price,
            self.state,
            self.target,
            self.unit_at,
            self.glued,
        )
        # A plan that breaks rules for long is too cheap; one that never does may miss what lies beyond.
        self._price *= 1.2 if self.state[2] > 0 else 0.95
        self._price = min(max(self._price, 0.1 * self.state[0]), 1e3 * self.state[0])

    def offer(self, best: Best) -> None:
        """Offer the best line, if it is new."""
        if self.latency >= self._offered:
            return
        found = off_the_line(self.target, self.unit_at, self.glued)
        if np.isfinite(best.offer(found, "annealing", self.latency)):
            self._offered = self.latency
            return
        # Activations, which the rules do not know, did not fit: leave them that much room.
        assert best.rejected is not None
        over = best.rejected.peaks - self.problem.capacity
        if np.isfinite(over).all():
            self.rules.limits[:-1][over > 0] -= over[over > 0]
        self.state[1] = self._offered

    def _put(self, target: Small, unit_at: Small, glued: Bools) -> None:
        self.line = plan = line(self.problem, target, unit_at, glued, self._tail)
        self.target, self.unit_at, self.glued = target.copy(), unit_at.copy(), glued.copy()
        n = self.problem.n_units
        value, first, stop = timed(self.flat, plan, 0, n, np.inf)
        keep(self.flat, plan, first, stop)
        settle(self.flat, plan, first, stop)
        self.state[0] = value
