from __future__ import annotations

import msgspec
import pytest

from hal.profiling.roofline import (
    OVERHEAD_BELOW,
    ceiling_for,
    classify,
    limited,
    limited_unit,
    share_of_roof,
)
from hal.records.machine import Ceiling
from hal.records.profile import KernelCost, KernelTable, Unit, UnitCost

# 100 GFLOP/s and 10 GB/s: the roofs meet at 10 operations a byte.
CEILING = Ceiling(
    device="cpu:0",
    precision="fp32",
    flops_per_s=100e9,
    bytes_per_s=10e9,
    compute_target="cpu:0/cpu/fp32",
    copy_target="cpu:0/cpu/fp32",
)


def kernel(flops: int | None, moved_bytes: int | None, median_ns: int) -> KernelCost:
    return KernelCost(
        name="k", type="t", nodes=("n",), ops=("Conv",), device="", median_ns=median_ns, p10_ns=median_ns,
        p90_ns=median_ns, n=10, flops=flops, moved_bytes=moved_bytes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flops", "moved_bytes", "median_ns", "bound", "share"),
    [
        (1_000_000, 10_000, 20_000, "compute", 0.5),  # 100 FLOP/byte: least 10 us
        (10_000, 100_000, 20_000, "memory", 0.5),  # 0.1 FLOP/byte: least 10 us
        (1_000_000, 100_000, 10_000, "compute", 1.0),  # at the ridge, at the roof
        (1_000_000, 10_000, 1_000_000, "overhead", 0.01),
        (0, 100_000, 20_000, "memory", 0.5),  # a transpose computes nothing
        (0, 0, 20_000, "overhead", 0.0),
        (10_000, 100_000, 5_000, "memory", 2.0),  # from a cache
    ],
)
def test_kernel_is_classified_by_the_lower_roof_when_work_and_traffic_are_known(
    flops: int, moved_bytes: int, median_ns: int, bound: str, share: float
) -> None:
    found = kernel(flops, moved_bytes, median_ns)
    assert classify(found, CEILING) == bound
    assert share_of_roof(found, CEILING) == pytest.approx(share)


def test_overhead_begins_where_the_documented_share_ends_when_time_grows() -> None:
    at_the_line_ns = round(10_000 / OVERHEAD_BELOW)
    assert classify(kernel(1_000_000, 10_000, at_the_line_ns), CEILING) == "compute"
    assert classify(kernel(1_000_000, 10_000, at_the_line_ns + 1), CEILING) == "overhead"


@pytest.mark.parametrize("unknown", [kernel(None, 10, 10), kernel(10, None, 10), kernel(10, 10, 0)])
def test_class_is_none_when_work_traffic_or_time_is_unknown(unknown: KernelCost) -> None:
    assert classify(unknown, CEILING) is None
    assert share_of_roof(unknown, CEILING) is None


def test_ceiling_is_of_the_targets_device_and_precision_when_several_were_measured() -> None:
    others = [
        msgspec.structs.replace(CEILING, device="cuda:0"),
        msgspec.structs.replace(CEILING, precision="bf16"),
    ]
    assert ceiling_for([*others, CEILING], "cpu:0/openvino/fp32+threads=2") is CEILING
    assert ceiling_for([*others, CEILING], "cpu:0/openvino/fp32", device="cuda:0") is others[0]


@pytest.mark.parametrize("target", ["cpu:0/openvino/fp16", "gpu:0/openvino/fp32", "no target at all"])
def test_ceiling_is_none_when_nothing_fits_the_target(target: str) -> None:
    assert ceiling_for([CEILING], target) is None


def test_ceiling_is_none_when_a_roof_is_zero() -> None:
    assert ceiling_for([msgspec.structs.replace(CEILING, bytes_per_s=0.0)], "cpu:0/cpu/fp32") is None


def test_limits_are_recorded_of_kernels_and_units() -> None:
    target = "cpu:0/one/fp32"
    ceiling = Ceiling(
        device="cpu:0",
        precision="fp32",
        flops_per_s=1e9,
        bytes_per_s=1e9,
        compute_target=target,
        copy_target=target,
    )

    def cost(name: str, flops: int | None, moved_bytes: int) -> KernelCost:
        return KernelCost(
            name=name, type="", nodes=(name,), ops=("Op",), device="", median_ns=1000, p10_ns=1000,
            p90_ns=1000, n=5, flops=flops, moved_bytes=moved_bytes,
        )  # fmt: skip

    kernels = (cost("a", 900, 10), cost("b", 10, 900), cost("c", 10, 10), cost("d", None, 10))
    table = KernelTable(kernels=kernels, total_ns=4000, unattributed_ns=0, instrumented_ns=4000)
    found = limited(table, (ceiling,), target)
    assert [kernel.limit for kernel in found.kernels] == ["compute", "memory", "overhead", ""]
    assert [kernel.limit for kernel in limited(table, (), target).kernels] == [""] * 4
    once = UnitCost(median_ns=1000, p10_ns=900, p90_ns=1100, n=5)
    unit = Unit(
        name="u", nodes=("a",), flops=900, moved_bytes=10, costs={target: once, "cpu:1/one/fp32": once}
    )
    limits = {name: one.limit for name, one in limited_unit(unit, (ceiling,)).costs.items()}
    assert limits == {target: "compute", "cpu:1/one/fp32": ""}
