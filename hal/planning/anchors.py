"""Where in a graph a kernel belongs: the nodes that it must have computed itself."""

from __future__ import annotations

from collections.abc import Sequence

from hal.records.facts import ModelFacts
from hal.records.profile import KernelCost, KernelTable


class Anchors:
    """Tells the anchors of kernels of a graph.

    The nodes of a kernel tell where it belongs, except for

    * nodes that are the same in each run: a kernel that reads weights covers what was folded into them, and
      tied weights would join both ends of a model. They count where a kernel covers nothing else.
    * nodes whose result another kernel needed before this one could begin, because a path leads from them
      through a node of another kernel and back. They were computed elsewhere too, or cost nothing, such as
      a Reshape before a residual branch; to join them with the end of the branch would join the branch.
    * Identity nodes, which cost nothing: one runtime puts them with what is before, the next with what is
      after, and both together would be joined. They count where a kernel covers nothing else.

    Attributes:
        position: Of each node in the graph, by name.
        is_fixed: For each node whether it is the same in each run.
        edges: Positions of the nodes that read what each node writes.
        copies: Each Identity's position behind that of the node whose result it passes on. To join the two
            makes no cycle, for nothing else leads to an Identity.
    """

    def __init__(self, facts: ModelFacts) -> None:
        self.position = {node.name: position for position, node in enumerate(facts.nodes)}
        self.is_fixed = [
            bool(node.writes) and facts.weights.issuperset(filter(None, node.writes)) for node in facts.nodes
        ]
        maker = {value: at for at, node in enumerate(facts.nodes) for value in node.writes if value}
        self.edges: list[list[int]] = [[] for _ in facts.nodes]
        for at, node in enumerate(facts.nodes):
            for value in dict.fromkeys(node.reads):
                if value in maker:
                    self.edges[maker[value]].append(at)
        self._is_identity = [node.op == "Identity" and not node.domain for node in facts.nodes]
        self.copies = [
            (before, at)
            for before, readers in enumerate(self.edges)
            for at in readers
            if self._is_identity[at] and not self.is_fixed[at]
        ]

    def of(self, table: KernelTable) -> list[tuple[KernelCost, list[int]]]:
        """Kernels with the positions of their anchors, by rising position; of none where no node is known."""
        covered = {self.position[n] for one in table.kernels for n in one.nodes if n in self.position}
        covered = {at for at in covered if not self._is_identity[at]}
        found = []
        for kernel in table.kernels:
            inside = {self.position[name] for name in kernel.nodes if name in self.position}
            own = sorted(at for at in inside if not self.is_fixed[at]) or sorted(inside)
            own = [at for at in own if not self._is_identity[at]] or own
            found.append((kernel, self._last(own, covered - inside)))
        return found

    def _last(self, positions: Sequence[int], foreign: set[int]) -> list[int]:
        """Those of a kernel's nodes from which no path leads through another kernel's node and back."""
        inside = set(positions)
        if len(inside) < 2:
            return list(positions)
        # Nodes are in topological order, so a path from the first to the last stays between them.
        reaching: set[int] = set()
        returning: set[int] = set()
        for at in range(positions[-1], positions[0] - 1, -1):
            reaches = any(other in reaching for other in self.edges[at])
            if (at in foreign and reaches) or any(other in returning for other in self.edges[at]):
                returning.add(at)
            if reaches or at in inside:
                reaching.add(at)
        return [at for at in positions if at not in returning]
