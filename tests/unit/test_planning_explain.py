"""Why a partition is where it is, and what moving a node would cost."""

from __future__ import annotations

import numpy as np
import pytest

from hal.errors import PlanError
from hal.planning.check import check
from hal.planning.costs import Modelled, model
from hal.planning.explain import NodeExplanation, explain_node, format_objective
from hal.planning.plans import assignment_of, plan_of
from hal.planning.problem import Assignment
from hal.records.plan import Alternative, Constraints, Plan
from hal.records.profile import RefusedNode
from tests.unit.placeable import BF16, FP32, ORT, energy, on, profile, times_table

#: OpenVINO: 160 us, 20 and 20; ONNX Runtime: 300, 5 and 15; both less what a call takes.
TABLES = (
    on(FP32, 210_000, times_table(160_000, 20_000, 20_000)),
    on(ORT, 326_000, times_table(300_000, 5_000, 15_000)),
)


def split(constraints: Constraints | None = None, *targets: str) -> tuple[Modelled, Plan]:
    """conv and pool on OpenVINO, head on ONNX Runtime, unless said otherwise."""
    modelled = model(profile(*TABLES), constraints)
    names = modelled.problem.target_names
    numbers = np.array([names.index(one) for one in targets or (FP32, FP32, ORT)], np.int32)
    partition = np.cumsum(np.concatenate([[0], numbers[1:] != numbers[:-1]])).astype(np.int32)
    return modelled, plan_of(modelled, Assignment(numbers, partition), solver="hand")


def test_runner_up_is_the_best_other_target_when_all_else_stays() -> None:
    modelled, found = split()
    # 10 + 160 + 20 of OpenVINO, 6 + 3 + 15 of ONNX Runtime.
    assert found.predicted.latency_ns == 214_000
    assert found.partitions[0].runner_up == Alternative(target=ORT, objective=pytest.approx(326_000))
    assert found.partitions[1].runner_up == Alternative(target=FP32, objective=pytest.approx(210_000))
    assert check(modelled.problem, assignment_of(modelled, found)).values.latency == pytest.approx(214_000)


def test_reason_tells_both_times_and_both_outcomes() -> None:
    _, found = split()
    assert found.partitions[0].reason == (
        f"its units take 180 us on {FP32} and 305 us on {ORT}: the plan would take 326 us instead of 214 us"
    )


def test_reason_says_that_handing_over_costs_more_when_the_other_computes_faster() -> None:
    _, found = split(None, FP32, FP32, FP32)
    whole = f"the model takes 200 us on {FP32} and 320 us on {ORT}, the next best"
    assert [one.reason for one in found.partitions] == [whole]
    modelled = model(profile(on(FP32, 98_000, times_table(50_000, 16_000, 22_000)), on(ORT, 96_000)))
    assignment = Assignment(np.array([0, 1, 0], np.int32), np.array([0, 1, 2], np.int32))
    mixed = plan_of(modelled, assignment, solver="hand")
    assert "handing over would cost more" not in mixed.partitions[1].reason
    assert mixed.partitions[1].runner_up == Alternative(target=FP32, objective=pytest.approx(98_000))
    kept = plan_of(
        modelled, Assignment(np.array([0, 1, 1], np.int32), np.array([0, 1, 1], np.int32)), solver="hand"
    )
    assert kept.partitions[0].runner_up is not None


def test_reason_says_what_other_targets_lack_when_none_can_compute_it() -> None:
    refused = (RefusedNode(node="conv", op="Conv", reason="only in 2D"),)
    made = profile(TABLES[0], on(ORT, 326_000, TABLES[1].kernels, refused=refused))
    modelled = model(made)
    assignment = Assignment(np.array([0, 1, 1], np.int32), np.array([0, 1, 1], np.int32))
    first = plan_of(modelled, assignment, solver="hand").partitions[0]
    assert first.runner_up is None
    assert first.reason == "no other target can compute all of it (Conv conv is refused: only in 2D)"


