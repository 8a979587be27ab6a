"""Placement problems from profiles: units, times, handoffs, limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import TargetError, UserError
from hal.planning.costs import Modelled, model
from hal.planning.costs_times import CALL_NS, FLOOR, gap_of
from hal.planning.costs_units import placeable
from hal.planning.problem import Assignment
from hal.planning.simulate import Simulation, simulate
from hal.records.facts import ModelFacts, NodeFact
from hal.records.machine import Link, MachineProfile
from hal.records.plan import BoundaryCost, Constraints
from hal.records.profile import Profile, RefusedNode
from tests.unit.compared import kernel, table
from tests.unit.placeable import (
    BF16,
    CONV,
    CUDA,
    FACTS,
    FP32,
    GPU,
    HEAD,
    LINKS,
    ORT,
    PLAIN,
    POOL,
    RESTING,
    energy,
    link,
    on,
    profile,
    times_table,
)


def asked(**fields: Any) -> Constraints:
    return Constraints(**fields)


def alone(modelled: Modelled, target: str, *cuts: int) -> Simulation:
    """The whole model on one target, in one partition or cut before the units with these numbers."""
    problem = modelled.problem
    at = problem.target_names.index(target)
    partition = np.searchsorted(np.array(cuts, np.int64), np.arange(problem.n_units), side="right")
    return simulate(problem, Assignment(np.full(problem.n_units, at, np.int32), partition.astype(np.int32)))


def mixed(modelled: Modelled, *targets: str) -> Simulation:
    """One target per unit; each change of target begins a partition."""
    names = modelled.problem.target_names
    numbers = np.array([names.index(target) for target in targets], np.int32)
    partition = np.cumsum(np.concatenate([[0], numbers[1:] != numbers[:-1]])).astype(np.int32)
    return simulate(modelled.problem, Assignment(numbers, partition))


# --- units and values ----------------------------------------------------------------------------


def test_model_places_every_working_node_when_some_are_in_no_unit() -> None:
    placed = model(profile()).placed
    assert [unit.nodes for unit in placed.units] == [("conv", "relu"), ("pool", "guess"), ("head",)]
    assert "shape" not in placed.home


def test_model_hands_over_values_between_units_when_weights_are_read_too() -> None:
    placed = model(profile()).placed
    assert placed.values == ("x", "vrelu", "vguess", "vhead")
    assert placed.producer == (-1, 0, 1, 2)
    assert placed.readers == ((0,), (1,), (2,), ())
    assert placed.is_output == (False, False, False, True)
    assert placed.n_bytes == (4096, 8192, 4096, 40)


def test_units_are_joined_when_the_size_between_them_is_not_known() -> None:
    sizes = {name: size for name, size in FACTS.value_bytes.items() if name != "vrelu"}
    facts = msgspec.structs.replace(FACTS, value_bytes=sizes)
    modelled = model(profile(facts=facts))
    assert [unit.nodes for unit in modelled.placed.units] == [("conv", "relu", "pool", "guess"), ("head",)]
    assert modelled.placed.units[0].costs[FP32].median_ns == CONV + POOL


def test_units_stay_convex_when_ones_far_apart_are_joined() -> None:
    # a -> b -> c and a -> c, where what a hands to c has no size: b must come along.
    nodes = tuple(
        NodeFact(name=name, op="Add", reads=reads, writes=writes)
        for name, reads, writes in (
            ("a", ("x",), ("big", "open")),
            ("b", ("big",), ("vb",)),
            ("c", ("vb", "open"), ("vc",)),
            ("d", ("vc",), ("vd",)),
        )
    )
    facts = ModelFacts(
        nodes=nodes,
        value_bytes={"x": 4, "big": 4, "vb": 4, "vc": 4, "vd": 4},
        weights=frozenset(),
        inputs=("x",),
        outputs=("vd",),
    )
    kernels = table(*(kernel(node.name, median_ns=1000) for node in nodes))
    found = model(profile(on(FP32, 10_000, kernels), facts=facts)).placed
    assert [unit.nodes for unit in found.units] == [("a", "b", "c"), ("d",)]


def test_idle_node_is_a_unit_of_no_time_when_it_reads_from_several() -> None:
    nodes = tuple(
        NodeFact(name=name, op="Add", reads=reads, writes=(f"v{name}",))
        for name, reads in (("a", ("x",)), ("b", ("x",)), ("join", ("va", "vb")), ("c", ("vjoin",)))
    )
    facts = ModelFacts(
        nodes=nodes,
        value_bytes=dict.fromkeys(("x", "va", "vb", "vjoin", "vc"), 4),
        weights=frozenset(),
        inputs=("x",),
        outputs=("vc",),
    )
    kernels = table(*(kernel(name, median_ns=3000) for name in "abc"), folded=("join",))
    modelled = model(profile(on(FP32, 20_000, kernels), facts=facts))
    assert [unit.nodes for unit in modelled.placed.units] == [("a",), ("b",), ("join",), ("c",)]
    assert modelled.problem.time[2].tolist() == [0]


def test_whole_model_is_one_unit_when_a_profile_has_none() -> None:
    placed = placeable(FACTS, ())
    assert [len(unit.nodes) for unit in placed.units] == [len(FACTS.nodes)]
    assert (placed.values, placed.readers) == (("x", "vhead"), ((0,), ()))


# --- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("median_ns", [70_000, 100_000, 250_000])
def test_one_target_takes_what_was_measured_when_it_has_the_whole_model(median_ns: int) -> None:
    modelled = model(profile(on(FP32, median_ns), on(ORT, 96_000)))
    assert alone(modelled, FP32).latency == pytest.approx(median_ns)
    assert alone(modelled, ORT).latency == pytest.approx(96_000)


def test_gap_is_the_same_for_every_kernel_when_runs_take_longer_than_their_kernels() -> None:
    # 105000 - a call of 10000 - 90000 of kernels leaves 5000 for three.
    found = model(profile(on(FP32, 105_000))).problem
    assert found.call.tolist() == [10_000]
    assert found.time[:, 0] == pytest.approx([CONV + 5000 / 3, POOL + 5000 / 3, HEAD + 5000 / 3])


def test_each_kernel_loses_the_same_when_instruments_inflate_them() -> None:
    found = model(profile(on(FP32, 79_000))).problem
    assert found.time[:, 0] == pytest.approx([CONV - 7000, POOL - 7000, HEAD - 7000])


def test_kernels_keep_a_floor_when_instruments_cost_more_than_they_take() -> None:
    found = model(profile(on(FP32, 50_000))).problem
    assert found.time[1, 0] == pytest.approx(FLOOR * POOL)
    assert found.time[:, 0].sum() == pytest.approx(40_000)


def test_all_kernels_are_scaled_when_the_machine_was_slower_beside_the_instruments() -> None:
    # Beside them a run took 220000: 210000 less 90000 is 40000 a kernel; then halved, for bursts took 115000.
    kernels = times_table(CONV, POOL, HEAD, plain_ns=220_000)
    found = model(profile(on(FP32, 115_000, kernels))).problem
    assert found.time[:, 0] == pytest.approx([50_000, 25_000, 30_000])


def test_views_take_nothing_when_others_have_gaps() -> None:
    found = model(profile(on(FP32, 100_000, times_table(CONV, 0, HEAD)))).problem
    assert found.time[:, 0] == pytest.approx([65_000, 0, 25_000])


def test_kernel_of_no_unit_counts_for_what_runs_next_when_a_runtime_adds_one() -> None:
    reorder = msgspec.structs.replace(kernel(median_ns=6000), order=1)
    conv, pool, head = (
        msgspec.structs.replace(one, order=order) for one, order in zip(PLAIN.kernels, (0, 2, 3), strict=True)
    )
    kernels = table(conv, pool, head, reorder, folded=PLAIN.folded)
    modelled = model(profile(on(FP32, 106_000, kernels)))
    assert modelled.problem.time[:, 0] == pytest.approx([CONV, POOL + 6000, HEAD])
    assert modelled.notes == (
        f"{FP32}: 6.2% of its time is in kernels of no unit and counts for what ran next",
    )


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda found: max(found) > 0),
    st.floats(0.2, 20),
)
def test_gap_makes_kernels_add_up_to_a_total(durations: list[float], share: float) -> None:
    kernels = np.array(durations)
    total = share * kernels.sum()
    gap = gap_of(kernels, total)
    corrected = np.where(kernels > 0, np.maximum(kernels + gap, FLOOR * kernels), 0)
    assert corrected.sum() == pytest.approx(total, rel=1e-6)


def test_call_is_estimated_and_said_when_no_link_tells() -> None:
    modelled = model(profile(on(FP32, 100_000), links=()))
    assert modelled.problem.call.tolist() == [CALL_NS]
    assert modelled.estimated
    assert modelled.notes == (
        f"what a call takes was not measured on {FP32} and is estimated; hal devices --measure measures it",
    )


def test_call_takes_half_a_run_at_most_when_runs_are_short() -> None:
    modelled = model(profile(on(FP32, 8_000)))
    assert modelled.problem.call.tolist() == [4_000]
    assert alone(modelled, FP32).latency == pytest.approx(8_000)


# --- targets ---------------------------------------------------------------------------------------


def test_target_that_defines_no_units_is_cut_at_the_price_of_the_model() -> None:
    fused = table(kernel("conv", "relu", "pool", "guess", "head", median_ns=40_000), defines_units=False)
    compiled = f"{FP32}+mode=compiled"
    modelled = model(profile(on(FP32, 100_000), on(compiled, 50_000, fused)))
    assert alone(modelled, compiled).latency == pytest.approx(50_000)
    assert alone(modelled, compiled, 1).latency >= 100_000
    assert mixed(modelled, compiled, FP32, FP32).latency >= 50_000 + alone(modelled, FP32).latency / 3
    assert f"{compiled} is offered for the whole model" in modelled.notes[0]


def test_target_without_kernels_has_shares_of_the_others_when_only_the_model_was_timed() -> None:
    modelled = model(profile(on(FP32, 100_000), on(ORT, 60_000, None)))
    at = modelled.problem.target_names.index(ORT)
    shares = modelled.problem.time / modelled.problem.time.sum(axis=0)
    assert shares[:, at] == pytest.approx(shares[:, 1 - at])


def test_shares_are_by_work_when_no_kernels_tell_at_all() -> None:
    made = msgspec.structs.replace(profile(on(FP32, 100_000, None)), units=profile().units)
    found = model(made).problem
    assert found.time.sum() == pytest.approx(90_000)
    assert found.time[0] > found.time[2] > 0


def test_spinning_target_is_for_the_whole_model_when_its_twin_was_measured() -> None:
    modelled = model(profile(on(FP32, 100_000), on(ORT, 60_000), on(RESTING, 80_000)))
    assert alone(modelled, ORT).latency == pytest.approx(60_000)
    assert mixed(modelled, FP32, ORT, ORT).latency > 100_000
    # conv on OpenVINO and a handoff of 5 us, then a third of what the twin takes for its kernels.
    twin = (POOL - 16_000 / 3) + (HEAD - 16_000 / 3)
    assert mixed(modelled, FP32, RESTING, RESTING).latency == pytest.approx(
        10_000 + CONV + 5_000 + 6_000 + twin
    )
    assert "for parts it has one thread, or none that spin" in modelled.notes[0]


def test_twin_comes_along_when_only_the_spinning_target_was_asked_for() -> None:
    found = model(profile(on(FP32, 100_000), on(ORT, 60_000), on(RESTING, 80_000)), asked(targets=(ORT,)))
    assert found.problem.target_names == (ORT, RESTING)
    assert found.excluded == {FP32: "it was not asked for"}


@pytest.mark.parametrize(
    ("fields", "constraints", "reason"),
    [
        ({"status": "wrong", "reason": "off by 3"}, {}, "wrong: off by 3"),
        ({"status": "failed"}, {}, "failed"),
        ({"timing": None}, {}, "its time was not measured"),
        ({"name": BF16}, {}, "it computes in bf16, and no error is allowed"),
        (
            {"name": BF16, "errors": ()},
            {"max_error": 0.1},
            "it computes in bf16, and its error was not measured",
        ),
        ({"name": BF16, "relative_l2": None}, {"max_error": 0.1}, "its error is infinite"),
        (
            {"energy": None},
            {"objective": "energy"},
            "its energy was not measured: the device does not tell, or it may not be read",
        ),
    ],
)
def test_target_is_out_with_the_reason_when_it_cannot_be_used(
    fields: dict[str, Any], constraints: dict[str, Any], reason: str
) -> None:
    bad = on(fields.pop("name", ORT), 50_000, **fields)
    found = model(profile(on(FP32, 100_000, energy=energy(3.0)), bad), asked(**constraints))
    assert found.problem.target_names == (FP32,)
    assert found.excluded == {bad.target: reason}


def test_model_is_refused_when_no_target_is_left() -> None:
    bad = profile(on(BF16, 50_000), on(ORT, 50_000, status="wrong", reason="off by 3"))
    with pytest.raises(TargetError) as raised:
        model(bad)
    assert str(raised.value) == (
        "no target is left to place 'digits' on:\n"
        f"  - {BF16}: it computes in bf16, and no error is allowed\n"
        f"  - {ORT}: wrong: off by 3"
    )


def test_model_is_refused_when_a_wanted_target_was_not_profiled() -> None:
    with pytest.raises(TargetError) as raised:
        model(profile(), asked(targets=("gpu:0/*",)))
    assert str(raised.value) == (
        f"no target 'gpu:0/*' is in the profile of 'digits'; there are {FP32}, {ORT}; "
        "profile the model on it first"
    )


def test_unit_cannot_run_when_a_node_of_it_was_refused() -> None:
    refused = (RefusedNode(node="pool", op="MaxPool", reason="only in 2D"),)
    problem = model(profile(on(FP32, 100_000), on(ORT, 96_000, refused=refused))).problem
    assert np.isinf(problem.time[1, 1])
    assert np.isfinite(problem.time).sum() == 5
    assert problem.reasons == {(1, 1): "MaxPool pool is refused: only in 2D"}


def test_model_is_refused_when_the_profile_is_too_old() -> None:
    with pytest.raises(UserError) as raised:
        model(msgspec.structs.replace(profile(), facts=None))
    assert str(raised.value) == (
        "the profile of 'digits' says nothing of the model's nodes: it was written by hal 0.1.0; "
        "profile the model again"
    )


def test_all_faults_are_named_when_what_is_asked_for_cannot_be() -> None:
    with pytest.raises(UserError) as raised:
        model(profile(), asked(objective="speed", max_error=-1.0, max_partitions=-2))
    assert str(raised.value) == (
        "the plan cannot be made as asked for:\n"
        "  - objective 'speed' is unknown; expected one of latency, throughput, energy, memory\n"
        "  - max_error is -1.0; expected 0 or more\n"
        "  - max_partitions is -2; expected 0 for any number, or more"
    )


# --- handoffs --------------------------------------------------------------------------------------


def test_reader_takes_what_the_link_says_when_both_compute_on_one_silicon() -> None:
    modelled = model(profile(on(FP32, 100_000), on(ORT, 96_000)))
    found = mixed(modelled, FP32, FP32, ORT)
    # vguess has 4 KiB: 3 us; calls of 10 and 6 us, kernels as measured.
    assert found.latency == pytest.approx(10_000 + CONV + POOL + 3_000 + 6_000 + HEAD)


def test_links_of_a_machine_count_when_one_is_given() -> None:
    other = [link("cpu:0/openvino", "cpu:0/onnxruntime", 50_000, 50_000, alone_ns=(10_000, 6_000))]
    modelled = model(profile(), machine=_machine(other))
    assert modelled.problem.transfer[2, 0, 1] == 50_000
    assert [one.source for one in modelled.links] == ["cpu:0/openvino"]


def _machine(links: Sequence[Link]) -> MachineProfile:
    made = profile()
    return MachineProfile(
        schema_version=1,
        hal_version="0.1.0",
        created="",
        environment=made.environment,
        devices=(),
        ceilings=(),
        links=tuple(links),
    )


def test_handoffs_are_estimated_and_said_when_no_link_was_measured() -> None:
    links = [one for one in LINKS if one.source == one.destination]
    modelled = model(profile(links=tuple(links)))
    assert modelled.problem.transfer[1, 0, 1] > 10_000
    assert modelled.estimated
    assert modelled.notes[-1] == (
        "handoffs were not measured and are estimated: cpu:0/openvino to cpu:0/onnxruntime, "
        "cpu:0/onnxruntime to cpu:0/openvino"
    )


def test_boundaries_cost_what_they_were_measured_to_when_that_is_fed_back() -> None:
    extras = [
        BoundaryCost(value="vrelu", source=FP32, destination=ORT, extra_ns=1_000),
        BoundaryCost(value="", source=FP32, destination=ORT, extra_ns=100),
        BoundaryCost(value="vguess", source="", destination="", extra_ns=-1_000_000),
        BoundaryCost(value="no such value", source="", destination="", extra_ns=7),
    ]
    found = model(profile(), extras=extras).problem.transfer
    assert found[1, 0, 1] == 5_000 + 1_100
    assert found[1, 1, 0] == 7_000
    assert not found[2].any()


def gpu_profile(**fields: Any) -> Profile:
    return profile(on(FP32, 400_000), on(GPU, 140_000, **fields))


def test_device_takes_inputs_and_brings_outputs_when_it_has_the_whole_model() -> None:
    modelled = model(gpu_profile())
    assert alone(modelled, GPU).latency == pytest.approx(140_000)
    at = modelled.problem.target_names.index(GPU)
    assert modelled.problem.receive[:, at].tolist() == [20_000, 0, 0, 0]
    # 4 KiB take 25 us to the host, and 40 bytes less.
    assert modelled.problem.send[2, at] == 25_000
    inside = 140_000 - 5_000 - 20_000 - modelled.problem.send[3, at]
    assert modelled.problem.time[:, at].sum() == pytest.approx(inside)


def test_estimated_run_has_no_transfers_in_it_when_nothing_was_run() -> None:
    guess = msgspec.structs.replace(on(GPU, 140_000).timing, n=0)
    modelled = model(gpu_profile(timing=guess))
    at = modelled.problem.target_names.index(GPU)
    assert modelled.problem.time[:, at].sum() == pytest.approx(135_000)
    assert modelled.estimated
    assert not modelled.is_imagined


def test_tensor_goes_beside_computing_when_silicons_differ() -> None:
    modelled = model(gpu_profile())
    problem = modelled.problem
    cpu, gpu = (problem.target_names.index(name) for name in (FP32, GPU))
    # No link between the two was measured: it is the one from the host, where the processor's tensors are.
    assert problem.transfer[2, cpu, gpu] == 20_000
    # What the GPU brings to the host is part of its own call.
    assert problem.transfer[2, gpu, cpu] == 0
    assert not modelled.estimated
    assert problem.silicon[cpu] != problem.silicon[gpu]
    assert problem.link[cpu, gpu] >= 0
    assert problem.link[cpu, gpu] != problem.link[gpu, cpu]
    assert problem.link[cpu, cpu] == -1
    found = mixed(modelled, FP32, GPU, GPU)
    assert any(event.kind == "handoff" for event in found.events)


def test_direct_link_loses_what_the_sender_takes_itself_when_it_was_measured() -> None:
    direct = link(CUDA, "cpu:0/openvino", 27_000, 37_000, alone_ns=(5_000, 10_000))
    modelled = model(msgspec.structs.replace(gpu_profile(), links=(*LINKS, direct)))
    problem = modelled.problem
    cpu, gpu = (problem.target_names.index(name) for name in (FP32, GPU))
    assert problem.transfer[2, gpu, cpu] == 2_000
