"""Hand-made profiles for the tests of comparisons: a chain of four nodes on three targets."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hal.records.facts import ModelFacts, NodeFact
from hal.records.profile import KernelCost, KernelTable, Profile, TargetProfile, Timing
from tests.golden import records

FP32, BF16, ORT = records.FP32, records.BF16, records.ORT

FACTS = ModelFacts(
    nodes=tuple(
        NodeFact(
            name=name,
            op=op,
            module=module,
            flops=1000,
            reads=(before,),
            writes=(f"v{name}",),
            source="net.py:7",
        )
        for name, op, module, before in (
            ("conv", "Conv", "body.conv", "x"),
            ("relu", "Relu", "body.act", "vconv"),
            ("pool", "MaxPool", "body.pool", "vrelu"),
            ("head", "Gemm", "", "vpool"),
        )
    ),
    value_bytes={"x": 64, "vconv": 64, "vrelu": 64, "vpool": 16, "vhead": 8},
    weights=frozenset(),
    inputs=("x",),
    outputs=("vhead",),
)


def timing(
    median_ns: int, *, n_bursts: int = 12, wobble: Sequence[float] = (0.99, 1.0, 1.01), **fields: object
) -> Timing:
    """Bursts of three runs that are slower and faster in turn."""
    bursts = tuple((round(median_ns * wobble[i % len(wobble)]),) * 3 for i in range(n_bursts))
    return msgspec.structs.replace(records.timing(median_ns), bursts_ns=bursts, **fields)


def kernel(*nodes: str, median_ns: int, n_samples: int = 12) -> KernelCost:
    made = records.kernel("+".join(nodes) or "reorder", median_ns, nodes, (), "jit")
    samples_ns = tuple(round(median_ns * (0.98 + 0.02 * (i % 3))) for i in range(n_samples))
    return msgspec.structs.replace(made, samples_ns=samples_ns)


def table(*kernels: KernelCost, folded: tuple[str, ...] = (), **fields: object) -> KernelTable:
    return KernelTable(
        **{
            "kernels": kernels,
            "total_ns": sum(one.median_ns for one in kernels),
            "unattributed_ns": sum(one.median_ns for one in kernels if not one.nodes),
            "instrumented_ns": 100_000,
            "folded": folded,
            **fields,
        }
    )


#: OpenVINO fuses the convolution with what follows and folds nothing.
FUSED = table(
    kernel("conv", "relu", median_ns=60_000),
    kernel("pool", median_ns=10_000),
    kernel("head", median_ns=20_000),
    kernel(median_ns=3_000),
)
#: Half the time in the convolution, the head as fast, the pool slower.
HALF = table(
    kernel("conv", "relu", median_ns=30_000),
    kernel("pool", median_ns=12_000),
    kernel("head", median_ns=20_000),
)
#: ONNX Runtime takes the pool along too.
WIDE = table(
    kernel("conv", median_ns=70_000),
    kernel("relu", "pool", median_ns=20_000),
    kernel("head", median_ns=20_000),
)


def target(name: str, median_ns: int, kernels: KernelTable | None, **fields: object) -> TargetProfile:
    return records.target(
        name, median_ns, **{"timing": timing(median_ns), "kernels": kernels, "policy": "care", **fields}
    )


def profile(*targets: TargetProfile, **fields: object) -> Profile:
    chosen = targets or (
        target(FP32, 100_000, FUSED),
        target(BF16, 70_000, HALF),
        target(ORT, 120_000, WIDE),
    )
    made = records.profile(*chosen, **{"facts": FACTS, **fields})
    return msgspec.structs.replace(made, model=msgspec.structs.replace(made.model, inputs_digest="i" * 64))


def environment(made: Profile, **fields: object) -> Profile:
    """The same profile from another environment."""
    return msgspec.structs.replace(made, environment=msgspec.structs.replace(made.environment, **fields))
