"""Hand-made plans for tests: a chain of four nodes, split over a processor and a GPU."""

from __future__ import annotations

import msgspec

from hal.records.plan import (
    Alternative,
    Bound,
    Constraints,
    Finalist,
    Partition,
    Plan,
    Prediction,
    Transfer,
)
from hal.records.targets import Device
from tests.golden import records
from tests.unit.compared import FACTS, timing

CPU, GPU = "cpu:0/openvino/fp32", "cuda:0/cuda/fp32"

DEVICES = tuple(
    Device(
        id=identity,
        name=name,
        kind=kind,
        silicon=identity,
        memory_pool=identity,
        memory_bytes=8 << 30,
    )
    for identity, name, kind in (("cpu:0", "A processor", "cpu"), ("cuda:0", "A GPU", "gpu"))
)


def plan(**changes: object) -> Plan:
    """conv and relu on the GPU, pool and head on the processor; measured, with three finalists."""
    made = Plan(
        schema_version=1,
        hal_version="0.1.0",
        created="2026-11-24T12:00:00+00:00",
        model=records.FULL.model,
        environment=records.FULL.environment,
        machine="measured here",
        devices=DEVICES,
        constraints=Constraints(targets=(CPU, GPU), memory_bytes={"cuda:0": 8 << 30}),
        partitions=(
            Partition(
                target=GPU,
                units=("body.conv", "body.act"),
                nodes=("conv", "relu"),
                inputs=("x",),
                outputs=("vrelu",),
                start_ns=0,
                end_ns=60_000,
                compute_ns=40_000,
                handoff_ns=20_000,
                weight_bytes=4096,
                reason="its units take 40.0 us here and 90.0 us on cpu:0/openvino/fp32",
                runner_up=Alternative(target=CPU, objective=130_000.0),
            ),
            Partition(
                target=CPU,
                units=("body.pool", "head"),
                nodes=("pool", "head"),
                inputs=("vrelu",),
                outputs=("vhead",),
                start_ns=70_000,
                end_ns=100_000,
                compute_ns=25_000,
                handoff_ns=5_000,
                reason="its output is wanted on the host",
            ),
        ),
        transfers=(
            Transfer(value="x", source=-1, destination=0, n_bytes=64),
            Transfer(value="vrelu", source=0, destination=1, n_bytes=64, start_ns=60_000, end_ns=70_000),
        ),
        predicted=Prediction(
            latency_ns=100_000, interval_ns=60_000, memory_bytes={"host": 1 << 20, "cuda:0": 8192}
        ),
        bound=Bound(value=90_000.0, source="critical path at the best device change", gap=0.1),
        solver="annealing",
        measured=timing(103_000),
        finalists=(
            Finalist(
                name="annealing",
                placement="2 nodes on cuda:0/cuda/fp32, 2 nodes on cpu:0/openvino/fp32",
                n_partitions=2,
                predicted_ns=100_000,
                measured=timing(103_000),
                ratio=1.0,
            ),
            Finalist(
                name=f"only {CPU}",
                placement=f"4 nodes on {CPU}",
                n_partitions=1,
                predicted_ns=120_000,
                measured=timing(121_000),
                ratio=1.17,
            ),
            Finalist(
                name=f"only {GPU}",
                placement=f"4 nodes on {GPU}",
                n_partitions=1,
                predicted_ns=140_000,
                failure="out of memory: 9.0 GiB asked for, 8.0 GiB there",
            ),
        ),
        notes=("energy is not told by these devices",),
    )
    return msgspec.structs.replace(made, **changes)


def single(target: str = CPU, **changes: object) -> Plan:
    """Everything in one partition, predicted only."""
    part = Partition(
        target=target,
        units=("body.conv", "body.act", "body.pool", "head"),
        nodes=("conv", "relu", "pool", "head"),
        inputs=("x",),
        outputs=("vhead",),
        end_ns=120_000,
        compute_ns=118_000,
        handoff_ns=2_000,
    )
    return plan(
        partitions=(part,),
        transfers=(),
        finalists=(),
        measured=None,
        notes=(),
        predicted=Prediction(latency_ns=120_000, interval_ns=120_000),
        bound=Bound(value=120_000.0, source="exact", gap=0.0),
        solver=f"only {target}",
        **changes,
    )


__all__ = ["CPU", "DEVICES", "FACTS", "GPU", "plan", "single"]
