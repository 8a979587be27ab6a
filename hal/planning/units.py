"""Units: the smallest sets of nodes that a scheduler places, from what the backends compute together.

How they are found:

1. The nodes that a kernel of a table that defines units must have computed are joined, see
   :mod:`hal.planning.anchors`; so is each Identity with what it passes on.
2. Units must be convex: a path that leaves a unit must not come back. Contracting units that are not leaves
   cycles; the sets on a cycle become one unit.
3. What is the same in each run, or folded by every target, belongs to no unit, unless a kernel computes
   nothing else or it lies on a path out of a unit and back.

Source: DESIGN section 2 of the project. Condensing strongly connected components leaves an acyclic graph, and
a set of nodes whose contraction leaves one is convex: a path out and back would be a cycle.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from hal import stats
from hal.planning.anchors import Anchors
from hal.planning.contraction import Edges, Joined, components, contracted, ordered
from hal.records.facts import ModelFacts, NodeFact
from hal.records.profile import KernelCost, KernelTable, Unit, UnitCost

#: Names of the two tables in the costs of :func:`blocks`.
A, B = "a", "b"


def units(facts: ModelFacts, tables: Mapping[str, KernelTable]) -> tuple[Unit, ...]:
    """The units of a graph and what each costs on each target.

    The cost on a target is the sum of the medians of the target's kernels in the unit, so that the costs of
    all units add up to the kernel time that is attributed. Its percentiles are of the sums run by run, where
    every kernel has samples (which are of the same runs); else they are the summed percentiles, which are
    wider than those of the sum, because kernels are not slow in the same runs. A unit whose nodes were all
    folded, or lie in kernels of other units that read them as weights, costs nothing there. It has no cost
    where a target does not tell: where its nodes are in no kernel, or in a kernel that covers nodes of other
    units too, which only targets that define no units have; :func:`remarks` says where. A kernel that covers
    no known node costs no unit: it stays unattributed.

    Args:
        facts: Of the bound graph.
        tables: Kernels by target.

    Returns:
        Units in topological order, of those possible the one nearest the graph's; every node is in at most
        one, nodes that no table knows are units of their own. Names are unique: the innermost module that
        holds all nodes, else the first node, with ``#2`` and so on where that is taken.
    """
    defining = [target for target, table in tables.items() if table.defines_units]
    return _units(facts, tables, defining)


def blocks(facts: ModelFacts, a: KernelTable, b: KernelTable) -> tuple[Unit, ...]:
    """What two targets can be compared by: the units of their two tables, both defining.

    Every kernel that covers a known node lies in exactly one block, whatever the tables say of defining
    units, so that the costs add up on both sides.

    Args:
        facts: Of the bound graph.
        a: Kernels of one target; :data:`A` in the costs.
        b: Kernels of the other; :data:`B` in the costs.
    """
    return _units(facts, {A: a, B: b}, (A, B))


def remarks(facts: ModelFacts, units: Sequence[Unit], tables: Mapping[str, KernelTable]) -> tuple[str, ...]:
    """One sentence per target on which units have no cost, because a kernel reaches over several."""
    anchors = Anchors(facts)
    found = []
    for target, table in tables.items():
        shared = _placed(units, anchors, anchors.of(table))[1]
        if shared:
            found.append(
                f"{target}: {len(shared)} of {len(units)} units have no cost of their own, because kernels "
                "cover nodes of several"
            )
    return tuple(found)


def kernels_of(facts: ModelFacts, units: Sequence[Unit], table: KernelTable) -> dict[str, list[KernelCost]]:
    """The kernels that lie in one unit, by the unit's name."""
    anchors = Anchors(facts)
    return _placed(units, anchors, anchors.of(table))[0]


def sum_of(kernels: Sequence[KernelCost]) -> UnitCost:
    """The cost of kernels that run one after the other, as :func:`units` says; of none it is 0."""
    runs = sums_ns(kernels)
    median_ns = sum(kernel.median_ns for kernel in kernels)
    if runs:
        low, high = stats.percentile(runs, 10), stats.percentile(runs, 90)
    else:
        low, high = sum(kernel.p10_ns for kernel in kernels), sum(kernel.p90_ns for kernel in kernels)
    return UnitCost(
        median_ns=median_ns,
        # The sum of the medians can lie beside the percentiles of the sums.
        p10_ns=min(round(low), median_ns),
        p90_ns=max(round(high), median_ns),
        n=min((kernel.n for kernel in kernels), default=0),
    )


