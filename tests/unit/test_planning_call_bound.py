"""The bound of a path: never above the optimum, tight where calls are all there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hal.planning.call_bound import applies, call_bound
from hal.planning.problem import Problem
from hal.planning.search import Best, Budget
from tests.unit.brute_force import TooMany, optima
from tests.unit.planning_problems import SHAPES, random_problem
from tests.workloads.dnn_partitioning import latency
from tests.workloads.instances import workloads

#: Seconds that are never spent.
PLENTY = 500.0


def bound_of(problem: Problem) -> float:
    best = Best(problem)
    call_bound(problem, best, Budget(PLENTY))
    return best.bound


def chain(n: int, **fields: Any) -> Problem:
    """A chain on two accelerators that run one partition each, and on a CPU that is slow."""
    handed = np.tile([1.0, 1.0, 0.0], (n, 1))
    drawn = {
        "time": np.tile([1.0, 1.0, 10.0], (n, 1)),
        "silicon": np.arange(3),
        "pool": np.arange(3),
        "producer": np.arange(n),
        "read_tensor": np.arange(n - 1),
        "read_unit": np.arange(1, n),
        "send": handed,
        "receive": handed,
        "slots": [1, 1, 0],
        "partitions_per_target": [1, 1, 0],
        "charge": "target",
        "overlap": False,
    }
    return Problem(**{**drawn, **fields})


def test_bound_is_the_critical_path_when_all_fits_one_accelerator() -> None:
    assert bound_of(chain(6)) == pytest.approx(6)


def test_bound_counts_what_is_handed_over_when_no_accelerator_holds_all() -> None:
    weights = np.tile([10, 10, 0], (6, 1))

    # Three units on each accelerator: one tensor sent, one received.
    assert bound_of(chain(6, weight_bytes=weights, capacity=[30, 30, np.inf])) == pytest.approx(6 + 2)


def test_bound_goes_through_the_cpu_when_accelerators_hold_too_little() -> None:
    weights = np.tile([10, 10, 0], (6, 1))

    # Two units on each accelerator, two on the CPU; at the ends of the chain nothing is handed over.
    assert bound_of(chain(6, weight_bytes=weights, capacity=[20, 20, np.inf])) == pytest.approx(4 + 20 + 2)


def test_bound_counts_units_beside_the_path_when_a_call_must_hold_them() -> None:
    # 0 -> (1, 2, 3) -> 4 on one target of one partition: the path is 3 long, the call holds 5.
    fields: dict[str, Any] = {
        "time": np.ones((5, 1)),
        "silicon": [0],
        "pool": [0],
        "producer": np.arange(5),
        "read_tensor": [0, 0, 0, 1, 2, 3],
        "read_unit": [1, 2, 3, 4, 4, 4],
        "partitions_per_target": [1],
        "call": [2.0],
    }

    assert bound_of(Problem(**fields)) == pytest.approx(7)


def test_bound_counts_units_that_share_a_device_when_one_is_on_the_path() -> None:
    # Unit 2 stands alone, and shares the device of unit 0; only a target of one partition holds both at once.
    fields: dict[str, Any] = {
        "silicon": [0],
        "pool": [0],
        "producer": [0, 1, 2],
        "read_tensor": [0],
        "read_unit": [1],
        "same_device": [0, -1, 0],
        "slots": [0],
    }
    fields["time"] = [[1.0], [6.0], [5.0]]

    assert bound_of(Problem(**fields)) == pytest.approx(7)
    assert bound_of(Problem(**{**fields, "partitions_per_target": [1]})) == pytest.approx(12)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from(SHAPES),
    st.sampled_from(("partition", "edge", "target")),
    st.booleans(),
    st.sampled_from((0.0, 0.5)),
)
def test_bound_is_not_above_the_optimum_when_problems_are_any(
    seed: int, n: int, t: int, shape: str, charge: str, few: bool, limits: float
) -> None:
    rng = np.random.default_rng(seed)
    rules: dict[str, Any] = {"start": "partition", "objective": "latency", "charge": charge, "limits": limits}
    if few:
        rules["partitions_per_target"] = rng.integers(0, 2, t)
    problem = random_problem(rng, n, t, shape=shape, **rules)
    try:
        least, _ = optima(problem, 200_000)
    except TooMany:
        assume(False)

    assert bound_of(problem) <= least["latency"].value * (1 + 1e-9)


@pytest.mark.parametrize(
    ("name", "bound"), [("LayerGraphs.bert24", 100.2185), ("OperatorGraphs.bert_l-6", 429.709)]
)
def test_bound_reaches_what_it_did_when_accelerators_run_one_partition(name: str, bound: float) -> None:
    folder = workloads()
    if folder is None:
        pytest.skip("HAL_WORKLOADS does not name a folder with the public problems")
    problem = latency(folder / "dnn-partitioning" / "latency" / f"{name}_inference.json")

    assert bound_of(problem) == pytest.approx(bound, rel=1e-5)


def test_bound_is_not_looked_for_when_units_start_alone() -> None:
    problem = chain(3, start="unit", partitions_per_target=None)

    assert not applies(problem)
    assert bound_of(problem) == 0
