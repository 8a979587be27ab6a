"""Hand-made profiles for the tests of plans: four units, three targets on a processor and one on a GPU.

conv and relu, pool, and head are a chain; shape is the same in each run and read by pool and head; guess is
computed by nobody's kernel, because every runtime folds it, and reads what the chain makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hal.planning.units import units
from hal.records.facts import ModelFacts, NodeFact
from hal.records.machine import Handoff, Link
from hal.records.profile import Energy, KernelTable, Profile, TargetProfile, Unit
from hal.records.targets import Device
from tests.golden import records
from tests.unit.compared import kernel, table, target

FP32, BF16, ORT = records.FP32, records.BF16, records.ORT
RESTING = f"{ORT}+spinning=false"
GPU = "cuda:0/cuda/fp32"
#: Time of every kernel is a round number, so that what a model makes of it can be told by hand.
CONV, POOL, HEAD = 60_000, 10_000, 20_000
OPENVINO, ONNXRUNTIME, CUDA = "cpu:0/openvino", "cpu:0/onnxruntime", "cuda:0/cuda"


def _node(name: str, op: str, reads: Sequence[str], *, flops: int = 1000) -> NodeFact:
    return NodeFact(name=name, op=op, reads=tuple(reads), writes=(f"v{name}",), flops=flops)


FACTS = ModelFacts(
    nodes=(
        _node("shape", "Mul", ["limits", "limits"], flops=0),
        _node("conv", "Conv", ["x", "kernel"], flops=2998),
        _node("relu", "Relu", ["vconv"]),
        _node("pool", "MaxPool", ["vrelu", "vshape"]),
        _node("guess", "Cast", ["vpool"], flops=0),
        _node("head", "Gemm", ["vguess", "matrix", "vshape"]),
    ),
    value_bytes={
        "x": 4096,
        "limits": 64,
        "kernel": 1000,
        "matrix": 500,
        "vshape": 64,
        "vconv": 8192,
        "vrelu": 8192,
        "vpool": 4096,
        "vguess": 4096,
        "vhead": 40,
    },
    weights=frozenset({"limits", "kernel", "matrix", "vshape"}),
    inputs=("x",),
    outputs=("vhead",),
)
PLAIN = table(
    kernel("conv", "relu", median_ns=CONV),
    kernel("pool", median_ns=POOL),
    kernel("head", median_ns=HEAD),
    folded=("shape", "guess"),
)


def link(source: str, destination: str, *ns: int, alone_ns: tuple[int, ...] = (2000, 4000)) -> Link:
    """Handoffs of 4 KiB, 8 KiB and so on."""
    points = tuple(
        Handoff(n_bytes=4096 << at, median_ns=taken, p10_ns=taken, p90_ns=taken, n=9, alone_ns=alone_ns)
        for at, taken in enumerate(ns)
    )
    return Link(source=source, destination=destination, same_silicon=True, points=points)


LINKS = (
    link(OPENVINO, OPENVINO, 0, 0, alone_ns=(10_000, 10_000)),
    link(ONNXRUNTIME, ONNXRUNTIME, 0, 0, alone_ns=(6_000, 6_000)),
    link(OPENVINO, ONNXRUNTIME, 3_000, 5_000, alone_ns=(10_000, 6_000)),
    link(ONNXRUNTIME, OPENVINO, 4_000, 7_000, alone_ns=(6_000, 10_000)),
    link("host", CUDA, 20_000, 30_000, alone_ns=(5_000,)),
    link(CUDA, "host", 25_000, 35_000, alone_ns=(5_000,)),
)


def device(identity: str, **fields: object) -> Device:
    made = {
        "id": identity,
        "name": identity,
        "kind": "cpu" if identity.startswith("cpu") else "gpu",
        "silicon": identity,
        "memory_pool": "host" if identity.startswith("cpu") else identity,
        "memory_bytes": 8 << 30,
    }
    return msgspec.convert({**made, **fields}, Device)


def times_table(*durations: int, **fields: object) -> KernelTable:
    """Other times of the same kernels."""
    kernels = tuple(
        msgspec.structs.replace(one, median_ns=taken)
        for one, taken in zip(PLAIN.kernels, durations, strict=True)
    )
    return msgspec.structs.replace(PLAIN, kernels=kernels, total_ns=sum(durations), **fields)


def on(name: str, median_ns: int, kernels: KernelTable | None = PLAIN, **fields: object) -> TargetProfile:
    """A target without memory figures, whose plain runs beside the instrumented ones took as long."""
    if kernels is not None and not kernels.plain_ns:
        kernels = msgspec.structs.replace(kernels, plain_ns=median_ns)
    return target(name, median_ns, kernels, **{"memory": None, "energy": None, **fields})


def profile(*targets: TargetProfile, facts: ModelFacts = FACTS, **fields: object) -> Profile:
    """A profile whose units are found from its tables; by default fp32 on OpenVINO and ONNX Runtime."""
    chosen = targets or (on(FP32, 100_000), on(ORT, 96_000, times_table(70_000, 5_000, 15_000)))
    tables = {one.target: one.kernels for one in chosen if one.kernels and one.status == "ok"}
    found: tuple[Unit, ...] = units(facts, tables) if tables else ()
    made = {
        "facts": facts,
        "units": found,
        "links": LINKS,
        "devices": (device("cpu:0"), device("cuda:0")),
        **fields,
    }
    return records.profile(*chosen, **made)


def energy(per_run_mj: float) -> Energy:
    return Energy(per_run_mj=per_run_mj, source="NVML")