def sums_ns(kernels: Sequence[KernelCost]) -> tuple[int, ...]:
    """The kernels' time in each recorded run; empty where not all have samples of the same runs."""
    lengths = {len(kernel.samples_ns) for kernel in kernels}
    if len(lengths) != 1:
        return ()
    return tuple(map(sum, zip(*(kernel.samples_ns for kernel in kernels), strict=True)))


def _units(
    facts: ModelFacts, tables: Mapping[str, KernelTable], defining: Collection[str]
) -> tuple[Unit, ...]:
    anchors = Anchors(facts)
    kernels = {target: anchors.of(table) for target, table in tables.items()}
    joining: list[Sequence[int]] = [positions for target in defining for _, positions in kernels[target]]
    joining += anchors.copies
    computed = {at for target in tables for _, positions in kernels[target] for at in positions}
    idle = {at for at, is_fixed in enumerate(anchors.is_fixed) if is_fixed}
    if tables:
        folded = set.intersection(*(set(table.folded) for table in tables.values()))
        idle |= {at for name, at in anchors.position.items() if name in folded}
    found = _named(facts, _partition(anchors.edges, joining, idle - computed))
    costs: dict[str, dict[str, UnitCost]] = {unit.name: {} for unit in found}
    for target, table in tables.items():
        inside, shared = _placed(found, anchors, kernels[target])
        known = {node for kernel in table.kernels for node in kernel.nodes}.union(table.folded)
        for unit in found:
            if unit.name not in shared and (unit.name in inside or known.issuperset(unit.nodes)):
                costs[unit.name][target] = sum_of(inside.get(unit.name, []))
    return tuple(msgspec.structs.replace(unit, costs=costs[unit.name]) for unit in found)


def _partition(edges: Edges, joining: Iterable[Sequence[int]], idle: set[int]) -> list[list[int]]:
    """Positions of the nodes of each unit, in topological order; units of idle nodes alone are left out."""
    joined = Joined(len(edges))
    for positions in joining:
        joined.join(positions)
    groups = _numbered(joined.find(at) for at in range(len(edges)))
    merged = components(contracted(groups, edges))
    groups = _numbered(merged[group] for group in groups)
    members: list[list[int]] = [[] for _ in set(groups)]
    for at, group in enumerate(groups):
        members[group].append(at)
    # Paths through idle nodes count too, so these are put in order with the rest.
    order = ordered([positions[0] for positions in members], contracted(groups, edges))
    return [members[group] for group in order if not idle.issuperset(members[group])]


def _placed(
    units: Sequence[Unit], anchors: Anchors, kernels: Iterable[tuple[KernelCost, Sequence[int]]]
) -> tuple[dict[str, list[KernelCost]], set[str]]:
    """Kernels by the name of the one unit they lie in; names of units that share a kernel with another."""
    home = {anchors.position[node]: unit.name for unit in units for node in unit.nodes}
    inside: dict[str, list[KernelCost]] = {}
    shared: set[str] = set()
    for kernel, positions in kernels:
        names = {home[at] for at in positions}
        if len(names) == 1:
            inside.setdefault(names.pop(), []).append(kernel)
        elif names:
            shared |= names
    return inside, shared


def _numbered(marks: Iterable[int]) -> list[int]:
    """Numbers from 0 in place of marks, in the order of their first appearance."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(mark, len(numbers)) for mark in marks]


def _named(facts: ModelFacts, members: Sequence[Sequence[int]]) -> list[Unit]:
    """Units without costs."""
    titles = [_title([facts.nodes[at] for at in positions]) for positions in members]
    taken = set(titles)
    used: Counter[str] = Counter()
    found = []
    for positions, title in zip(members, titles, strict=True):
        name = title
        while used[title] and name in taken:
            used[title] += 1
            name = f"{title}#{used[title]}"
        used[title] = max(used[title], 1)
        taken.add(name)
        nodes = [facts.nodes[at].name for at in positions]
        work = facts.work(nodes)
        found.append(
            Unit(
                name=name,
                nodes=tuple(nodes),
                flops=work.flops,
                moved_bytes=work.moved_bytes,
                weight_bytes=work.weight_bytes,
                activation_bytes=work.activation_bytes,
            )
        )
    return found


def _title(nodes: Sequence[NodeFact]) -> str:
    """The innermost module that holds all nodes of which it is known, else the first node's name."""
    paths = [node.levels for node in nodes if node.module]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return ".".join(names[0] for names in shared) or nodes[0].name
