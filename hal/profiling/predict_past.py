"""What earlier profiles say of a target: kernels with the nodes they computed, and the time around them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hal.records.facts import ModelFacts, NodeFact
from hal.records.kernels import KernelRecord, signature_of
from hal.records.profile import KernelCost, KernelTable, Profile, TargetProfile

#: Part of a kernel's time that is kept at least where the cost of instruments is taken off.
#: Source: a kernel takes some time; without it, small ones would become 0, which has no logarithm.
_LEAST_PART = 0.1


@dataclass(frozen=True)
class Seen:
    """A kernel that was measured, or several that share nodes, taken together.

    Attributes:
        signature: As of :class:`hal.records.kernels.KernelRecord`; empty where a node's is not known.
        ops: Operators of its nodes.
        flops: Operations per run; None where unknown.
        moved_bytes: Least traffic; None where unknown.
        median_ns: Median, at least 1.
        p10_ns: 10th percentile.
        p90_ns: 90th percentile.
        digest: Of the model it was measured in.
        family: The same for one model at all its shapes.
        nodes: What it computed, in the order of the graph; empty where only a record is left.
        corrected: Whether the cost of the instruments was taken off.
    """

    signature: str
    ops: tuple[str, ...]
    flops: int | None
    moved_bytes: int | None
    median_ns: int
    p10_ns: int
    p90_ns: int
    digest: str
    family: str
    nodes: tuple[str, ...] = ()
    corrected: bool = False


@dataclass(frozen=True)
class PastRun:
    """One model measured on one target.

    Attributes:
        model: Its name.
        digest: Of the bound graph.
        family: The same for one model at all its shapes.
        end_to_end_ns: Median of plain runs.
        kernels: What it launched.
        rest_ns: End-to-end time that is in none of ``kernels``; negative where they overlap.
        stable: Whether its end-to-end figure can be trusted.
        free: Nodes that cost nothing at run time.
        facts: Of its graph.
    """

    model: str
    digest: str
    family: str
    end_to_end_ns: int
    kernels: tuple[Seen, ...]
    rest_ns: int
    stable: bool
    free: frozenset[str]
    facts: ModelFacts

    @property
    def gap_ns(self) -> float:
        """Time per kernel that is not in kernels."""
        return self.rest_ns / len(self.kernels)


def family_of(nodes: Iterable[NodeFact]) -> str:
    """A digest of names and operators of nodes: one model's at whatever shapes."""
    text = "\n".join(f"{node.name}\t{node.op}" for node in nodes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def past_runs(profiles: Iterable[Profile], target: str) -> tuple[PastRun, ...]:
    """What profiles hold of a target; of several of one model and shape, the newest.

    Args:
        profiles: In any order. Those without facts are left out.
        target: As written by ``str(Target)``.
    """
    newest: dict[str, PastRun] = {}
    for profile in sorted(profiles, key=lambda profile: profile.created):
        for part in profile.targets:
            run = _past_run(profile, part) if part.target == target else None
            if run is not None:
                newest[run.digest] = run
    return tuple(newest.values())


def lone_records(records: Iterable[KernelRecord], runs: Sequence[PastRun]) -> tuple[Seen, ...]:
    """Records whose profiles are gone: of models that are in none of the runs."""
    known = {run.digest for run in runs}
    return tuple(
        Seen(
            signature=record.signature,
            ops=record.ops,
            flops=record.flops,
            moved_bytes=record.moved_bytes,
            median_ns=record.median_ns,
            p10_ns=record.p10_ns,
            p90_ns=record.p90_ns,
            digest=record.model,
            family=record.model,
        )
        for record in records
        if record.model not in known and record.median_ns > 0
    )


def _past_run(profile: Profile, part: TargetProfile) -> PastRun | None:
    facts, table = profile.facts, part.kernels
    if facts is None or table is None or part.timing is None or part.status != "ok" or not table.kernels:
        return None
    end_to_end_ns = table.plain_ns or part.timing.median_ns
    family = family_of(facts.nodes)
    factors, corrected = _without_instruments(table, end_to_end_ns)
    seen = []
    for nodes, kernels in _together(table.kernels, facts):
        work = facts.work([node.name for node in nodes])
        signed = all(node.signature for node in nodes)
        scaled = [(kernel, factors[index]) for index, kernel in kernels]
        seen.append(
            Seen(
                signature=signature_of(node.signature for node in nodes) if signed else "",
                ops=tuple(node.op for node in nodes),
                flops=work.flops,
                moved_bytes=work.moved_bytes,
                median_ns=max(round(sum(kernel.median_ns * factor for kernel, factor in scaled)), 1),
                p10_ns=max(round(sum(kernel.p10_ns * factor for kernel, factor in scaled)), 1),
                p90_ns=max(round(sum(kernel.p90_ns * factor for kernel, factor in scaled)), 1),
                digest=profile.model.digest,
                family=family,
                nodes=tuple(node.name for node in nodes),
                corrected=corrected,
            )
        )
    if not seen:
        return None
    covered = {name for one in seen for name in one.nodes}
    return PastRun(
        model=profile.model.name,
        digest=profile.model.digest,
        family=family,
        end_to_end_ns=end_to_end_ns,
        kernels=tuple(seen),
        rest_ns=end_to_end_ns - sum(one.median_ns for one in seen),
        stable=part.timing.stable,
        free=frozenset(node.name for node in facts.nodes if node.name not in covered),
        facts=facts,
    )


def _without_instruments(table: KernelTable, end_to_end_ns: int) -> tuple[Mapping[int, float], bool]:
    """Factors, by position in the table, that take the cost of instruments off kernel times.

    Where the instruments slowed the run and the kernels together take longer than a plain run, each
    kernel is made shorter by the same time, so that they sum to the plain run.

    Source: an instrument costs two readings of a clock and one note per kernel, whatever it computes;
    ONNX Runtime's showed 3.0 to 3.9 us a kernel over four models from 10 to 228 kernels.
    """
    times = [kernel.median_ns for kernel in table.kernels]
    if not table.inflated or sum(times) <= end_to_end_ns:
        return dict.fromkeys(range(len(times)), 1.0), False

    def shortened(by_ns: float) -> list[float]:
        return [max(time - by_ns, _LEAST_PART * time) for time in times]

    low, high = 0.0, float(max(times))
    for _ in range(40):  # halving 1 s forty times ends below a ns
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shortened(middle)) > end_to_end_ns else (low, middle)
    after = shortened(low)
    return {i: new / old if old else 1.0 for i, (new, old) in enumerate(zip(after, times, strict=True))}, True


def _together(
    kernels: Sequence[KernelCost], facts: ModelFacts
) -> Iterator[tuple[list[NodeFact], list[tuple[int, KernelCost]]]]:
    """Kernels that share nodes, joined: each node's whole cost, conversions of layout included."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while (above := leader.setdefault(name, name)) != name:
            leader[name] = name = leader.setdefault(above, above)
        return name

    for kernel in kernels:
        for name in kernel.nodes[1:]:
            leader[find(name)] = find(kernel.nodes[0])
    members: dict[str, list[tuple[int, KernelCost]]] = {}
    for index, kernel in enumerate(kernels):
        if kernel.nodes:
            members.setdefault(find(kernel.nodes[0]), []).append((index, kernel))
    position = {node.name: at for at, node in enumerate(facts.nodes)}
    for found in members.values():
        names = {name for _, kernel in found for name in kernel.nodes if name in position}
        if names:
            yield [facts.nodes[at] for at in sorted(position[name] for name in names)], found
