"""A comparison of two profiles, or of two targets of one: what differs, and whether it is more than noise."""

from __future__ import annotations

import msgspec

from hal.records.profile import UnitCost

#: Version of the JSON.
COMPARISON_SCHEMA_VERSION = 1


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two profiles compared; the same twice where two targets of one are.

    Attributes:
        label: What the caller calls it, for example the file.
        model: The model's name.
        digest: The model's digest.
        created: When it was measured, ISO 8601.
        hal_version: By which hal.
    """

    label: str
    model: str
    digest: str
    created: str
    hal_version: str


class Unlike(msgspec.Struct, frozen=True, kw_only=True):
    """A condition under which two profiles were measured that was not the same.

    Attributes:
        field: Of the profile, for example ``cpu`` or ``package openvino``.
        a: Its value in A.
        b: Its value in B.
    """

    field: str
    a: str
    b: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Two times, and whether they differ by more than noise.

    Attributes:
        a_ns: Median of A.
        b_ns: Median of B.
        ratio: Time of B over that of A: of pairs the median of their ratios, else the ratio of the medians;
            None where it is infinite.
        low: Lower end of the ratio's 95% interval; None where nothing could be said.
        high: Upper end; None where it is infinite or nothing could be said.
        faster: ``a`` or ``b`` where the interval excludes 1 and the medians agree; else empty.
        method: ``pairs`` (rounds of interleaved bursts), ``bursts`` (recorded bursts, not side by side),
            ``runs`` (recorded instrumented runs), or empty: too few samples, and nothing can be said.
        n_a: Samples of A.
        n_b: Samples of B.
    """

    a_ns: int
    b_ns: int
    ratio: float | None
    low: float | None = None
    high: float | None = None
    faster: str = ""
    method: str = ""
    n_a: int = 0
    n_b: int = 0


class BlockDifference(msgspec.Struct, frozen=True, kw_only=True):
    """A block on both sides: the least set of nodes that both compute in kernels of their own.

    Attributes:
        name: The module that holds its nodes, or its first node.
        nodes: In the order of the graph.
        ops: Operator types, each once, in that order.
        a: Its cost in A; None where A does not tell.
        b: Its cost in B; None where B does not tell.
        difference: None where either does not tell.
        share: Part of the difference that all blocks make together; negative where this one goes the other
            way; None where they make none, or a side does not tell.
    """

    name: str
    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    a: UnitCost | None
    b: UnitCost | None
    difference: Difference | None
    share: float | None


class KernelSum(msgspec.Struct, frozen=True, kw_only=True):
    """All kernels of one side.

    Attributes:
        total_ns: Sum of the medians.
        unattributed_ns: Part of it in kernels that cover no known node, and so lie in no block.
        overhead: Share by which the instruments slowed the run; None where it was not measured.
        inflated: Whether that is so much that the kernel times are larger than without.
    """

    total_ns: int
    unattributed_ns: int
    overhead: float | None = None
    inflated: bool = False


class TargetComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One target of A and one of B.

    Attributes:
        a: Target of A.
        b: Target of B; the same where two profiles are compared.
        reason: Why they could not be compared; empty where they were.
        b_lost: Whether A answered rightly and B, which was measured, did not.
        end_to_end: Of plain runs.
        blocks: In topological order.
        blocks_missing: Why there are none.
        a_kernels: Sums of A; None where there are no blocks.
        b_kernels: Sums of B.
        notes: What to bear in mind, in sentences.
    """

    a: str
    b: str
    reason: str = ""
    b_lost: bool = False
    end_to_end: Difference | None = None
    blocks: tuple[BlockDifference, ...] = ()
    blocks_missing: str = ""
    a_kernels: KernelSum | None = None
    b_kernels: KernelSum | None = None
    notes: tuple[str, ...] = ()


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What ``hal compare`` found.

    Attributes:
        unlike: Conditions that were not the same, compared all the same because the caller said so.
        targets: In the order of A.
        only_a: Targets that only A has.
        only_b: Targets that only B has.
        limit: By how much B may be slower, as a share of A's time; None where nobody asked.
        too_slow: Targets of B that are slower by more, see :meth:`slower`.
    """

    schema_version: int
    hal_version: str
    a: Side
    b: Side
    targets: tuple[TargetComparison, ...]
    unlike: tuple[Unlike, ...] = ()
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    limit: float | None = None
    too_slow: tuple[str, ...] = ()

    def slower(self, limit: float) -> tuple[TargetComparison, ...]:
        """Targets on which B fails a limit.

        B is slower by more than noise explains, and by more than the limit; or it gave no right answer
        where A did.

        Args:
            limit: Share of A's time, for example 0.05.
        """
        return tuple(target for target in self.targets if _fails(target, limit))


def _fails(target: TargetComparison, limit: float) -> bool:
    found = target.end_to_end
    if found is None:
        return target.b_lost
    return found.faster == "a" and (found.ratio is None or found.ratio > 1 + limit)
