"""Problems without a plan: which constraint cannot hold, and by how much."""

from __future__ import annotations

import numpy as np
import pytest

from hal.errors import Infeasible
from hal.planning import infeasible
from hal.planning.portfolio import solve
from hal.planning.problem import Problem
from hal.planning.search import Best, Budget

NO = np.inf
NAMES = {"target_names": ("cpu", "gpu"), "pool_names": ("ram", "vram")}


def chain(n: int = 3, **fields: object) -> Problem:
    """Units one after the other on a CPU or a GPU."""
    return Problem(
        **{
            "time": np.ones((n, 2)),
            "silicon": [0, 1],
            "pool": [0, 1],
            "producer": np.arange(n),
            "read_tensor": np.arange(n - 1),
            "read_unit": np.arange(1, n),
            "unit_names": tuple("abcdefghijklmnopqrstuvwxyz"[:n]),
            **NAMES,
            **fields,
        }
    )


def refused(problem: Problem, budget_s: float = 60.0) -> str:
    with pytest.raises(Infeasible) as caught:
        solve(problem, budget_s=budget_s)
    text = str(caught.value)
    assert text.startswith("no plan")
    assert "raise the limit, allow more targets, or take pins away" in text
    return text


def test_solve_names_the_unit_and_the_reasons_when_no_target_can_compute_it() -> None:
    problem = chain(
        time=[[1, 1], [NO, NO], [1, 1]], reasons={(1, 0): "no kernel for Foo", (1, 1): "int64 input"}
    )
    assert "no target can compute b (cpu: no kernel for Foo; gpu: int64 input)" in refused(problem)


def test_solve_counts_the_rest_when_many_units_have_no_target() -> None:
    assert "nor can any compute 2 more units" in refused(chain(5, time=np.full((5, 2), NO)))


def test_solve_names_the_group_when_it_has_no_common_target() -> None:
    problem = chain(
        time=[[1, NO], [1, NO], [NO, 1]], same_device=[0, 0, 0], reasons={(2, 0): "pinned elsewhere"}
    )
    text = refused(problem)
    assert "the 3 units of group 0 must share a target and none can compute all" in text
    assert "the nearest lacks 1 of them, c (cpu: pinned elsewhere)" in text


def test_solve_says_how_many_bytes_are_missing_when_a_unit_fits_nowhere() -> None:
    problem = chain(
        weight_bytes=[[1, 1], [50, 50], [1, 1]],
        workspace_bytes=np.full((3, 2), 5),
        tensor_bytes=[10, 20, 0],
        capacity=[60, 70],
    )
    assert (
        "b: 85 bytes are needed on gpu, with what is held while it runs; vram has 70, 15 too few, and no "
        "other target is nearer" in refused(problem)
    )


def test_solve_adds_the_weights_up_when_units_can_lie_in_some_pools_only() -> None:
    problem = chain(time=[[1, NO], [1, NO], [1, 1]], weight_bytes=np.full((3, 2), 40), capacity=[70, 1000])
    assert (
        "units that can lie in ram only: 2; their weights take at least 80 bytes and there are 70, 10 too few"
        in refused(problem)
    )


def test_solve_adds_pools_up_when_all_together_are_too_small() -> None:
    problem = chain(weight_bytes=np.full((3, 2), 40), capacity=[59, 60])
    assert (
        "units that can lie in ram, vram only: 3; their weights take at least 120 bytes and there are 119, 1 "
        "too few" in refused(problem)
    )


def test_solve_gives_the_least_error_when_the_budget_is_below_it() -> None:
    problem = chain(error=[[0.5, 0.25], [0.5, 0.75], [1, 1]], max_error=1.5)
    text = refused(problem)
    assert "the error is at least 1.75" in text
    assert "at most 1.5 is allowed, 0.25 less" in text


def test_solve_counts_partitions_when_units_alternate_between_devices() -> None:
    problem = chain(time=[[1, NO], [NO, 1], [1, NO]], max_partitions=2)
    assert "at least 3 partitions are needed" in refused(problem)
    problem = chain(time=[[1, NO], [NO, 1], [1, NO]], partitions_per_target=[1, 0])
    text = refused(problem)
    assert "at least 2 partitions on cpu are needed, because units between cannot run there" in text
    assert "at most 1 are allowed, 1 less" in text


