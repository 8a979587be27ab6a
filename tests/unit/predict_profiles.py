"""Hand-made models and profiles whose kernel times follow a known law."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from hal.profiling.predict_past import PastRun, past_runs
from hal.records.facts import ModelFacts, NodeFact
from hal.records.machine import Ceiling
from hal.records.profile import KernelCost, KernelTable, Profile
from tests.golden import records
from tests.unit.stored import day

TARGET = records.FP32
#: 100 operations and 10 bytes per ns.
CEILING = Ceiling(
    device="cpu:0",
    precision="fp32",
    flops_per_s=1e11,
    bytes_per_s=1e10,
    compute_target=TARGET,
    copy_target=TARGET,
)
#: A chain of layers as OpenVINO fuses them.
FUSED = (("Conv", "Relu"), ("Conv", "Add", "Relu"), ("MaxPool",), ("MatMul",), ("Softmax",))
GAP_NS = 700

Law = Callable[[int, int], float]


def law(flops: int, moved_bytes: int) -> float:
    """A launch and twice the roofline, in ns."""
    return 3000 + 2 * max(flops / 100, moved_bytes / 10)


def noisy(seed: int, spread: float = 0.3) -> Law:
    """The law times a log-normal factor."""
    generator = np.random.default_rng(seed)
    return lambda flops, moved: law(flops, moved) * math.exp(generator.normal(0, spread))


def chain(ops: Sequence[str], size: int, prefix: str = "n") -> ModelFacts:
    """One node after the other, each with ``size`` elements of output; Conv and MatMul have weights."""
    nodes, sizes, weights = [], {"x": 4 * size}, set()
    before = "x"
    for index, op in enumerate(ops):
        value, reads = f"{prefix}v{index}", [before]
        sizes[value] = 4 * size
        heavy = op in ("Conv", "MatMul")
        if heavy:
            weight = f"{prefix}w{index}"
            reads.append(weight)
            weights.add(weight)
            sizes[weight] = 40_000 + 4_000 * index
        nodes.append(
            NodeFact(
                name=f"{prefix}{index}",
                op=op,
                flops=size * (200 + 20 * index) if heavy else size,
                reads=tuple(reads),
                writes=(value,),
                signature=f"{op} {size} {index}",
            )
        )
        before = value
    return ModelFacts(
        nodes=tuple(nodes), value_bytes=sizes, weights=frozenset(weights), inputs=("x",), outputs=(before,)
    )


def kernel(
    time_ns: float, nodes: Sequence[NodeFact], flops: int | None = None, moved_bytes: int | None = None
) -> KernelCost:
    """A kernel of these nodes, p10 and p90 a tenth away."""
    return KernelCost(
        name="+".join(node.name for node in nodes),
        type="jit",
        nodes=tuple(node.name for node in nodes),
        ops=tuple(node.op for node in nodes),
        device="",
        median_ns=round(time_ns),
        p10_ns=round(time_ns * 0.9),
        p90_ns=round(time_ns * 1.1),
        n=50,
        flops=flops,
        moved_bytes=moved_bytes,
    )


def fused(facts: ModelFacts, groups: Sequence[Sequence[str]], time_of: Law = law) -> list[KernelCost]:
    """Kernels of consecutive nodes, each taking what the law says of its work."""
    found, at = [], 0
    for ops in groups:
        nodes = facts.nodes[at : at + len(ops)]
        at += len(ops)
        work = facts.work([node.name for node in nodes])
        time_ns = time_of(work.flops or 0, work.moved_bytes or 0)
        found.append(kernel(time_ns, nodes, work.flops, work.moved_bytes))
    return found


def profile(
    facts: ModelFacts | None,
    kernels: Sequence[KernelCost],
    digest: str,
    *,
    end_to_end_ns: int | None = None,
    inflated: bool = False,
    target: str = TARGET,
    **fields: object,
) -> Profile:
    """A profile of one target; end to end is the kernels and a gap after each, unless given."""
    total_ns = sum(one.median_ns for one in kernels)
    plain_ns = total_ns + GAP_NS * len(kernels) if end_to_end_ns is None else end_to_end_ns
    table = KernelTable(
        kernels=tuple(kernels),
        total_ns=total_ns,
        unattributed_ns=0,
        instrumented_ns=plain_ns * 2 if inflated else plain_ns,
        plain_ns=plain_ns,
    )
    part = records.target(target, plain_ns, kernels=table)
    made = records.profile(part, **{"created": day(0), "facts": facts, "ceilings": (CEILING,), **fields})
    return msgspec.structs.replace(
        made, model=msgspec.structs.replace(made.model, name=digest, digest=digest)
    )


def model_profile(
    size: int, prefix: str, groups: Sequence[Sequence[str]] = FUSED, time_of: Law = law
) -> Profile:
    """A whole made-up model."""
    facts = chain([op for ops in groups for op in ops], size, prefix)
    return profile(facts, fused(facts, groups, time_of), f"{prefix}@{size}")


def runs(*profiles: Profile) -> tuple[PastRun, ...]:
    """What they say of the target."""
    return past_runs(profiles, TARGET)
