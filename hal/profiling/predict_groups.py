"""How a target will cut a graph into kernels, guessed from how it cut graphs before."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hal.profiling.predict_past import PastRun, family_of
from hal.records.facts import ModelFacts, NodeFact

#: Why nodes are expected in one kernel: they were so in the same model at another shape; their operators
#: were so in other models; or nothing says that they are not alone.
SAME_NODES, FUSED_ELSEWHERE, ALONE = "same model", "other models", "alone"

#: Nodes of an operator are expected to be free where more than this share of them was so before.
#: Source: majority.
_MOSTLY = 0.5
#: Longest chain of operators looked for.
#: Source: the longest kernels of OpenVINO and ONNX Runtime on the models of tests/models have under 20.
_LONGEST = 24


@dataclass(frozen=True)
class Group:
    """Nodes expected in one kernel, in the order of the graph, and why."""

    nodes: tuple[NodeFact, ...]
    cause: str


def group(facts: ModelFacts, runs: Sequence[PastRun]) -> tuple[list[Group], list[str]]:
    """Cut a graph as the target of ``runs`` did before.

    The same model at another shape is cut as it was then. Else each node, in order, begins the longest
    chain of operators that was one kernel elsewhere and goes on along the edges of the graph; nodes
    without such a chain stay alone.

    Returns:
        The groups, in the order of their first nodes, and the names of nodes that cost nothing.
    """
    family = family_of(facts.nodes)
    same = [run for run in runs if run.family == family]
    if same:
        return _as_before(facts, same[-1])
    return _by_chains(facts, runs)


def _as_before(facts: ModelFacts, run: PastRun) -> tuple[list[Group], list[str]]:
    nodes = facts.by_name()
    groups = [Group(tuple(nodes[name] for name in kernel.nodes), SAME_NODES) for kernel in run.kernels]
    return groups, [node.name for node in facts.nodes if node.name in run.free]


def _by_chains(facts: ModelFacts, runs: Sequence[PastRun]) -> tuple[list[Group], list[str]]:
    chains = _chains(runs)
    free_ops = _free_operators(runs)
    readers: dict[str, list[NodeFact]] = defaultdict(list)
    for node in facts.nodes:
        for value in node.reads:
            readers[value].append(node)
    taken = {node.name for node in facts.nodes if _constant(node, facts)}
    free = set(taken)
    groups = []
    for node in facts.nodes:
        if node.name in taken:
            continue
        found = next(
            (match for chain in chains.get(node.op, ()) if (match := _follow(node, chain, readers, taken))),
            [node],
        )
        taken.update(each.name for each in found)
        if len(found) == 1 and node.op in free_ops:
            free.add(node.name)
            continue
        groups.append(Group(tuple(found), ALONE if len(found) == 1 else FUSED_ELSEWHERE))
    return groups, [node.name for node in facts.nodes if node.name in free]


def _constant(node: NodeFact, facts: ModelFacts) -> bool:
    return bool(node.writes) and all(value in facts.weights for value in node.writes if value)


def _chains(runs: Iterable[PastRun]) -> Mapping[str, list[tuple[str, ...]]]:
    """By first operator, the operator chains of past kernels, longest first."""
    seen = Counter(kernel.ops for run in runs for kernel in run.kernels if 1 < len(kernel.ops) <= _LONGEST)
    found: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for ops in sorted(seen, key=lambda ops: (-len(ops), -seen[ops])):
        found[ops[0]].append(ops)
    return found


def _free_operators(runs: Iterable[PastRun]) -> frozenset[str]:
    """Operators whose nodes mostly cost nothing where they are not computed from weights alone."""
    n_all: Counter[str] = Counter()
    n_free: Counter[str] = Counter()
    for run in runs:
        for node in run.facts.nodes:
            if not _constant(node, run.facts):
                n_all[node.op] += 1
                n_free[node.op] += node.name in run.free
    return frozenset(op for op, n in n_all.items() if n_free[op] > _MOSTLY * n)


def _follow(
    first: NodeFact, chain: Sequence[str], readers: Mapping[str, Sequence[NodeFact]], taken: set[str]
) -> list[NodeFact] | None:
    """Nodes along the edges from ``first`` whose operators are ``chain``; None where there are none."""
    found, names = [first], {first.name}
    for op in chain[1:]:
        following = next(
            (
                node
                for node in _next(found, readers)
                if node.op == op and node.name not in taken and node.name not in names
            ),
            None,
        )
        if following is None:
            return None
        found.append(following)
        names.add(following.name)
    return found


def _next(found: Sequence[NodeFact], readers: Mapping[str, Sequence[NodeFact]]) -> Iterator[NodeFact]:
    """Readers of what the nodes write, of the last node first."""
    for node in reversed(found):
        for value in node.writes:
            yield from readers.get(value, ())