def test_solve_counts_devices_when_unconnected_units_need_different_ones() -> None:
    problem = Problem(
        time=[[1, NO], [NO, 1]],
        silicon=[0, 1],
        pool=[0, 1],
        producer=[0, 1],
        read_tensor=[],
        read_unit=[],
        max_partitions=1,
    )
    assert "at least 2 partitions are needed" in refused(problem)


def test_solve_packs_weights_when_only_their_sizes_do_not_fit() -> None:
    # 18 bytes for 3 x 6, but no two units of 5 and 5 fit into 9.
    problem = chain(weight_bytes=np.full((3, 2), 5), capacity=[9, 9])
    text = refused(problem)
    assert "every choice of targets passes the memory there is, by 1 bytes at least" in text
    assert "needs 10 bytes and has 9" in text


def test_solve_weighs_memory_against_error_when_either_alone_could_be_kept() -> None:
    problem = chain(
        weight_bytes=np.tile([10, 4], (3, 1)),
        pool=[0, 0],
        pool_names=("ram",),
        capacity=[20],
        error=np.tile([0.0, 1.0], (3, 1)),
        max_error=1.0,
    )
    text = refused(problem)
    assert (
        "memory and the error budget cannot both be kept: within the error of 1, 4 bytes are missing" in text
    )
    assert "a choice that fits has the error 2, 1 too much" in text or "has the error 3, 2 too much" in text


def test_solve_gives_the_bytes_when_activations_of_any_order_are_too_many() -> None:
    # Unit 2 reads two tensors while its own is made.
    problem = Problem(
        time=np.ones((4, 1)),
        silicon=[0],
        pool=[0],
        producer=[0, 1, 2, 3],
        read_tensor=[0, 1, 0, 2],
        read_unit=[2, 2, 3, 3],
        tensor_bytes=[10, 10, 10, 0],
        capacity=[29],
    )
    text = refused(problem.replace(capacity=[25]))
    assert "bytes" in text
    roomy = solve(problem.replace(capacity=[30]), budget_s=60)
    assert roomy.best.checked.peaks[0] == 30


def test_solve_searches_through_when_partitions_and_activations_exclude_each_other() -> None:
    # In one partition all three tensors live at once; more partitions are not allowed.
    problem = Problem(
        time=np.ones((4, 1)),
        silicon=[0],
        pool=[0],
        pool_names=("ram",),
        producer=[0, 1, 2, 3],
        read_tensor=[0, 1, 2],
        read_unit=[1, 2, 3],
        tensor_bytes=[10, 10, 10, 0],
        capacity=[20],
        max_partitions=1,
    )
    text = refused(problem)
    assert "ram: weights, activations and workspace pass what there is by 10 bytes at least" in text
    assert "at least 2 partitions are needed; at most 1 are allowed, 1 less" in text
    assert solve(problem.replace(max_partitions=2), budget_s=60).best.objective == 4


def test_solve_searches_through_when_partitions_per_target_are_too_few() -> None:
    problem = Problem(
        time=np.ones((4, 1)),
        silicon=[0],
        pool=[0],
        producer=[0, 1, 2, 3],
        read_tensor=[0, 1, 2],
        read_unit=[1, 2, 3],
        tensor_bytes=[10, 10, 10, 0],
        capacity=[20],
        partitions_per_target=[1],
    )
    assert "the limits of partitions per target are too low: 1 more would do, and fewer would not" in refused(
        problem
    )


def test_explain_says_that_nothing_is_proven_when_the_search_was_too_short() -> None:
    n = 30
    problem = Problem(
        time=np.ones((n, 1)),
        silicon=[0],
        pool=[0],
        pool_names=("ram",),
        producer=np.arange(n),
        read_tensor=np.arange(n - 1),
        read_unit=np.arange(1, n),
        tensor_bytes=np.full(n, 10),
        capacity=[20],
        max_partitions=2,
    )
    text = refused(problem, budget_s=0.2)
    assert text.startswith("no plan was found within the time, and none is proven impossible")
    assert "ram needs" in text


def test_explain_offers_a_plan_when_weights_must_be_packed_tightly() -> None:
    problem = chain(
        5,
        weight_bytes=np.repeat([[8], [7], [6], [5], [4]], 2, axis=1),
        capacity=[15, 15],
        objective="latency",
    )
    best = Best(problem)
    infeasible.explain(problem, best, Budget(60))
    assert best.proposal is not None
    assert best.proposal.checked.peaks.tolist() == [15, 15]


def test_refuse_is_silent_when_nothing_is_wrong() -> None:
    infeasible.refuse(chain())
