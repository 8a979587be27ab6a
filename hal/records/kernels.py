"""Kernel costs apart from the model they were measured in, so that other models can use them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from hal.records.profile import Profile


class KernelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a kernel cost somewhere, by what it computes.

    Attributes:
        signature: Digest of the signatures of the nodes it computes: operators, attributes, shapes, dtypes.
        target: Where, as written by ``str(Target)``.
        ops: Operator types of those nodes, in order.
        flops: Operations per run.
        moved_bytes: Least traffic.
        median_ns: Median.
        p10_ns: 10th percentile.
        p90_ns: 90th percentile.
        n: Runs.
        model: Digest of the model it was measured in.
    """

    signature: str
    target: str
    ops: tuple[str, ...]
    flops: int
    moved_bytes: int
    median_ns: int
    p10_ns: int
    p90_ns: int
    n: int
    model: str


def kernel_records(profile: Profile) -> Iterator[KernelRecord]:
    """The kernels of a profile whose nodes, work and traffic are known and whose nodes are theirs alone."""
    if profile.facts is None:
        return
    signatures = {node.name: node.signature for node in profile.facts.nodes}
    for target in profile.targets:
        table = target.kernels
        if table is None or target.status != "ok" or table.inflated:
            continue
        n_kernels: dict[str, int] = {}
        for kernel in table.kernels:
            for node in kernel.nodes:
                n_kernels[node] = n_kernels.get(node, 0) + 1
        for kernel in table.kernels:
            known = all(signatures.get(node) and n_kernels[node] == 1 for node in kernel.nodes)
            if not kernel.nodes or not known or kernel.flops is None or kernel.moved_bytes is None:
                continue
            yield KernelRecord(
                signature=signature_of(signatures[node] for node in kernel.nodes),
                target=target.target,
                ops=kernel.ops,
                flops=kernel.flops,
                moved_bytes=kernel.moved_bytes,
                median_ns=kernel.median_ns,
                p10_ns=kernel.p10_ns,
                p90_ns=kernel.p90_ns,
                n=kernel.n,
                model=profile.model.digest,
            )


def signature_of(signatures: Iterator[str]) -> str:
    """One digest for nodes that are computed together."""
    return hashlib.sha256("\n".join(signatures).encode()).hexdigest()[:32]
