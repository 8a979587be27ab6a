"""Profiles made up for the tests of the report: full ones of any size, bare ones, hostile ones."""

from __future__ import annotations

import math
import random

import msgspec

from hal.records.facts import ModelFacts, NodeFact
from hal.records.machine import Ceiling, Environment, Handoff, Link
from hal.records.profile import (
    ColdStart,
    Energy,
    KernelCost,
    KernelTable,
    MemoryPeak,
    MemorySample,
    ModelInfo,
    OutputError,
    PluginInfo,
    Profile,
    Ratio,
    RefusedNode,
    TargetProfile,
    Timing,
    Unit,
    UnitCost,
)
from hal.records.targets import Device, Fallback, TensorSpec

#: Name, time relative to the fastest, largest group of nodes in one kernel, time per kernel in ns.
TARGETS = (
    ("cpu:0/openvino/bf16", 0.6, 3, 900),
    ("cpu:0/openvino/fp32", 1.0, 3, 1_000),
    ("cpu:0/onnxruntime/fp32", 1.15, 3, 1_200),
    ("cpu:0/cpu/fp32", 1.9, 1, 6_000),
)
CEILINGS = (
    Ceiling(
        device="cpu:0",
        precision="fp32",
        flops_per_s=210e9,
        bytes_per_s=18e9,
        compute_target="cpu:0/openvino/fp32",
        copy_target="cpu:0/cpu/fp32",
    ),
    Ceiling(
        device="cpu:0",
        precision="bf16",
        flops_per_s=640e9,
        bytes_per_s=18e9,
        compute_target="cpu:0/openvino/bf16",
        copy_target="cpu:0/cpu/fp32",
    ),
)
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "' onmouseover='alert(4)",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(5)",
    '<a href="javascript:alert(6)">link</a><b>bold</b>',
    "&lt;b&gt;already&amp;escaped",
    "%{label}%{customdata[0]}$x^2$",
    "rtl\u202egnp.exe\u202c",
    "\x1b]0;title\x07\x00nul\u2028line\u2029para",
    "שלום/עולם",
    "__proto__",
    "constructor",
    "<!--<script>",
)


def full_profile(n_nodes: int = 48, *, seed: int = 7) -> Profile:
    """A profile with everything in it, of a made-up vision model."""
    random_ = random.Random(seed)
    nodes = _nodes(n_nodes, random_)
    facts = ModelFacts(
        nodes=nodes, value_bytes={}, weights=frozenset(), inputs=("image",), outputs=("scores",)
    )
    targets = [_target(number, nodes, random_) for number in range(len(TARGETS))]
    fastest = targets[0]
    return Profile(
        schema_version=2,
        hal_version="0.2.0",
        created="2026-01-01T00:00:00+00:00",
        model=ModelInfo(
            name="tiny-vision",
            digest="3f2a91c0b7de55aa",
            opset=17,
            n_nodes=n_nodes,
            weight_bytes=21_000_000,
            inputs=(TensorSpec("image", "float32", (1, 3, 224, 224)),),
            outputs=(TensorSpec("scores", "float32", (1, 1000)),),
            inputs_from="random numbers, seed 0",
        ),
        environment=environment(),
        plugins=(
            PluginInfo(name="openvino", distribution="hal-openvino", version="0.2.0"),
            PluginInfo(
                name="broken", distribution="hal-broken", version="0.0.1", failure="ImportError: no libfoo"
            ),
        ),
        devices=(
            _device("cpu:0"),
            _device("gpu:0", unavailable="libOpenCL.so.1 is missing"),
        ),
        targets=(*targets, *_unusable(nodes)),
        ratios=tuple(
            Ratio(
                target=t.target,
                baseline=fastest.target,
                median=t.timing.median_ns / fastest.timing.median_ns,
                p10=0.96 * t.timing.median_ns / fastest.timing.median_ns,
                p90=1.05 * t.timing.median_ns / fastest.timing.median_ns,
                n_rounds=20,
            )
            for t in targets
            if t.timing and fastest.timing
        ),
        reference="onnx ReferenceEvaluator, heavy operators in float64",
        notes=("gpu:0 (openvino) cannot be used: libOpenCL.so.1 is missing",),
        facts=facts,
        units=_units(nodes, targets, random_),
        ceilings=CEILINGS,
        links=_links(),
    )


def bare_profile() -> Profile:
    """What versions before schema 2 wrote: no facts, units, ceilings, links, samples or order."""
    whole = full_profile()

    def older(kernel: KernelCost) -> KernelCost:
        return msgspec.structs.replace(
            kernel, order=0, flops=None, moved_bytes=None, samples_ns=(), activation_bytes=None
        )

    def old(target: TargetProfile) -> TargetProfile:
        table, memory = target.kernels, target.memory
        return msgspec.structs.replace(
            target,
            energy=None,
            memory=memory and msgspec.structs.replace(memory, samples=()),
            kernels=table
            and msgspec.structs.replace(
                table, plain_ns=0, kernels=tuple(older(kernel) for kernel in table.kernels)
            ),
        )

    return msgspec.structs.replace(
        whole, facts=None, units=(), ceilings=(), links=(), targets=tuple(map(old, whole.targets))
    )


