"""A comparison of two plans: what they cost, and which nodes they place differently."""

from __future__ import annotations

import msgspec

from hal.records.comparison import Difference, Side, Unlike


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes that lie on one target in A and on another in B.

    Attributes:
        a: Target in A; empty where A does not have the nodes.
        b: Target in B; empty where B does not have them.
        nodes: Their names, in A's order.
    """

    a: str
    b: str
    nodes: tuple[str, ...]


class PlanComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two plans side by side.

    Attributes:
        a: The one.
        b: The other.
        unlike: Conditions that differ.
        objectives: What each was made for.
        predicted_ns: Latency of each.
        bounds: Each one's proven gap.
        n_partitions: Of each.
        n_transfers: Of each, between partitions.
        measured: The difference of the measured latencies; None where one was not measured.
        moves: Nodes on other targets, most nodes first.
        n_same: Nodes on the same target in both.
        limit: Share by which B may be slower.
        too_slow: Whether it is slower by more, and noise does not explain it (of plans that were not
            measured: by prediction).
    """

    a: Side
    b: Side
    unlike: tuple[Unlike, ...]
    objectives: tuple[str, str]
    predicted_ns: tuple[int, int]
    bounds: tuple[float, float]
    n_partitions: tuple[int, int]
    n_transfers: tuple[int, int]
    measured: Difference | None
    moves: tuple[Move, ...]
    n_same: int
    limit: float | None = None
    too_slow: bool = False
