"""From assignments to plans and back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.choosing.planner import asked, plan
from hal.errors import Infeasible, InputError, PlanError
from hal.planning.costs import Modelled, model
from hal.planning.partitions import partitioned
from hal.planning.plans import assignment_of, plan_of
from hal.planning.problem import Assignment
from hal.planning.simulate import simulate
from hal.records.plan import Constraints, Plan, Transfer
from tests.unit.compared import kernel, table
from tests.unit.placeable import (
    BF16,
    CONV,
    FACTS,
    FP32,
    GPU,
    HEAD,
    LINKS,
    ORT,
    POOL,
    energy,
    link,
    on,
    profile,
    times_table,
)


def placed(modelled: Modelled, *targets: str, partitions: tuple[int, ...] = (0, 1, 2)) -> Assignment:
    names = modelled.problem.target_names
    numbers = np.array([names.index(target) for target in targets], np.int32)
    return Assignment(numbers, np.array(partitions, np.int32))


def split(**fields: Any) -> tuple[Modelled, Plan]:
    """conv on OpenVINO, pool and head on ONNX Runtime."""
    modelled = model(profile())
    assignment = placed(modelled, FP32, ORT, ORT, partitions=(0, 1, 1))
    return modelled, plan_of(modelled, assignment, **{"solver": "hand", **fields})


# --- to a plan -------------------------------------------------------------------------------------


def test_plan_has_partitions_with_their_nodes_and_values() -> None:
    first, second = split()[1].partitions
    assert (first.target, first.units, first.nodes) == (FP32, ("conv",), ("conv", "relu"))
    assert (first.inputs, first.outputs, first.weight_bytes) == (("x",), ("vrelu",), 1000)
    # shape is the same in each run: it is in the first partition that reads it, with the weights it reads.
    assert second.nodes == ("shape", "pool", "guess", "head")
    assert (second.inputs, second.outputs, second.weight_bytes) == (("vrelu",), ("vhead",), 564 + 64)


def test_plan_predicts_what_the_simulator_says() -> None:
    modelled, found = split()
    first, second = found.partitions
    assert (first.start_ns, first.end_ns, first.compute_ns, first.handoff_ns) == (0, 70_000, 60_000, 10_000)
    # ONNX Runtime: 70000 + 5000 + 15000 of kernels, which is 96000 less a call of 6000.
    assert (second.start_ns, second.end_ns) == (70_000, 70_000 + 6_000 + 5_000 + 20_000)
    assert (second.compute_ns, second.handoff_ns) == (20_000, 11_000)
    assert found.predicted.latency_ns == 101_000
    simulated = simulate(modelled.problem, assignment_of(modelled, found))
    assert found.predicted.memory_bytes == {"host": round(simulated.peaks[0])}


def test_transfers_lie_behind_the_call_when_the_reader_makes_them() -> None:
    assert split()[1].transfers == (
        Transfer(value="x", source=-1, destination=0, n_bytes=4096, start_ns=10_000, end_ns=10_000),
        Transfer(value="vrelu", source=0, destination=1, n_bytes=8192, start_ns=76_000, end_ns=81_000),
    )


def test_transfers_lie_beside_computing_when_silicons_differ() -> None:
    modelled = model(profile(on(FP32, 400_000), on(GPU, 140_000)))
    found = plan_of(modelled, placed(modelled, FP32, GPU, GPU, partitions=(0, 1, 1)), solver="hand")
    beside = found.transfers[1]
    assert (beside.value, beside.start_ns) == ("vrelu", found.partitions[0].end_ns)
    assert beside.end_ns == beside.start_ns + 30_000 == found.partitions[1].start_ns
    assert [device.id for device in found.devices] == ["cpu:0", "cuda:0"]


def test_plan_says_how_far_from_the_bound_it_can_be() -> None:
    found = split(bound=90_900.0, bound_source="critical path")[1]
    assert (found.bound.value, found.bound.source) == (90_900.0, "critical path")
    assert found.bound.gap == pytest.approx(0.1)
    assert found.objective == found.predicted.latency_ns


def test_plan_names_what_its_costs_came_from() -> None:
    _, found = split(notes=("by hand",))
    assert (found.machine, found.estimated, found.solver) == ("measured", False, "hand")
    assert found.environment == profile().environment
    assert {(one.source, one.destination) for one in found.links} == {
        (one.source, one.destination) for one in LINKS if "cpu" in one.source and "cpu" in one.destination
    }
    assert found.notes == ("by hand",)


def test_energy_is_not_told_when_a_used_target_does_not_tell_it() -> None:
    modelled = model(profile(on(FP32, 100_000, energy=energy(3.0)), on(ORT, 96_000)))
    whole = plan_of(modelled, placed(modelled, FP32, FP32, FP32, partitions=(0, 0, 0)), solver="hand")
    assert whole.predicted.energy_mj == pytest.approx(3.0)
    mixed = plan_of(modelled, placed(modelled, FP32, ORT, ORT, partitions=(0, 1, 1)), solver="hand")
    assert mixed.predicted.energy_mj is None


def test_error_is_the_root_of_the_squares_when_precisions_are_mixed() -> None:
    modelled = model(
        profile(on(FP32, 100_000), on(BF16, 70_000, relative_l2=0.02)), Constraints(max_error=0.05)
    )
    found = plan_of(modelled, placed(modelled, BF16, FP32, FP32, partitions=(0, 1, 1)), solver="hand")
    assert found.predicted.error == pytest.approx(0.02 * (3999 / 6001) ** 0.5)


def test_output_that_is_the_same_in_each_run_is_made_by_the_first_partition_when_nobody_reads_it() -> None:
    facts = msgspec.structs.replace(FACTS, outputs=("vhead", "vshape"))
    modelled = model(profile(facts=facts))
    found = plan_of(modelled, placed(modelled, FP32, ORT, ORT, partitions=(0, 1, 1)), solver="hand")
    assert found.partitions[1].outputs == ("vshape", "vhead")


def test_placement_is_refused_when_it_breaks_constraints() -> None:
    modelled = model(profile(), Constraints(max_partitions=2, memory_bytes={"host": 100}))
    with pytest.raises(PlanError) as raised:
        plan_of(modelled, placed(modelled, FP32, ORT, FP32), solver="hand")
    text = str(raised.value)
    assert text.startswith("the placement of 'digits' breaks constraints:\n")
    assert "partitions: 3; at most 2 are allowed" in text
    assert "host needs" in text


# --- and back --------------------------------------------------------------------------------------


def test_plan_stands_for_its_assignment() -> None:
    modelled, found = split()
    again = assignment_of(modelled, found)
    assert (again.target.tolist(), again.partition.tolist()) == ([0, 1, 1], [0, 1, 1])


def test_plan_fits_other_units_when_none_is_split() -> None:
    _, found = split()
    wider = table(kernel("conv", "relu", median_ns=CONV), kernel("pool", "head", median_ns=POOL + HEAD))
    modelled = model(profile(on(FP32, 100_000, wider), on(ORT, 96_000)))
    assert assignment_of(modelled, found).partition.tolist() == [0, 1]


def test_partition_of_fixed_nodes_alone_is_left_out_when_a_plan_has_one() -> None:
    modelled, found = split()
    first, second = found.partitions
    lone = msgspec.structs.replace(first, nodes=("shape",), units=())
    rest = msgspec.structs.replace(second, nodes=("pool", "guess", "head"))
    again = assignment_of(modelled, msgspec.structs.replace(found, partitions=(lone, first, rest)))
    assert again.partition.tolist() == [0, 1, 1]


def test_plan_is_refused_when_it_is_of_another_model() -> None:
    modelled, found = split()
    other = msgspec.structs.replace(found.model, digest="f" * 64)
    with pytest.raises(PlanError) as raised:
        assignment_of(modelled, msgspec.structs.replace(found, model=other))
    assert str(raised.value) == (
        "the plan is of model 'digits' with digest ffffffffffff, the profile of 'digits' with 3f2a91c0b7de: "
        "weights, nodes or input shapes differ; plan again"
    )


def test_all_faults_of_a_plan_are_named_when_it_does_not_fit() -> None:
    modelled, found = split()
    first, second = found.partitions
    broken = msgspec.structs.replace(
        found,
        partitions=(
            msgspec.structs.replace(first, target=BF16, nodes=("conv",)),
            msgspec.structs.replace(second, nodes=("relu", "pool", "guess", "conv")),
        ),
    )
    with pytest.raises(PlanError) as raised:
        assignment_of(modelled, broken)
    assert str(raised.value) == (
        "the plan does not fit the profile of 'digits':\n"
        f"  - partition 0 is on {BF16}, which cannot be used: it is not in the profile\n"
        "  - node 'conv' is in partitions 0 and 1\n"
        "  - unit 'conv', which is placed whole, is in partitions 0, 1\n"
        "  - node 'head' is in no partition"
    )


def test_reason_is_told_when_a_plans_target_is_out() -> None:
    _, found = split()
    modelled = model(profile(on(FP32, 100_000), on(ORT, 96_000, status="wrong", reason="off by 3")))
    with pytest.raises(PlanError, match=f"partition 1 is on {ORT}, which cannot be used: wrong: off by 3"):
        assignment_of(modelled, found)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=3), st.integers(0, 3))
def test_plan_covers_each_node_once_and_comes_back_as_it_was(targets: list[int], objective: int) -> None:
    names = ("latency", "throughput", "energy", "memory")
    made = profile(
        on(FP32, 100_000, energy=energy(3.0)),
        on(ORT, 96_000, times_table(70_000, 5_000, 15_000), energy=energy(2.0)),
        on(GPU, 140_000, energy=energy(9.0)),
    )
    modelled = model(made, Constraints(objective=names[objective]))
    assignment = partitioned(modelled.problem, np.array(targets))
    found = plan_of(modelled, assignment, solver="random")
    counts = Counter(node for partition in found.partitions for node in partition.nodes)
    assert counts == Counter(node.name for node in FACTS.nodes)
    again = assignment_of(modelled, msgspec.json.decode(msgspec.json.encode(found), type=Plan))
    assert again.target.tolist() == assignment.target.tolist()
    assert again.partition.tolist() == assignment.partition.tolist()
    made_before = set(FACTS.inputs)
    for partition in found.partitions:
        assert set(partition.inputs) <= made_before
        made_before |= set(partition.outputs)
    assert set(FACTS.outputs) <= made_before


# --- the planner -----------------------------------------------------------------------------------


def test_best_mix_is_found_when_handing_over_is_cheap() -> None:
    # OpenVINO is better at conv by 100 us, ONNX Runtime at the rest by 100 us.
    cheap = tuple(
        link(source, destination, 1_000, 1_000, alone_ns=(1_000, 1_000))
        for source in ("cpu:0/openvino", "cpu:0/onnxruntime")
        for destination in ("cpu:0/openvino", "cpu:0/onnxruntime")
    )
    made = profile(
        on(FP32, 301_000, times_table(100_000, 100_000, 100_000)),
        on(ORT, 301_000, times_table(200_000, 50_000, 50_000)),
        links=cheap,
    )
    # The search ends when the bound is reached; compiling it the first time takes longer.
    found = plan(made, budget_s=120)
    assert [(one.target, one.units) for one in found.partitions] == [
        (FP32, ("conv",)),
        (ORT, ("pool", "head")),
    ]
    assert found.predicted.latency_ns == 101_000 + 102_000
    assert found.bound.gap == pytest.approx(0, abs=1e-9)


def test_single_target_is_the_plan_when_handing_over_costs_more_than_it_saves() -> None:
    found = plan(profile(on(FP32, 100_000), on(ORT, 99_000, times_table(71_000, 9_000, 13_000))))
    assert [one.target for one in found.partitions] == [ORT]
    assert found.predicted.latency_ns == 99_000


def test_memory_limit_holds_when_it_is_given_as_text() -> None:
    made = profile(on(FP32, 400_000), on(GPU, 140_000))
    assert plan(made).targets == (GPU,)
    found = plan(made, memory={"cuda:0": "1 KiB"})
    assert found.targets == (FP32,)
    assert found.constraints.memory_bytes == {"cuda:0": 1024}


def test_pinned_node_stays_when_another_target_is_faster() -> None:
    made = profile(on(FP32, 400_000), on(ORT, 96_000))
    found = plan(made, pinned={"relu": FP32})
    home = {node: one.target for one in found.partitions for node in one.nodes}
    assert (home["relu"], home["head"]) == (FP32, ORT)


def test_planning_is_refused_with_the_constraint_when_no_plan_keeps_it() -> None:
    with pytest.raises(Infeasible, match="host"):
        plan(profile(), memory={"cpu:0": 10})


def test_memory_limit_is_refused_when_it_is_no_size() -> None:
    with pytest.raises(InputError) as raised:
        asked(memory={"cuda:0": "8 gigs"})
    assert str(raised.value) == (
        "the memory limit of 'cuda:0' cannot be read: '8 gigs' is not a size; expected a number and one of "
        "b, gb, gib, kb, kib, mb, mib, tb, tib, for example 8GiB"
    )
