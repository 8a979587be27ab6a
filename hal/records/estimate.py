"""Costs that were not measured: always with an error bar, always marked."""

from __future__ import annotations

import msgspec


class Estimate(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="estimate"):
    """A duration that was not measured where it is asked for.

    Its JSON always holds ``"kind": "estimate"``, so that it cannot be taken for a measured figure.

    Attributes:
        low_ns: Lower end of the error bar: about 10% of truths lie below.
        median_ns: As likely too high as too low.
        high_ns: Upper end: about 10% of truths lie above.
        source: What it was made from, in words.
        n_records: Kernel records it rests on; 0 for the roofline alone.
    """

    low_ns: int
    median_ns: int
    high_ns: int
    source: str
    n_records: int

    @property
    def is_estimate(self) -> bool:
        """True, by construction."""
        return True


class GroupEstimate(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="estimate"):
    """Nodes that the target is expected to compute in one kernel, and what that should cost.

    Attributes:
        nodes: In the order of the graph.
        ops: Their operator types.
        flops: Operations per run; None where unknown.
        moved_bytes: Least traffic; None where unknown.
        cost: The kernel's time.
        cause: Where nodes were seen together: ``same model`` (at another shape), ``other models`` (a
            chain of these operators), or ``alone``.
    """

    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    flops: int | None
    moved_bytes: int | None
    cost: Estimate
    cause: str


class ModelEstimate(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="estimate"):
    """What a run of a model should take on a target, end to end.

    Attributes:
        model: Name of the model.
        digest: Of the bound graph.
        target: As written by ``str(Target)``.
        total: End to end.
        kernels: Sum of the groups' costs.
        between_ns: Part of the total that is not in kernels: their count times the target's usual gap;
            negative where its kernels run side by side.
        groups: Most expensive first.
        free: Nodes expected to cost nothing at run time: computed at compile time, or views.
        notes: What weakens it.
    """

    model: str
    digest: str
    target: str
    total: Estimate
    kernels: Estimate
    between_ns: int
    groups: tuple[GroupEstimate, ...]
    free: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
