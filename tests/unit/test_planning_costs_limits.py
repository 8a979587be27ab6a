"""Error, energy, memory and pins in placement problems from profiles."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from hal.errors import TargetError, UserError
from hal.planning.costs import Modelled, model
from hal.planning.costs_limits import live_bytes_of
from hal.planning.problem import Assignment
from hal.planning.simulate import Simulation, simulate
from hal.records.plan import Constraints
from hal.records.profile import MemoryPeak, Profile
from tests.unit.placeable import BF16, FACTS, FP32, GPU, ORT, RESTING, energy, on, profile


def asked(**fields: Any) -> Constraints:
    return Constraints(**fields)


def alone(modelled: Modelled, target: str) -> Simulation:
    """The whole model on one target."""
    n_units, at = modelled.problem.n_units, modelled.problem.target_names.index(target)
    whole = Assignment(np.full(n_units, at, np.int32), np.zeros(n_units, np.int32))
    return simulate(modelled.problem, whole)


def gpu_profile(**fields: Any) -> Profile:
    return profile(on(FP32, 400_000), on(GPU, 140_000, **fields))


def test_error_of_a_plan_is_that_of_its_part_of_the_work_when_precisions_are_mixed() -> None:
    modelled = model(profile(on(FP32, 100_000), on(BF16, 70_000, relative_l2=0.02)), asked(max_error=0.05))
    problem = modelled.problem
    assert problem.max_error == pytest.approx(0.05**2)
    assert not problem.error[:, 0].any()
    assert math.sqrt(problem.error[:, 1].sum()) == pytest.approx(0.02)
    # conv and relu have 3998 of the model's 5998 operations; each unit counts one more.
    assert problem.error[0, 1] == pytest.approx(0.02**2 * 3999 / 6001)


def test_energy_is_that_of_a_run_when_one_target_has_the_whole_model() -> None:
    modelled = model(profile(on(FP32, 100_000, energy=energy(3.0)), on(ORT, 96_000)))
    assert alone(modelled, FP32).energy == pytest.approx(3.0)
    assert alone(modelled, ORT).energy == 0


def test_memory_is_what_was_measured_when_one_target_has_the_whole_model() -> None:
    held = MemoryPeak(loaded_bytes=1 << 20, peak_bytes=3 << 20)
    modelled = model(profile(on(FP32, 100_000, memory=held), on(ORT, 96_000)))
    assert alone(modelled, FP32).peaks.tolist() == [2 << 20]
    # vconv and vrelu at a time; weights of 1000, 64, and 500 and 64 again.
    assert alone(modelled, ORT).peaks.tolist() == [8192 + 8192 + 1000 + 64 + 564]


def test_values_take_memory_while_anybody_needs_them() -> None:
    assert live_bytes_of(FACTS, model(profile()).placed.units).tolist() == [
        8192 + 8192,  # vconv and vrelu; x is gone when conv has run: it had 4096 beside vconv
        8192 + 4096,  # vrelu and vpool; then vpool and vguess
        4096 + 40,
    ]
    kept = msgspec.structs.replace(FACTS, outputs=("vhead", "vconv"))
    assert live_bytes_of(kept, model(profile()).placed.units).tolist() == [
        8192 + 8192,
        8192 + 8192 + 4096,
        8192 + 4096 + 40,
    ]


def test_memory_does_not_ask_for_more_partitions_when_runtimes_use_it_again() -> None:
    modelled = model(profile(), asked(objective="memory"))
    zeros = np.zeros(3, np.int32)
    whole = simulate(modelled.problem, Assignment(zeros, zeros))
    apart = simulate(modelled.problem, Assignment(zeros, np.arange(3, dtype=np.int32)))
    assert whole.peaks.tolist() == apart.peaks.tolist()


def test_devices_own_memory_counts_when_it_tells() -> None:
    held = MemoryPeak(loaded_bytes=1 << 20, peak_bytes=900 << 20, device_bytes=1 << 20)
    modelled = model(gpu_profile(memory=held))
    pool = modelled.problem.pool_names.index("cuda:0")
    assert alone(modelled, GPU).peaks[pool] == 1 << 20


def test_capacity_is_the_least_of_what_is_known_when_limits_are_given() -> None:
    modelled = model(gpu_profile(), asked(memory_bytes={"cuda:0": 1 << 20, "host": 16 << 30}))
    assert modelled.problem.pool_names == ("host", "cuda:0")
    assert modelled.problem.capacity.tolist() == [8 << 30, 1 << 20]


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (
            {"npu:0": 1 << 30},
            "the memory limit of 'npu:0' (1.00 GiB) is for no device of the plan; "
            "expected one of cpu:0, host",
        ),
        ({"cpu:0": -1}, "the memory limit of 'cpu:0' is -1 bytes; expected 0 or more"),
    ],
)
def test_memory_limit_is_refused_when_it_cannot_be(limits: dict[str, int], text: str) -> None:
    with pytest.raises(TargetError) as raised:
        model(profile(), asked(memory_bytes=limits))
    assert str(raised.value) == text


def test_unit_stays_where_a_node_of_it_is_pinned() -> None:
    problem = model(profile(), asked(pinned={"relu": ORT, "head": FP32})).problem
    assert np.isfinite(problem.time).tolist() == [[False, True], [True, True], [True, False]]
    assert problem.reasons == {(0, 0): f"relu is pinned to {ORT}", (2, 1): f"head is pinned to {FP32}"}


def test_pin_allows_the_resting_twin_when_it_names_the_spinning_target() -> None:
    made = profile(on(FP32, 100_000), on(ORT, 60_000), on(RESTING, 80_000))
    problem = model(made, asked(pinned={"head": ORT})).problem
    assert np.isfinite(problem.time[2]).tolist() == [False, True, True]


def test_all_bad_pins_are_named_when_several_cannot_be() -> None:
    with pytest.raises(UserError) as raised:
        model(profile(), asked(pinned={"shape": FP32, "conv": FP32, "relu": ORT, "head": BF16}))
    assert str(raised.value) == (
        "nodes cannot be pinned as asked for:\n"
        "  - 'shape' is neither a unit nor a node that runs\n"
        f"  - 'relu' is pinned to {ORT} and 'conv' to {FP32}, but both are in unit 'conv', "
        "which is placed whole\n"
        f"  - 'head' is pinned to {BF16}, which cannot be used; expected one of {FP32}, {ORT}"
    )


def test_machine_says_where_costs_came_from() -> None:
    assert model(profile()).machine == "measured"
    imagined = profile()
    targets = tuple(
        msgspec.structs.replace(one, timing=msgspec.structs.replace(one.timing, n=0))
        for one in imagined.targets
        if one.timing is not None
    )
    devices = tuple(
        msgspec.structs.replace(one, properties={"profile": "workstation"}) for one in imagined.devices
    )
    found = model(msgspec.structs.replace(imagined, targets=targets, devices=devices))
    assert (found.machine, found.is_imagined) == ("estimated for workstation", True)
