"""What a problem accepts, what it refuses, and what it makes of defaults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from hal.errors import ProblemError
from hal.planning.problem import OUTSIDE, Assignment, Problem
from tests.unit.planning_problems import problems


def problem(**fields: Any) -> Problem:
    """Three units in a chain, two targets."""
    whole: dict[str, Any] = {
        "time": np.ones((3, 2)),
        "silicon": [0, 1],
        "pool": [0, 1],
        "producer": [0, 1],
        "read_tensor": [0, 1],
        "read_unit": [1, 2],
    }
    return Problem(**{**whole, **fields})


def test_problem_fills_in_defaults_of_the_right_size_when_little_is_given() -> None:
    made = problem()
    assert (made.n_units, made.n_targets, made.n_tensors, made.n_silicons, made.n_pools) == (3, 2, 2, 2, 2)
    assert made.transfer.shape == (2, 2, 2)
    assert not made.transfer.any()
    assert made.slots.tolist() == [1, 1]
    assert np.isinf(made.capacity).all()
    assert (made.link == -1).all()
    assert (made.same_device == -1).all()
    assert made.unit_names == ("unit 0", "unit 1", "unit 2")
    assert made.silicon_names == ("silicon 0", "silicon 1")


def test_problem_is_not_written_to_when_the_callers_arrays_change_later() -> None:
    time = np.ones((3, 2))
    made = problem(time=time)
    time[:] = 9
    assert (made.time == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        made.time[0, 0] = 2


def test_problem_counts_partitions_when_an_assignment_has_any() -> None:
    numbers = np.array([0, 2, 1], np.int32)
    assert Assignment(numbers, numbers).n_partitions == 3
    assert Assignment(numbers[:0], numbers[:0]).n_partitions == 0


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"transfer": np.zeros((2, 2))}, "transfer has shape (2, 2); expected (2, 2, 2)"),
        ({"is_output": [True]}, "is_output has shape (1,); expected (2,)"),
        ({"capacity": [1.0]}, "capacity has shape (1,); expected (2,)"),
        ({"silicon": [0]}, "silicon has 1 entries; expected 2"),
        ({"pool": [0, 1, 1]}, "pool has 3 entries; expected 2"),
        ({"read_unit": [1]}, "read_unit has 1 entries; expected 2"),
        ({"objective": "speed"}, "objective is 'speed'; expected one of latency, throughput, energy, memory"),
        ({"charge": "once"}, "charge is 'once'; expected one of edge, partition, target"),
        ({"start": "now"}, "start is 'now'; expected one of partition, unit"),
        ({"silicon": [0, 2]}, "silicon holds 0 to 2; expected 0 to 1"),
        ({"pool": [2, 0]}, "pool holds 0 to 2; expected 0 to 1"),
        ({"producer": [0, 3]}, "producer holds 0 to 3; expected -1 to 2"),
        ({"read_tensor": [0, 2]}, "read_tensor holds 0 to 2; expected 0 to 1"),
        ({"read_unit": [1, -1]}, "read_unit holds -1 to 1; expected 0 to 2"),
        ({"same_device": [0, 0, 3]}, "same_device holds 0 to 3; expected -1 to 2"),
        ({"link": [[-1, 4], [0, -1]]}, "link holds -1 to 4; expected -1 to 3"),
        ({"slots": [1, -1]}, "slots holds -1 to 1; expected 0 to 2147483647"),
        ({"partitions_per_target": [-2, 0]}, "partitions_per_target holds -2 to 0; expected 0 to"),
        (
            {"time": np.full((3, 2), np.nan)},
            "time holds a negative value or not a number; expected 0 or more",
        ),
        ({"time": -np.ones((3, 2))}, "time holds a negative value or not a number"),
        ({"call": [np.inf, 0]}, "call holds an infinite value; expected a finite one"),
        ({"max_error": -1.0}, "max_error is -1.0; expected 0 or more"),
        ({"max_error": np.nan}, "max_error is nan; expected 0 or more"),
        ({"max_partitions": -1}, "max_partitions is -1; expected 0 for any number, or more"),
        ({"tensor_bytes": [-1, 0]}, "tensor_bytes holds a negative value; expected 0 or more"),
        ({"weight_bytes": -np.ones((3, 2))}, "weight_bytes holds a negative value; expected 0 or more"),
        ({"workspace_bytes": -np.ones((3, 2))}, "workspace_bytes holds a negative value; expected 0 or more"),
        ({"unit_names": ("a",)}, "unit_names has 1 entries; expected 3"),
        ({"target_names": ("a",)}, "target_names has 1 entries; expected 2"),
        ({"pool_names": ("a",)}, "pool_names has 1 entries; expected 2"),
        ({"silicon_names": ("a",)}, "silicon_names has 1 entries; expected 2"),
        (
            {"read_tensor": [0, 0], "read_unit": [1, 1]},
            "a unit reads a tensor twice; expected each pair once",
        ),
        (
            {"read_unit": [1, 0], "unit_names": ("a", "b", "c")},
            "units on or behind a cycle: 2, a, b among them; expected a DAG",
        ),
        ({"read_unit": [0, 2]}, "units on or behind a cycle: 1, unit 0 among them; expected a DAG"),
    ],
)
def test_problem_says_what_does_not_fit_when_an_array_is_wrong(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ProblemError) as caught:
        problem(**fields)
    assert text in str(caught.value)


def test_problem_names_all_faults_at_once_when_there_are_several() -> None:
    with pytest.raises(ProblemError) as caught:
        problem(charge="once", start="now", call=[-1, 0])
    assert all(word in str(caught.value) for word in ("charge is", "start is", "call holds"))
    with pytest.raises(ProblemError) as caught:
        problem(silicon=[0], send=[1.0])
    assert all(word in str(caught.value) for word in ("silicon has", "send has shape"))


@pytest.mark.parametrize(("n", "t"), [(0, 2), (2, 0)])
def test_problem_is_refused_when_there_is_nothing_to_place_or_nowhere(n: int, t: int) -> None:
    nothing = np.zeros(0)
    silicon = np.arange(t)
    with pytest.raises(
        ProblemError, match=f"it has {n} units and {t} targets; expected at least one of each"
    ):
        Problem(
            time=np.ones((n, t)),
            silicon=silicon,
            pool=silicon,
            producer=nothing,
            read_tensor=nothing,
            read_unit=nothing,
        )


@given(problems())
@settings(max_examples=60, deadline=None)
def test_problem_orders_every_unit_after_what_it_reads_when_it_is_a_dag(made: Problem) -> None:
    position = np.empty(made.n_units, int)
    position[made.order] = np.arange(made.n_units)
    assert sorted(made.order) == list(range(made.n_units))
    maker = made.producer[made.read_tensor]
    inner = maker != OUTSIDE
    assert (position[maker[inner]] < position[made.read_unit[inner]]).all()
