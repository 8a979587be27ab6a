"""Who wins among measured placements, and what they teach: numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest

from hal.choosing.feedback import excesses, learn, partition_ns, speed_of
from hal.choosing.finalists import Candidate, Measured, best_of, finalist_of, ratio_of, value_of
from hal.records.plan import (
    Bound,
    BoundaryCost,
    Constraints,
    Partition,
    Plan,
    Prediction,
    Transfer,
)
from hal.records.profile import (
    Energy,
    KernelCost,
    KernelTable,
    MemoryPeak,
    ModelInfo,
    TargetProfile,
    Timing,
)

A, B, C = "cpu:0/a/fp32", "cpu:0/b/fp32", "cuda:0/c/fp32"
MODEL = ModelInfo(
    name="m", digest="d", opset=17, n_nodes=3, weight_bytes=0, inputs=(), outputs=(), inputs_from="given"
)


def plan(targets: Sequence[str], each_ns: int = 100, values: Sequence[str] = ("v", "w", "z")) -> Plan:
    """Partitions one after the other, each handing one value to the next."""
    return Plan(
        schema_version=1,
        hal_version="0",
        created="",
        model=MODEL,
        environment=None,
        machine="measured",
        devices=(),
        constraints=Constraints(),
        partitions=tuple(
            Partition(
                target=target,
                units=(f"u{at}",),
                nodes=(f"n{at}",),
                inputs=(),
                outputs=(),
                start_ns=at * each_ns,
                end_ns=(at + 1) * each_ns,
            )
            for at, target in enumerate(targets)
        ),
        transfers=tuple(
            Transfer(value=values[at], source=at, destination=at + 1) for at in range(len(targets) - 1)
        ),
        predicted=Prediction(
            latency_ns=each_ns * len(targets), interval_ns=each_ns * len(targets), energy_mj=2.0
        ),
        bound=Bound(value=0, source="", gap=1),
        solver="s",
    )


def timing(bursts: Sequence[int], group: int = 0) -> Timing:
    middle = sorted(bursts)[len(bursts) // 2]
    return Timing(
        median_ns=middle,
        p10_ns=min(bursts),
        p90_ns=max(bursts),
        n=len(bursts),
        interval_low_ns=min(bursts),
        interval_high_ns=max(bursts),
        stable=True,
        bursts_ns=tuple((burst,) * 3 for burst in bursts),
        group=group,
    )


def kernel(name: str, ns: int, nodes: tuple[str, ...] = ("n",)) -> KernelCost:
    return KernelCost(
        name=name, type="t", nodes=nodes, ops=(), device="", median_ns=ns, p10_ns=ns, p90_ns=ns, n=1
    )


def measured(
    targets: Sequence[str],
    bursts: Sequence[int],
    *,
    group: int = 0,
    parts_ns: Sequence[int] = (),
    failure: str = "",
    values: Sequence[str] = ("v", "w", "z"),
) -> Measured:
    kernels = tuple(kernel(str(at), ns) for at, ns in enumerate(parts_ns))
    table = (
        KernelTable(kernels=kernels, total_ns=0, unattributed_ns=0, instrumented_ns=0) if kernels else None
    )
    record = TargetProfile(target="t", status="ok", timing=timing(bursts, group), kernels=table)
    return Measured(Candidate("s", plan(targets, values=values), 100 * len(targets)), record, failure)


def noisy(middle: int, n: int = 9) -> list[int]:
    return [middle + (-1) ** at * (at % 3) for at in range(n)]


# --- who wins -------------------------------------------------------------------------------------------


def test_the_mixed_plan_wins_when_it_is_faster_in_all_rounds() -> None:
    alone, mixed = measured([A], noisy(1000)), measured([A, B], noisy(900))
    assert best_of([alone, mixed], "latency") is mixed
    assert best_of([mixed, alone], "latency") is mixed


def test_the_simpler_plan_wins_when_rounds_do_not_tell_them_apart() -> None:
    alone = measured([A], [1000, 900, 1000, 900, 1000, 900, 1000, 900, 1000])
    mixed = measured([A, B], [990, 910, 990, 910, 990, 910, 990, 910, 990])
    assert mixed.timing is not None
    assert mixed.timing.median_ns < 1000
    assert best_of([mixed, alone], "latency") is alone


def test_the_simpler_plan_wins_when_there_are_too_few_rounds_to_tell() -> None:
    alone, mixed = measured([A], [1000] * 3), measured([A, B], [900] * 3)
    assert best_of([mixed, alone], "latency") is alone


def test_the_fastest_of_single_targets_wins_when_they_are_alone() -> None:
    slow, fast = measured([A], noisy(1000)), measured([B], noisy(995))
    assert best_of([slow, fast], "latency") is fast


def test_what_failed_cannot_win() -> None:
    alone, mixed = measured([A], noisy(1000)), measured([A, B], noisy(10), failure="wrong")
    assert best_of([alone, mixed], "latency") is alone
    assert best_of([mixed], "latency") is None


def test_rounds_are_not_paired_when_plans_did_not_run_in_turn() -> None:
    one, other = measured([A], noisy(1000)), measured([B], noisy(500), group=1)
    ratio = ratio_of(other, one)
    assert ratio is not None
    assert ratio.ratio == pytest.approx(0.5, rel=0.01)
    assert ratio.high < 1


def test_energy_and_memory_must_differ_by_more_than_noise() -> None:
    def of(targets: Sequence[str], mj: float, n_bytes: int) -> Measured:
        one = measured(targets, noisy(1000))
        record = msgspec.structs.replace(
            one.record,
            energy=Energy(per_run_mj=mj, source="NVML"),
            memory=MemoryPeak(loaded_bytes=0, peak_bytes=n_bytes),
        )
        return Measured(one.candidate, record, "")

    alone, close, far = of([A], 10.0, 1000), of([A, B], 9.9, 990), of([A, B], 9.0, 900)
    for objective in ("energy", "memory"):
        assert best_of([close, alone], objective) is alone
        assert best_of([far, alone], objective) is far


def test_predicted_energy_stands_in_when_no_device_tells() -> None:
    assert value_of(measured([A, B], [300] * 3), "energy") == pytest.approx(2.0 * 300 / 200)


def test_the_record_of_a_finalist_holds_its_ratio_to_the_chosen_one() -> None:
    alone, mixed = measured([A], noisy(1000)), measured([A, B], noisy(500))
    found = finalist_of(alone, mixed)
    assert found.ratio == pytest.approx(2.0, rel=0.01)
    assert found.placement == f"{A} (1 nodes)"
    failed = finalist_of(measured([A], noisy(1000), failure="wrong"), mixed)
    assert (failed.ratio, failed.measured, failed.failure) == (None, None, "wrong")


# --- what is learned ------------------------------------------------------------------------------------


def test_partitions_times_are_read_by_their_numbers() -> None:
    one = measured([A, B], noisy(300), parts_ns=[120, 180])
    assert partition_ns(one) == {0: 120.0, 1: 180.0}
    assert partition_ns(measured([A], noisy(300), parts_ns=[120])) == {}
    assert partition_ns(measured([A, B], noisy(300))) == {}


def test_the_machines_speed_is_that_of_targets_that_ran_alone() -> None:
    # Predicted 100 each; now it takes 50: the machine is twice as fast.
    assert speed_of([measured([A], [50] * 9), measured([B], [50] * 9), measured([A, B], [999] * 9)]) == 2.0
    assert speed_of([measured([A, B], [999] * 9)]) == 1.0


def test_what_a_partition_takes_beyond_its_prediction_is_charged_to_what_it_reads() -> None:
    found = excesses(plan([A, B, A]), {0: 107.0, 1: 130.0, 2: 95.0}, 1.0)
    # The first reads nothing from others: what it hands on is charged.
    assert [(excess.boundary, excess.ns) for excess in found] == [
        (("v", A, B), 7.0),
        (("v", A, B), 30.0),
        (("w", B, A), -5.0),
    ]
    (half,) = excesses(plan([A, B]), {1: 65.0}, 2.0)
    assert half.ns == pytest.approx(30.0)


def test_boundaries_between_two_targets_share_what_is_typical() -> None:
    found = learn(
        [
            measured([A, B], noisy(230), parts_ns=[100, 130], values=["v"]),
            measured([A, B], noisy(250), parts_ns=[100, 150], values=["w"]),
            measured([A, B], noisy(240), parts_ns=[100, 140], values=["z"]),
        ],
        (),
    )
    # Each value is charged with the median of what both its sides took: 30, 50 and 40.
    assert found == (
        BoundaryCost(value="", source=A, destination=B, extra_ns=40),
        BoundaryCost(value="v", source=A, destination=B, extra_ns=-10),
        BoundaryCost(value="w", source=A, destination=B, extra_ns=10),
    )


def test_nothing_is_learned_when_predictions_were_right() -> None:
    assert learn([measured([A, B], noisy(200), parts_ns=[100, 100])], ()) == ()


def test_earlier_lessons_stay_when_a_boundary_was_not_seen_again() -> None:
    before = (
        BoundaryCost(value="", source=A, destination=B, extra_ns=20),
        BoundaryCost(value="old", source=A, destination=B, extra_ns=5),
        BoundaryCost(value="", source=A, destination=C, extra_ns=7),
    )
    found = {
        (cost.value, cost.source, cost.destination): cost.extra_ns
        for cost in learn([measured([A, B], noisy(220), parts_ns=[100, 120])], before)
    }
    # 20 beyond the 20 that were predicted already.
    assert found["", A, B] == 40
    assert found["old", A, B] + found["", A, B] == 25
    assert found["", A, C] == 7


def test_what_failed_teaches_nothing() -> None:
    bad = measured([A, B], noisy(300), parts_ns=[100, 900], failure="wrong")
    assert learn([bad], ()) == ()
    assert not math.isnan(speed_of([bad]))