def hostile_profile() -> Profile:
    """Every name and reason in it was chosen to break out of wherever it is put."""
    whole = full_profile(len(HOSTILE) * 3)
    encoded = msgspec.to_builtins(whole)

    poisons: dict[str, str] = {}

    def poison(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {name: poison(item, name) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [poison(item, key) for item in value]
        if isinstance(value, str) and key in _POISONED:
            # The same name must stay the same name wherever it stands.
            n = len(poisons)
            return poisons.setdefault(value, f"{HOSTILE[n % len(HOSTILE)]} {n}")
        return value

    return msgspec.convert(poison(encoded), Profile)


_POISONED = {
    "name", "type", "ops", "op", "module", "source", "nodes", "node", "reason", "notes", "cpu", "system",
    "failure", "unavailable", "inputs_from", "reference", "unknown", "folded", "kernels_missing", "step",
    "distribution", "asked", "got",
}  # fmt: skip


def environment() -> Environment:
    return Environment(
        system="Linux 6.1",
        machine="x86_64",
        cpu="Example CPU 9000",
        cpu_features=("avx2", "avx512_bf16", "fma"),
        n_cpus=8,
        n_usable_cpus=2,
        memory_bytes=24 << 30,
        python="3.11.2",
        packages={"openvino": "2026.4", "torch": "2.13", "onnxruntime": "1.32"},
        settings={"OMP_NUM_THREADS": "2"},
    )


def _device(id: str, unavailable: str = "") -> Device:
    return Device(
        id=id,
        name="Example silicon",
        kind=id.split(":")[0],
        silicon=id,
        memory_pool="host",
        memory_bytes=24 << 30,
        precisions=("fp32", "bf16"),
        unavailable=unavailable,
        properties={"isa": "AVX512"},
    )


def _nodes(n_nodes: int, random_: random.Random) -> tuple[NodeFact, ...]:
    found = []
    for i in range(n_nodes):
        op = ("Conv", "BatchNormalization", "Relu", "Conv", "Add", "MatMul")[i % 6]
        depth = i * 4 // n_nodes
        block = i // 6 % 5
        module = "head.fc" if i >= n_nodes - 3 else f"backbone.stage{depth}.block{block}.{op.lower()}{i % 6}"
        heavy = op in ("Conv", "MatMul")
        work = round(10 ** random_.uniform(6.6, 8.1)) if heavy else random_.randrange(10_000, 300_000)
        found.append(
            NodeFact(
                name=f"/{module.replace('.', '/')}/{op}_{i}",
                op=op,
                module=module,
                source=f"vision.py:{20 + i % 90}",
                flops=work,
                signature=f"{op}{i}",
            )
        )
    return tuple(found)


def _target(number: int, nodes: tuple[NodeFact, ...], random_: random.Random) -> TargetProfile:
    name, slowness, n_fused, launch_ns = TARGETS[number]
    fast = "bf16" in name
    kernels = []
    for order, start in enumerate(range(0, len(nodes), n_fused)):
        group = nodes[start : start + n_fused]
        flops = sum(node.flops or 0 for node in group)
        intensity = (3, 9, 26, 70, 110)[start % 5] * (2 if fast else 1) if flops > 1_000_000 else 0.4
        moved_bytes = round(flops / intensity)
        least_ns = max(flops / (640 if fast else 210), moved_bytes / 18)
        median_ns = round(launch_ns + slowness * (5_000 + least_ns) * random_.uniform(1.05, 2.2))
        kernels.append(
            KernelCost(
                name=f"{group[-1].op}_{order}",
                type=f"jit_avx512_{'bf16' if fast else 'f32'}" if "openvino" in name else group[0].op,
                nodes=tuple(node.name for node in group),
                ops=tuple(node.op for node in group),
                device="",
                median_ns=median_ns,
                p10_ns=round(median_ns * 0.97),
                p90_ns=round(median_ns * 1.08),
                n=60,
                order=order,
                flops=flops,
                moved_bytes=moved_bytes,
                weight_bytes=moved_bytes // 3,
                activation_bytes=moved_bytes // 3,
                samples_ns=tuple(round(median_ns * (1 + 0.01 * k)) for k in range(5)),
            )
        )
    lost = [
        KernelCost(
            name=f"Reorder_{k}", type="Reorder", nodes=(), ops=(), device="", median_ns=2_000 + 900 * k,
            p10_ns=1_900, p90_ns=2_400 + 900 * k, n=60, order=len(kernels) + k,
        )
        for k in range(2)
    ]  # fmt: skip
    kernels = sorted(kernels + lost, key=lambda kernel: -kernel.median_ns)
    total_ns = sum(kernel.median_ns for kernel in kernels)
    median_ns = round(total_ns * 1.04)
    stable = number != 2
    return TargetProfile(
        target=name,
        status="ok",
        timing=Timing(
            median_ns=median_ns,
            p10_ns=round(median_ns * 0.98),
            p90_ns=round(median_ns * 1.06),
            n=480,
            interval_low_ns=round(median_ns * 0.99),
            interval_high_ns=round(median_ns * 1.01),
            stable=stable,
            reason="" if stable else "the median is known to ±9% only; other work ran on this machine",
            bursts_ns=((median_ns,) * 3,),
        ),
        cold_start=ColdStart(
            start_ns=480_000_000 + 300_000_000 * number,
            compile_ns=(212_000_000, 180_000_000, 40_000_000, 900_000_000)[number],
            first_run_ns=3 * median_ns,
            blob_bytes=None if number == 3 else 21_600_000,
        ),
        memory=MemoryPeak(
            loaded_bytes=(100 + 50 * number) << 20,
            peak_bytes=(190 + 60 * number) << 20,
            samples=_memory(number),
        ),
        errors=(OutputError(name="scores", relative_l2=2e-3 if fast else 3e-7, max_abs=1e-4, sqnr_db=60.0),),
        kernels=KernelTable(
            kernels=tuple(kernels),
            total_ns=total_ns,
            unattributed_ns=sum(kernel.median_ns for kernel in lost),
            instrumented_ns=round(median_ns * (1.02 if number < 2 else 1.12)),
            plain_ns=median_ns,
            folded=("/Shape_0", "/Constant_1"),
            unknown=("/Identity_9",),
        ),
        energy=Energy(per_run_mj=31.5 * slowness, source="RAPL package") if number < 2 else None,
        fallbacks=(Fallback("/Softmax", "bf16", "fp32", "no kernel for bf16"),) if fast else (),
        telemetry={"temperature_c": 61} if fast else {},
    )


def _memory(number: int) -> tuple[MemorySample, ...]:
    samples = []
    for i in range(60):
        step = ("load", "compile", "warm-up", "burst", "burst", "kernels")[i // 10]
        level = 100 + 50 * number + 60 * min(i / 15, 1.2) + 6 * math.sin(i)
        samples.append(MemorySample(i * 90_000_000, int(level * (1 << 20)), step))
    return tuple(samples)


def _unusable(nodes: tuple[NodeFact, ...]) -> tuple[TargetProfile, ...]:
    wrong = TargetProfile(
        target="cpu:0/cpu/fp16",
        status="wrong",
        reason="scores differs from the reference by 0.31 (relative L2); fp16 explains at most 0.01",
        timing=Timing(
            median_ns=700_000, p10_ns=690_000, p90_ns=760_000, n=100, interval_low_ns=695_000,
            interval_high_ns=705_000, stable=True,
        ),
        errors=(OutputError(name="scores", relative_l2=0.31, max_abs=2.0, sqnr_db=10.0),),
    )  # fmt: skip
    refused = TargetProfile(
        target="gpu:0/openvino/fp32",
        status="refused",
        reason="2 nodes are not supported",
        refused=(RefusedNode(node=nodes[0].name, op=nodes[0].op, reason="no kernel for 7 dimensions"),),
    )
    failed = TargetProfile(
        target="cpu:0/cpu/fp32+mode=compiled",
        status="failed",
        reason="the child ended with signal 11 (SIGSEGV) while it compiled",
    )
    return wrong, refused, failed


def _units(
    nodes: tuple[NodeFact, ...], targets: list[TargetProfile], random_: random.Random
) -> tuple[Unit, ...]:
    found = []
    for start in range(0, len(nodes), 3):
        group = nodes[start : start + 3]
        names = {node.name for node in group}
        costs = {}
        for target in targets:
            if target.kernels is None:
                continue
            own = [kernel.median_ns for kernel in target.kernels.kernels if names & set(kernel.nodes)]
            median_ns = round(sum(own) * random_.choice((0.4, 0.9, 1.0, 1.3, 2.5)))
            costs[target.target] = UnitCost(
                median_ns=median_ns, p10_ns=round(median_ns * 0.95), p90_ns=round(median_ns * 1.1), n=60
            )
        found.append(
            Unit(
                name=group[0].name,
                nodes=tuple(node.name for node in group),
                flops=sum(node.flops or 0 for node in group),
                moved_bytes=1 << 20,
                costs=costs,
            )
        )
    return tuple(found)


def _links() -> tuple[Link, ...]:
    names = ("cpu:0/openvino", "cpu:0/onnxruntime", "cpu:0/cpu")
    found = []
    for i, source in enumerate(names):
        for j, destination in enumerate(names):
            if i == j:
                continue
            points = tuple(
                Handoff(
                    n_bytes=1 << size,
                    median_ns=round(900 + 400 * i + (1 << size) / (6 + j)),
                    p10_ns=round(800 + (1 << size) / (7 + j)),
                    p90_ns=round(1_500 + 400 * i + (1 << size) / (5 + j)),
                    n=30,
                )
                for size in range(10, 27, 2)
            )
            found.append(Link(source=source, destination=destination, same_silicon=True, points=points))
    found.append(
        Link(
            source="cpu:0/cpu", destination="gpu:0/openvino", same_silicon=False, reason="gpu:0 is not usable"
        )
    )
    return tuple(found)
