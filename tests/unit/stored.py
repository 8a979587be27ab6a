"""Hand-made records for the tests of the store."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import msgspec

from hal.profiling.store import Wanted
from hal.records.facts import ModelFacts, NodeFact
from hal.records.machine import Ceiling, MachineProfile
from hal.records.profile import KernelCost, KernelTable, Profile, TargetProfile
from tests.golden import records

POLICY = "0123456789ab"
INPUTS = "i" * 64
ENVIRONMENT = records.FULL.environment
OTHER_ENVIRONMENT = msgspec.structs.replace(ENVIRONMENT, packages={"openvino": "2099.1"})


def day(n: int) -> str:
    """Midnight of a day of 2026, counted from 0."""
    return f"2026-01-{n + 1:02}T00:00:00+00:00"


def kernel(name: str, median_ns: int, *nodes: str, order: int = 0) -> KernelCost:
    return KernelCost(
        name=name,
        type="jit",
        nodes=nodes,
        ops=tuple(node.rstrip("0123456789") for node in nodes),
        device="",
        median_ns=median_ns,
        p10_ns=median_ns,
        p90_ns=median_ns,
        n=50,
        order=order,
        flops=1000,
        moved_bytes=500,
        activation_bytes=100,
    )


def table(*kernels: KernelCost) -> KernelTable:
    total_ns = sum(one.median_ns for one in kernels)
    return KernelTable(kernels=kernels, total_ns=total_ns, unattributed_ns=0, instrumented_ns=total_ns)


def target(name: str = records.FP32, median_ns: int = 1000, **fields: object) -> TargetProfile:
    return records.target(name, median_ns, **{"policy": POLICY, "kernels": table(), **fields})


def facts(**signatures: str) -> ModelFacts:
    """Facts of nodes, by name, with these signatures."""
    nodes = tuple(
        NodeFact(
            name=name,
            op=name.rstrip("0123456789"),
            signature=signature,
            module=f"body.{name}.inner",
            source="net.py:7",
        )
        for name, signature in signatures.items()
    )
    return ModelFacts(nodes=nodes, value_bytes={}, weights=frozenset(), inputs=(), outputs=())


def profile(
    *targets: TargetProfile, name: str = "digits", digest: str = "d" * 64, **fields: object
) -> Profile:
    made = records.profile(*(targets or (target(),)), **{"created": day(0), **fields})
    model = msgspec.structs.replace(made.model, name=name, digest=digest, inputs_digest=INPUTS)
    return msgspec.structs.replace(made, model=model)


def wanted(**fields: object) -> Wanted:
    whole: dict[str, object] = {
        "model_digest": "d" * 64,
        "inputs_digest": INPUTS,
        "environment": ENVIRONMENT,
        "hal_version": "0.1.0",
        "policy": POLICY,
        "targets": (records.FP32, records.BF16),
    }
    return Wanted(**{**whole, **fields})  # type: ignore[arg-type]


def machine(created: str = day(0), flops_per_s: float = 1e12) -> MachineProfile:
    ceiling = Ceiling(
        device="cpu:0",
        precision="fp32",
        flops_per_s=flops_per_s,
        bytes_per_s=1e10,
        compute_target=records.FP32,
        copy_target=records.FP32,
    )
    return MachineProfile(
        schema_version=1,
        hal_version="0.1.0",
        created=created,
        environment=ENVIRONMENT,
        devices=(records.CPU,),
        ceilings=(ceiling,),
        links=(),
    )


def noise(n: int) -> str:
    """A text that compression makes little smaller."""
    return random.Random(n).randbytes(60_000).hex()


def changed(path: Path, statement: str, *values: object) -> None:
    """Change the database behind the store's back."""
    connection = sqlite3.connect(path, isolation_level=None)
    assert connection.execute(statement, values).rowcount > 0
    connection.close()


def column(path: Path, query: str) -> list[object]:
    """The first column of a query's answer."""
    connection = sqlite3.connect(path)
    found = [row[0] for row in connection.execute(query)]
    connection.close()
    return found
