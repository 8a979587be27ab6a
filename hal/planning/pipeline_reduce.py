"""Blocks that cost nothing and that some best pipeline puts with a neighbour: exact reductions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hal.planning.contraction import Joined
from hal.planning.pipeline_arrays import Pipeline
from hal.planning.problem import Ints, Problem

#: Blocks beyond which nothing is reduced.
_MOST = 20_000


def may_reduce(problem: Problem) -> bool:
    """Whether the reductions hold: memory and errors cannot bind, and units do not start alone."""
    if problem.start == "unit" or problem.n_units > _MOST:
        return False
    bytes_of_all = problem.tensor_bytes.sum() + problem.workspace_bytes.max()
    for pool in np.flatnonzero(np.isfinite(problem.capacity)):
        weights = problem.weight_bytes[:, problem.pool == pool].max(axis=1).sum()
        if weights + bytes_of_all > problem.capacity[pool]:
            return False
    return bool(np.isinf(problem.max_error))


def reductions(p: Pipeline) -> Ints | None:
    """int64[n]: the block that each block joins, or itself; None where nothing can be joined.

    A block that takes no time anywhere joins

    * the one block that reads all it makes, if it reads nothing;
    * the one block that makes all it reads, if it makes nothing;
    * the maker of the one tensor it reads, if nobody else reads that, and the one tensor it makes costs no
      more wherever it goes;
    * the reader of the one tensor it makes, if the one tensor it reads costs no more than that.

    In each case the plan that puts it there costs no target more, and convex sets stay convex. The last two
    need handoffs that only sender and receiver pay, once.
    """
    n = len(p.time)
    simple = not p.transfer.any()
    joined = Joined(n)
    free = np.where(np.isfinite(p.time), p.time, 0.0).max(axis=1) == 0
    touched = np.zeros(n, bool)
    allowed = np.isfinite(p.time)
    found = False
    for u in np.flatnonzero(free).tolist():
        reads = [x for x in p.reads[p.reads_at[u] : p.reads_at[u + 1]].tolist() if p.owner[x] != u]
        owned = p.owned[p.owned_at[u] : p.owned_at[u + 1]].tolist()
        if any(p.is_output[x] for x in owned):
            continue
        readers = {w for x in owned for w in p.readers[p.readers_at[x] : p.readers_at[x + 1]].tolist()} - {u}
        makers = {int(p.owner[x]) for x in reads}
        other = -1
        if not reads and len(readers) == 1:
            other = readers.pop()
        elif not readers and len(makers) == 1:
            other = makers.pop()
        elif simple and len(reads) == 1 and len(owned) == 1:
            other = _along(p, u, reads[0], owned[0], readers)
        if other < 0 or touched[u] or touched[other] or (allowed[other] & ~allowed[u]).any():
            continue
        touched[u] = touched[other] = True
        joined.join([u, other])
        found = True
    return np.array([joined.find(u) for u in range(n)]) if found else None


def _along(p: Pipeline, u: int, x: int, y: int, readers: set[int]) -> int:
    """The neighbour that block u joins, which reads x and makes y; -1 where neither will do."""
    maker = int(p.owner[x])
    if maker < 0:
        return -1
    alone = p.readers_at[x + 1] - p.readers_at[x] == 1
    if p.per_read and len(readers) > 1:
        return -1
    once = p.readers_at[y + 1] - p.readers_at[y] == 1
    if alone and not p.is_output[x] and _at_most(p, y, x) and (once or not p.per_read):
        return maker
    if len(readers) == 1 and _at_most(p, x, y) and not p.per_read:
        return next(iter(readers))
    return -1


def _at_most(p: Pipeline, x: int, y: int) -> bool:
    """Whether tensor x costs no more than y to send and to receive anywhere."""
    cheaper: npt.NDArray[np.bool_] = (p.send[x] <= p.send[y]) & (p.receive[x] <= p.receive[y])
    return bool(cheaper.all())
