"""Each constraint, its text, and memory on cases small enough to work out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hal.planning.check import Checked, check
from hal.planning.problem import OUTSIDE, Assignment, Problem
from hal.planning.simulate import simulate

INFINITE = (np.inf, np.inf, np.inf)


def problem(**fields: Any) -> Problem:
    """Three units in a chain, each takes 10; two targets; moving a tensor takes 4."""
    whole: dict[str, Any] = {
        "time": np.full((3, 2), 10.0),
        "silicon": [0, 1],
        "pool": [0, 1],
        "producer": [0, 1, 2],
        "read_tensor": [0, 1],
        "read_unit": [1, 2],
        "transfer": np.full((3, 2, 2), 4.0) * (1 - np.eye(2)),
        "unit_names": ("a", "b", "c"),
        "target_names": ("cpu", "gpu"),
        "pool_names": ("ram", "vram"),
    }
    return Problem(**{**whole, **fields})


def place(target: list[int], partition: list[int]) -> Assignment:
    return Assignment(np.array(target, np.int32), np.array(partition, np.int32))


def checked(made: Problem, assignment: Assignment) -> Checked:
    """What the check says, and the simulator too."""
    found, events = check(made, assignment), simulate(made, assignment)
    assert sorted(found.violations) == sorted(events.violations)
    assert found.peaks.tolist() == events.peaks.tolist()
    return found


def test_check_finds_nothing_when_all_constraints_hold() -> None:
    found = checked(problem(), place([0, 1, 1], [0, 1, 1]))
    assert found.violations == ()
    assert found.values == (34, 20, 0)


@pytest.mark.parametrize(
    ("target", "partition", "constraint", "amount", "limit", "text"),
    [
        ([0, 0], [0, 1, 2], "target", 2, 3, "it places 2 units in 3 partitions; expected 3 of each"),
        ([0, 0, 0], [0, 1], "target", 3, 3, "it places 3 units in 2 partitions; expected 3 of each"),
        ([], [], "target", 0, 3, "it places 0 units in 0 partitions; expected 3 of each"),
        ([0, 2, 1], [0, 1, 2], "target", 2, 1, "targets are numbered 0 to 2; expected 0 to 1"),
        ([0, -1, 1], [0, 1, 2], "target", -1, 1, "targets are numbered -1 to 1; expected 0 to 1"),
        ([0, 0, 0], [0, 0, 2], "order", 1, 0, "partitions are not numbered from 0 without gaps"),
        ([0, 0, 0], [-1, 0, 1], "order", 1, 0, "partitions are not numbered from 0 without gaps"),
        ([0, 0, 0], [0, 0, 2**31 - 1], "order", 1, 0, "partitions are not numbered from 0 without gaps"),
        (
            [0, 0, 0],
            [1, 0, 2],
            "order",
            1,
            0,
            "b in partition 0 reads what a makes in partition 1, which runs later; "
            "reads against the order: 1",
        ),
        ([0, 1, 1], [0, 0, 1], "target", 1, 0, "partition 0 has units on gpu and on cpu"),
    ],
)
def test_check_refuses_a_plan_when_it_cannot_be_carried_out(
    target: list[int], partition: list[int], constraint: str, amount: float, limit: float, text: str
) -> None:
    found = checked(problem(), place(target, partition))
    assert found.violations == ((constraint, amount, limit, text),)
    assert found.values == INFINITE
    assert found.objective(problem(objective="memory")) == np.inf


def test_check_gives_the_reason_when_a_target_cannot_compute_a_unit() -> None:
    time = np.ones((3, 2))
    time[1:, 1] = np.inf
    found = checked(problem(time=time, reasons={(1, 1): "no int4"}), place([0, 1, 1], [0, 1, 1]))
    assert [one.text for one in found.violations] == [
        "b is on gpu: no int4",
        "c is on gpu: it cannot compute it",
    ]
    assert found.values == INFINITE


def test_check_names_three_units_when_more_are_where_they_cannot_be() -> None:
    time = np.array([[1, np.inf]] * 5)
    many = Problem(time=time, silicon=[0, 1], pool=[0, 1], producer=[], read_tensor=[], read_unit=[])
    assert len(checked(many, place([1] * 5, [0] * 5)).violations) == 3


@pytest.mark.parametrize(
    ("fields", "amount", "limit", "text"),
    [
        (
            {"max_error": 0.5, "error": [[0, 0.25], [0, 0.25], [0, 0.25]]},
            0.75,
            0.5,
            "the error is 0.75; at most 0.5 is allowed",
        ),
        ({"max_partitions": 1}, 2, 1, "partitions: 2; at most 1 are allowed"),
        ({"partitions_per_target": [0, 1]}, 2, 1, "partitions on gpu: 2; at most 1 are allowed"),
        ({"start": "unit"}, 2, 3, "3 units share 2 partitions; expected one each, because units start alone"),
        ({"capacity": [0, 5], "tensor_bytes": [3, 3, 0]}, 6, 5, "vram needs 6 bytes; it has 5"),
    ],
)
def test_check_says_by_how_much_when_a_limit_is_passed(
    fields: dict[str, Any], amount: float, limit: float, text: str
) -> None:
    found = checked(problem(**fields), place([1, 1, 1], [0, 0, 1]))
    assert [one[1:] for one in found.violations] == [(amount, limit, text)]
    assert found.values.latency == 30


def test_check_names_units_when_those_of_a_group_are_apart() -> None:
    found = checked(problem(same_device=[1, -1, 1]), place([0, 0, 1], [0, 0, 1]))
    assert [one.text for one in found.violations] == ["c is on gpu; units of its group are on cpu"]
    assert not checked(problem(same_device=[1, -1, 1]), place([0, 1, 0], [0, 1, 2])).violations


def test_check_finds_all_violations_when_there_are_several() -> None:
    made = problem(
        max_partitions=1, max_error=0, error=np.ones((3, 2)), same_device=[0, 0, 0], capacity=[0, 0]
    )
    found = checked(made.replace(tensor_bytes=[1, 1, 1]), place([0, 0, 1], [1, 0, 2]))
    assert sorted(one.constraint for one in found.violations) == [
        "error",
        "order",
        "partitions",
        "same_device",
    ]


@pytest.mark.parametrize("limit", ["max_partitions", "partitions_per_target"])
def test_check_counts_no_partitions_when_units_start_alone(limit: str) -> None:
    value: Any = 1 if limit == "max_partitions" else [1, 1]
    assert not checked(problem(start="unit", **{limit: value}), place([1, 1, 1], [0, 1, 2])).violations


def test_check_lets_rounding_pass_when_a_sum_is_a_hair_over_its_limit() -> None:
    made = problem(error=np.full((3, 2), 0.1), max_error=0.3)
    assert float(made.error[:, 0].sum()) > 0.3
    assert not checked(made, place([0, 0, 0], [0, 0, 0])).violations
    more = made.replace(max_error=0.3 * (1 - 1e-8))
    assert checked(more, place([0, 0, 0], [0, 0, 0])).violations


def peaks(made: Problem, target: list[int], partition: list[int]) -> list[float]:
    return list(checked(made, place(target, partition)).peaks)


def test_weights_are_there_all_the_time_when_units_share_a_pool() -> None:
    weights = [[1, 10], [2, 20], [4, 40]]
    assert peaks(problem(weight_bytes=weights), [0, 1, 0], [0, 1, 2]) == [5, 20]
    assert peaks(problem(weight_bytes=weights, pool=[0, 0], pool_names=("ram",)), [0, 1, 0], [0, 1, 2]) == [
        25
    ]


def test_workspace_is_the_largest_of_a_partitions_units_when_they_run() -> None:
    made = problem(workspace_bytes=[[3, 0], [5, 0], [4, 7]])
    assert peaks(made, [0, 0, 0], [0, 0, 0]) == [5, 0]
    assert peaks(made, [0, 0, 1], [0, 0, 1]) == [5, 7]


def test_workspaces_add_up_when_partitions_of_one_pool_run_at_once() -> None:
    side_by_side = Problem(
        time=np.full((2, 2), 10.0),
        silicon=[0, 1],
        pool=[0, 0],
        producer=[],
        read_tensor=[],
        read_unit=[],
        workspace_bytes=np.full((2, 2), 5),
    )
    assert peaks(side_by_side, [0, 1], [0, 1]) == [10]
    assert peaks(side_by_side, [0, 0], [0, 1]) == [5]


def test_tensor_lives_from_its_maker_to_its_last_reader_when_it_stays() -> None:
    # a's tensor is gone when c runs; each call of its own.
    made = problem(tensor_bytes=[1, 2, 4])
    assert peaks(made, [0, 0, 0], [0, 1, 2]) == [6, 0]
    assert peaks(made, [0, 0, 0], [0, 0, 0]) == [7, 0]


def test_tensor_lives_to_the_end_when_it_is_an_output() -> None:
    assert peaks(problem(tensor_bytes=[1, 2, 4], is_output=[True, False, False]), [0, 0, 0], [0, 1, 2]) == [
        7,
        0,
    ]


def test_tensor_is_in_both_pools_when_it_is_on_its_way() -> None:
    # b's tensor (2 bytes) is in ram until its handoff ends, in vram from its begin: c runs then.
    made = problem(tensor_bytes=[0, 2, 0], time=[[10, 10], [10, 10], [10, 10]])
    use = simulate(made, place([0, 0, 1], [0, 0, 1])).memory
    assert [(list(pool.times), list(pool.n_bytes)) for pool in use] == [
        ([0, 24], [2, 0]),
        ([0, 20, 34], [0, 2, 0]),
    ]
    # Where the handoff is part of c's call, both end with it, and vram begins with it.
    use = simulate(made.replace(overlap=False), place([0, 0, 1], [0, 0, 1])).memory
    assert [(list(pool.times), list(pool.n_bytes)) for pool in use] == [
        ([0, 34], [2, 0]),
        ([0, 20, 34], [0, 2, 0]),
    ]
    checked(made, place([0, 0, 1], [0, 0, 1]))
    checked(made.replace(overlap=False), place([0, 0, 1], [0, 0, 1]))


@pytest.mark.parametrize(("charge", "until"), [("partition", 38), ("target", 24)])
def test_tensor_is_kept_for_the_partition_that_pays_when_a_handoff_does_not_overlap(
    charge: str, until: float
) -> None:
    # Two calls on gpu read a's tensor, one after the other; charged once, the second needs no copy in ram.
    made = problem(
        producer=[0],
        read_tensor=[0, 0],
        read_unit=[1, 2],
        transfer=np.full((1, 2, 2), 4.0),
        tensor_bytes=[3],
        overlap=False,
        charge=charge,
    )
    plan = place([0, 1, 1], [0, 1, 2])
    ram = simulate(made, plan).memory[0]
    assert ram.times[-1] == until
    checked(made, plan)


def test_tensor_of_outside_begins_with_its_first_reader_when_it_comes_in() -> None:
    made = problem(producer=[0, OUTSIDE, 2], tensor_bytes=[0, 2, 0])
    ram = simulate(made, place([0, 0, 0], [0, 1, 2])).memory[0]
    assert (list(ram.times), list(ram.n_bytes)) == ([0, 20, 30], [0, 2, 0])
    assert peaks(made.replace(is_output=[False, True, False]), [0, 0, 0], [0, 1, 2]) == [2, 0]


def test_memory_is_not_used_when_nothing_takes_time() -> None:
    # The second call takes no time: its workspace is never there, and hides nothing that begins then.
    made = problem(
        time=[[10, 1], [0, 1], [10, 1]], workspace_bytes=[[1, 0], [100, 0], [7, 0]], tensor_bytes=[0, 0, 3]
    )
    assert peaks(made, [0, 0, 0], [0, 1, 2]) == [10, 0]


def test_memory_is_handed_over_when_one_ends_as_another_begins() -> None:
    made = problem(tensor_bytes=[5, 5, 5])
    assert peaks(made, [0, 0, 0], [0, 1, 2]) == [10, 0]


def test_objective_is_the_sum_of_peaks_when_memory_is_asked_for() -> None:
    made = problem(weight_bytes=[[1, 10], [2, 20], [4, 40]], objective="memory")
    assert checked(made, place([0, 1, 0], [0, 1, 2])).objective(made) == 25
    assert check(made, place([0, 1, 0], [0, 1, 2])).objective(made.replace(objective="latency")) == 38
