"""Sets of a graph's nodes: joined, widened until contracting them leaves no cycle, and put in order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

#: Successors of each vertex. Vertices are numbered from 0.
Edges = Sequence[Iterable[int]]


class Joined:
    """Numbers in disjoint sets that can be joined: union-find.

    Source: R. E. Tarjan, "Efficiency of a good but not linear set union algorithm", J. ACM 22 (1975); here
    with path halving, and the smallest number stands for its set.

    Args:
        n: How many numbers, each in a set of its own at first.
    """

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def join(self, numbers: Sequence[int]) -> None:
        """Put numbers, and all that was joined with any of them, into one set."""
        for number in numbers[1:]:
            one, other = sorted((self.find(numbers[0]), self.find(number)))
            self._parent[other] = one

    def find(self, number: int) -> int:
        """The number that stands for the set."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number


def contracted(groups: Sequence[int], edges: Edges) -> list[set[int]]:
    """Successors of each set of vertices, without those within a set.

    Args:
        groups: Number of the set of each vertex; sets are numbered from 0 without gaps.
        edges: Between the vertices.
    """
    made: list[set[int]] = [set() for _ in range(max(groups, default=-1) + 1)]
    for vertex, successors in enumerate(edges):
        made[groups[vertex]].update(groups[other] for other in successors)
    for number, successors in enumerate(made):
        successors.discard(number)
    return made


def components(edges: Edges) -> list[int]:
    """Number of the strongly connected component of each vertex; contracting these leaves no cycle.

    Without recursion: chains of a model are longer than Python's stack.

    Source: R. E. Tarjan, "Depth-first search and linear graph algorithms", SIAM J. Comput. 1 (1972).
    """
    n = len(edges)
    component, low, seen = [-1] * n, [0] * n, [-1] * n
    clock, n_components = 0, 0
    open_: list[int] = []
    for root in range(n):
        if seen[root] >= 0:
            continue
        path = [(root, iter(edges[root]))]
        seen[root] = low[root] = clock
        clock += 1
        open_.append(root)
        while path:
            vertex, left = path[-1]
            for other in left:
                if seen[other] < 0:
                    seen[other] = low[other] = clock
                    clock += 1
                    open_.append(other)
                    path.append((other, iter(edges[other])))
                    break
                if component[other] < 0:
                    low[vertex] = min(low[vertex], seen[other])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[vertex])
                if low[vertex] == seen[vertex]:
                    while component[vertex] < 0:
                        component[open_.pop()] = n_components
                    n_components += 1
    return component


def ordered(ranks: Sequence[int], edges: Edges) -> list[int]:
    """Vertices in topological order; of those that may come next, the one of the lowest rank.

    Source: A. B. Kahn, "Topological sorting of large networks", Comm. ACM 5 (1962).

    Args:
        ranks: Of each vertex.
        edges: Between the vertices, without cycles.
    """
    n_before = [0] * len(ranks)
    for successors in edges:
        for other in successors:
            n_before[other] += 1
    ready = [(ranks[vertex], vertex) for vertex, n in enumerate(n_before) if not n]
    heapq.heapify(ready)
    found = []
    while ready:
        _, vertex = heapq.heappop(ready)
        found.append(vertex)
        for other in edges[vertex]:
            n_before[other] -= 1
            if not n_before[other]:
                heapq.heappush(ready, (ranks[other], other))
    return found