def test_reason_names_the_constraint_when_it_keeps_a_partition_in_place() -> None:
    made = profile(TABLES[0], on(BF16, 100_000, relative_l2=0.5))
    modelled = model(made, Constraints(max_error=0.4))
    whole = Assignment(np.zeros(3, np.int32), np.zeros(3, np.int32))
    found = plan_of(modelled, whole, solver="hand").partitions[0]
    assert (found.reason, found.runner_up) == ("on every other target it would break a constraint", None)


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        (
            "energy",
            f"the model takes 200 us on {FP32} and 320 us on {ORT}, the next best: "
            "the model would take 5 mJ instead of 3 mJ",
        ),
        ("memory", f"on {ORT} the model would take 17.6 KiB instead of 17.6 KiB"),
    ],
)
def test_reason_is_in_the_unit_of_the_objective(objective: str, reason: str) -> None:
    made = profile(
        on(FP32, 210_000, TABLES[0].kernels, energy=energy(3.0)),
        on(ORT, 326_000, TABLES[1].kernels, energy=energy(5.0)),
    )
    modelled = model(made, Constraints(objective=objective))
    whole = Assignment(np.zeros(3, np.int32), np.zeros(3, np.int32))
    assert plan_of(modelled, whole, solver="hand").partitions[0].reason == reason


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("latency", 1e6, "1.00 ms"), ("energy", 2.5, "2.5 mJ"), ("memory", 2048, "2.00 KiB")],
)
def test_objective_is_written_with_its_unit(name: str, value: float, text: str) -> None:
    assert format_objective(name, value) == text


# --- one node --------------------------------------------------------------------------------------


def told(node: str) -> NodeExplanation:
    return explain_node(*split(), node)


def test_node_is_explained_with_its_unit_and_every_target() -> None:
    found = told("relu")
    assert (found.op, found.unit, found.nodes) == ("Relu", "conv", ("conv", "relu"))
    assert (found.partition, found.target, found.objective) == (0, FP32, pytest.approx(214_000))
    here, there = found.targets
    assert (here.target, here.compute_ns, here.objective) == (FP32, 160_000, pytest.approx(214_000))
    # 6 + 300 of ONNX Runtime, 7 + 10 + 20 of OpenVINO (vrelu has 8 KiB), and the rest as it was.
    assert (there.target, there.compute_ns) == (ORT, 300_000)
    assert there.objective == pytest.approx(306_000 + 10_000 + 7_000 + 20_000 + 24_000)


def test_moved_node_joins_the_next_partition_when_that_is_on_its_new_target() -> None:
    there = next(one for one in told("pool").targets if one.target == ORT)
    # 10 + 160 of OpenVINO, then 6 + 5 (8 KiB) + 5 + 15 of ONNX Runtime in one call.
    assert there.objective == pytest.approx(170_000 + 31_000)


def test_unit_is_explained_by_its_name_too() -> None:
    assert told("head").node == "head"


def test_fixed_node_is_computed_when_its_readers_are_compiled() -> None:
    found = told("shape")
    assert (found.unit, found.partition, found.target, found.targets) == ("", 0, FP32, ())
    assert (
        found.reason
        == "it computes the same in each run, and is computed once, when its readers are compiled"
    )


def test_target_is_explained_with_its_reason_when_it_cannot_take_a_node() -> None:
    constraints = Constraints(pinned={"head": ORT}, max_partitions=2)
    modelled, found = split(constraints)
    pinned = explain_node(modelled, found, "head").targets[-1]
    assert (pinned.target, pinned.compute_ns, pinned.reason) == (FP32, None, f"head is pinned to {ORT}")
    many = explain_node(modelled, found, "conv").targets[-1]
    assert (many.target, many.objective, many.reason) == (ORT, None, "partitions: 3; at most 2 are allowed")


def test_node_is_refused_when_the_model_has_none_of_that_name() -> None:
    with pytest.raises(PlanError) as raised:
        told("poo")
    assert str(raised.value) == "model 'digits' has no node 'poo'; there are pool, pool"
    with pytest.raises(PlanError, match="has no node 'softmax'; there are shape to head"):
        told("softmax")


def test_reason_tells_the_difference_when_both_outcomes_look_alike() -> None:
    made = profile(on(FP32, 200_000_000), on(ORT, 200_040_000))
    modelled = model(made)
    assignment = Assignment(np.array([0, 0, 1], np.int32), np.array([0, 0, 1], np.int32))
    last = plan_of(modelled, assignment, solver="hand").partitions[1]
    assert last.runner_up is not None
    assert last.reason.endswith("the plan would take 200 ms instead of 200 ms (-0.01%)")
