"""Quick targets are filled first where memory is short."""

from __future__ import annotations

import numpy as np
import pytest

from hal.planning.filling import applies, filling
from hal.planning.problem import Problem
from hal.planning.search import Best, Budget


def chain(n: int, times: tuple[float, ...], capacity: tuple[float, ...], **fields: object) -> Problem:
    """Units one after the other, each of 10 bytes of weights and a tensor of 1 byte."""
    t = len(times)
    return Problem(
        time=np.tile(np.array(times), (n, 1)),
        silicon=np.arange(t),
        pool=np.arange(t),
        producer=np.arange(n - 1),
        read_tensor=np.arange(n - 1),
        read_unit=np.arange(1, n),
        tensor_bytes=np.ones(n - 1),
        weight_bytes=np.full((n, t), 10),
        capacity=np.array(capacity),
        **fields,  # type: ignore[arg-type]
    )


def found(problem: Problem) -> Best:
    best = Best(problem)
    filling(problem, best, Budget(60.0))
    return best


def test_the_quickest_is_filled_first_when_it_cannot_hold_all() -> None:
    # The tensors of 40 units take up to 40 bytes beside the weights, in one partition.
    problem = chain(100, (3.0, 1.0, 2.0), (2000.0, 450.0, 450.0))
    assert applies(problem)
    best = found(problem)
    assert best.proposal is not None
    used = np.bincount(best.proposal.assignment.target, minlength=3)
    assert used[1] >= 40
    assert used[2] >= 40
    assert best.objective == pytest.approx(used[1] + 2 * used[2] + 3 * used[0])


def test_a_plan_is_found_in_short_partitions_when_tensors_take_the_rest_of_the_memory() -> None:
    problem = chain(100, (1.0, 9.0), (1015.0, 10_000.0))
    best = found(problem)
    assert best.proposal is not None
    assert np.bincount(best.proposal.assignment.target)[0] >= 98
    assert best.proposal.assignment.n_partitions > 5


def test_units_go_on_to_the_next_target_when_one_cannot_compute_them() -> None:
    problem = chain(100, (1.0, 2.0), (600.0, 10_000.0))
    time = problem.time.copy()
    time[30, 0] = np.inf
    best = found(problem.replace(time=time))
    assert best.proposal is not None
    assert best.proposal.assignment.target.tolist() == [0] * 30 + [1] * 70


def test_nothing_is_offered_when_no_filling_holds_the_model() -> None:
    assert found(chain(100, (1.0, 2.0), (300.0, 300.0))).proposal is None


def test_it_does_not_apply_when_memory_is_plenty_or_the_objective_is_another() -> None:
    assert not applies(chain(10, (1.0, 2.0), (1000.0, 1000.0)))
    assert not applies(chain(100, (1.0, 2.0), (300.0, 1000.0), objective="throughput"))


def test_calls_of_their_own_are_offered_when_units_start_alone() -> None:
    best = found(chain(100, (1.0, 2.0), (600.0, 10_000.0), start="unit"))
    assert best.proposal is not None
    assert best.proposal.assignment.n_partitions == 100
