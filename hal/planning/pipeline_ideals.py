"""Contiguous pipelines, exactly, over the ideals of the graph: sets closed under what feeds them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.partitions import Dag, partitioned
from hal.planning.pipeline_model import Pipeline, blocks, is_contiguous, targets_of
from hal.planning.pipeline_order import applies as applies_in_order
from hal.planning.pipeline_order import spread
from hal.planning.pipeline_segments import Tolls, classes, tolls
from hal.planning.problem import Floats, Ints, Problem, Small
from hal.planning.search import Best, Budget

#: Blocks in one word of a set.
_WORD = 60
#: Sets looked at between two looks at the clock.
_VISITS = 2_000_000
#: Ideals that are kept at most, and bytes for them.
_MOST_IDEALS = 1_000_000
_MOST_BYTES = 400_000_000
#: Share by which values must fall to count as better: rounding of sums.
_ROUNDING = 5e-10


def applies(problem: Problem) -> bool:
    """Throughput where each target may have one partition, with not too many kinds of targets."""
    return is_contiguous(problem) and applies_in_order(problem)


def pipeline_ideals(problem: Problem, best: Best, budget: Budget, seed: int = 0) -> None:
    """Cut the graph into convex sets, one per target, over all orders at once.

    Only ideals are kept from which the targets left can still carry the blocks left below the best plan's
    load. When it ends it has proven the optimum, of the problem as it is where targets have silicon and pools
    of their own, handoffs cost the same whoever is at the other end and errors do not bind; otherwise of a
    relaxation, which bounds it.

    Source: the dynamic program of Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph
    Operators", NeurIPS 2020, section 4.1 (DP); pruning by the dual of the load program.
    """
    found = blocks(problem, closed=True)
    kinds = classes(problem)
    costs = tolls(found.pipeline, kinds, least=True)
    worth, share, _ = load_dual(costs.time, costs.copies.astype(np.float64))
    n = len(costs.time)
    n_states = int(np.prod(costs.copies + 1))
    words = -(-n // _WORD)
    most = int(min(_MOST_IDEALS, _MOST_BYTES // (8 * words + 13 * n_states + 32)))
    limit = best.objective * (1 - _ROUNDING) if np.isfinite(best.objective) else np.inf
    search = _search(n, words, n_states, most, seed)
    while not budget.is_spent:
        done, limit = expand(
            found.pipeline, found.graph, costs, worth, share, search, limit, problem.max_partitions, _VISITS
        )
        if done < 0:
            return
        if done:
            break
    else:
        return
    if search.full[0] >= 0:
        split = _trace(search, costs, n)
        target = targets_of(found, spread(kinds, split))
        best.offer(partitioned(problem, target), "dynamic program over ideals")
    if np.isfinite(limit):
        best.prove(limit, "dynamic program over ideals")


def load_dual(time: Floats, count: Floats) -> tuple[Floats, Floats, float]:
    """Prices of the classes' time, from the dual of spreading blocks over targets without handoffs.

    Args:
        time: float64[n, k]; infinite where a class cannot compute a block.
        count: float64[k]: targets of each class.

    Returns:
        float64[n]: least priced time of each block; float64[k]: prices, whose sum over all targets is 1;
        and the bound on the largest load, the sum of the former.

    Source: J. K. Lenstra, D. B. Shmoys and E. Tardos, "Approximation algorithms for scheduling unrelated
    parallel machines", 1990 (the program); multiplicative weights for its dual.
    """
    prices = _mean_speed(time, count)
    best, bound = prices, -1.0
    for number in range(300):
        priced = time * prices
        cheapest = np.argmin(priced, axis=1)
        value = float(priced[np.arange(len(time)), cheapest].sum())
        if value > bound:
            best, bound = prices, value
        load = np.bincount(cheapest, time[np.arange(len(time)), cheapest], minlength=len(count)) / count
        step = 0.5 / (1 + number / 4)
        prices = prices * np.exp(step * np.clip(load / max(load.max(), 1e-300) - 0.5, -1, 1))
        prices = prices / float(prices @ count)
    return (time * best).min(axis=1), best, bound


def _mean_speed(time: Floats, count: Floats) -> Floats:
    mean = np.array([column[np.isfinite(column)].sum() for column in time.T])
    speed = 1.0 / np.maximum(mean, 1e-12 * max(mean.max(), 1e-300))
    return np.asarray(speed / float(speed @ count))


class Search(NamedTuple):
    """Ideals found so far, by number, and where the search stands.

    Attributes:
        bits: int64[ideals, words].
        value: float64[ideals, states]: least largest load by used targets.
        before: int32[ideals, states]: ideal before the last segment.
        by: int8[ideals, states]: class of the last segment.
        size: int32[ideals]: blocks.
        following: int32[ideals]: next ideal of the same size, -1 for none.
        bucket: int32[n + 1]: first ideal of each size.
        table: int32[slots]: hash table of ideals, -1 where empty.
        keys: int64[ideals].
        codes: int64[n]: random code of each block.
        known: int64[1]: ideals found.
        full: int64[2]: the ideal of all blocks, -1 while not found; size that is being looked at.
    """

    bits: Ints
    value: Floats
    before: Small
    by: np.ndarray
    size: Small
    following: Small
    bucket: Small
    table: Small
    keys: Ints
    codes: Ints
    known: Ints
    full: Ints


def _search(n: int, words: int, n_states: int, most: int, seed: int) -> Search:
    slots = 1 << int(np.ceil(np.log2(2 * most)))
    codes = np.random.default_rng(seed).integers(1, 1 << 62, n)
    made = Search(
        bits=np.zeros((most, words), np.int64),
        value=np.empty((most, n_states)),
        before=np.empty((most, n_states), np.int32),
        by=np.empty((most, n_states), np.int8),
        size=np.zeros(most, np.int32),
        following=np.empty(most, np.int32),
        bucket=np.full(n + 1, -1, np.int32),
        table=np.full(slots, -1, np.int32),
        keys=np.zeros(most, np.int64),
        codes=codes,
        known=np.array([1]),
        full=np.array([-1, 0]),
    )
    made.value[0] = np.inf
    made.value[0, 0] = 0.0
    made.following[0] = -1
    made.bucket[0] = 0
    made.table[0] = 0
    return made


def _trace(search: Search, c: Tolls, n: int) -> Small:
    """int32[2, n]: class and segment of each block."""
    strides = np.concatenate([[1], np.cumprod(c.copies + 1)])
    split = np.zeros((2, n), np.int32)
    at = int(search.full[0])
    state = int(search.value[at].argmin())
    held = _members(search.bits[at], n)
    steps = []
    while at > 0:
        k, earlier = int(search.by[at, state]), int(search.before[at, state])
        kept = _members(search.bits[earlier], n)
        steps.append((held & ~kept, k))
        at, state, held = earlier, state - int(strides[k]), kept
    for segment, (those, k) in enumerate(reversed(steps)):
        split[0, those], split[1, those] = k, segment
    return split


def _members(bits: Ints, n: int) -> np.ndarray:
    at = np.arange(n)
    return np.asarray((bits[at // _WORD] >> (at % _WORD)) & 1, bool)


@compiled
def _find(s: Search, key: int, bits: Ints, size: int) -> int:
    """Number of an ideal, put in where it is new; -1 where there is no room."""
    mask = len(s.table) - 1
    slot = key & mask
    while s.table[slot] >= 0:
        known = int(s.table[slot])
        if s.keys[known] == key:
            same = True
            for word in range(len(bits)):
                if s.bits[known, word] != bits[word]:
                    same = False
                    break
            if same:
                return known
        slot = (slot + 1) & mask
    if s.known[0] == len(s.keys):
        return -1
    new = int(s.known[0])
    s.known[0] += 1
    s.table[slot] = new
    s.keys[new] = key
    s.bits[new] = bits
    s.size[new] = size
    s.value[new] = np.inf
    s.following[new] = s.bucket[size]
    s.bucket[size] = new
    return new


@compiled
def expand(
    p: Pipeline,
    graph: Dag,
    c: Tolls,
    worth: Floats,
    share: Floats,
    s: Search,
    limit: float,
    most: int,
    visits: int,
) -> tuple[int, float]:
    """Take ideals from small to large and add every segment that may follow.

    Args:
        p: The pipeline.
        graph: Its blocks, without cycles.
        c: Costs by class.
        worth: float64[n]: see :func:`load_dual`.
        share: float64[k]: likewise.
        s: Changed in place.
        limit: Only values below it count.
        most: Highest number of segments; 0 for any.
        visits: Sets to look at before it returns, and the ideal at hand is finished.

    Returns:
        1 when it is done, 0 when it is not, -1 when there is no room for more ideals; and the new limit.
    """
    n, n_classes = c.time.shape
    strides = np.ones(n_classes + 1, np.int64)
    for k in range(n_classes):
        strides[k + 1] = strides[k] * (c.copies[k] + 1)
    n_states = strides[n_classes]
    digits, used = np.empty((n_states, n_classes), np.int64), np.zeros(n_states, np.int64)
    left_share = np.zeros(n_states)
    for state in range(n_states):
        for k in range(n_classes):
            digits[state, k] = state // strides[k] % (c.copies[k] + 1)
            used[state] += digits[state, k]
            left_share[state] += share[k] * (c.copies[k] - digits[state, k])
    total = np.zeros(len(p.owner), np.int32)
    for x in range(len(p.owner)):
        for at in range(p.readers_at[x], p.readers_at[x + 1]):
            total[x] += p.times[at]
    mark = np.zeros(n, np.int8)
    missing = np.zeros(n, np.int32)
    reads_in = np.zeros(len(p.owner), np.int32)
    candidates, chosen = np.empty(n + 1, np.int32), np.empty(n + 2, np.int32)
    index, end = np.zeros(n + 2, np.int32), np.zeros(n + 2, np.int32)
    # By depth: silicon, port in, port out, computing, bytes, and what can only grow on the silicon.
    loads = np.zeros((n + 2, 6, n_classes))
    rest, keys = np.zeros(n + 2), np.zeros(n + 2, np.int64)
    live = np.empty(n_states, np.int64)
    bits = np.zeros(s.bits.shape[1], np.int64)
    whole = worth.sum()
    seen = 0
    while s.full[1] <= n:
        source = s.bucket[s.full[1]]
        if source < 0:
            s.full[1] += 1
            continue
        if s.full[1] == n:
            return 1, limit
        if seen >= visits:
            return 0, limit
        s.bucket[s.full[1]] = s.following[source]
        mark[:] = 0
        bits[:] = s.bits[source]
        rest[0] = whole
        for u in range(n):
            missing[u] = graph.before_at[u + 1] - graph.before_at[u]
            if (bits[u // 60] >> (u % 60)) & 1:
                mark[u] = 1
                rest[0] -= worth[u]
        for u in range(n):
            if mark[u]:
                for at in range(graph.after_at[u], graph.after_at[u + 1]):
                    missing[graph.after[at]] -= 1
        n_live = 0
        for state in range(n_states):
            if (
                s.value[source, state] < limit
                and (most == 0 or used[state] < most)
                and rest[0] <= left_share[state] * limit * (1 + 1e-9)
            ):
                live[n_live] = state
                n_live += 1
        if n_live == 0:
            continue
        count = 0
        for u in range(n):
            if mark[u] == 0 and missing[u] == 0:
                candidates[count] = u
                count += 1
        reads_in[:] = 0
        loads[0] = 0.0
        loads[0, 0] = c.call
        loads[0, 3] = c.call
        loads[0, 5] = c.call
        keys[0] = s.keys[source]
        depth, index[0], end[0] = 0, 0, count
        size = s.full[1]
        while True:
            if index[depth] >= end[depth]:
                if depth == 0:
                    break
                u = chosen[depth]
                mark[u] = 0
                bits[u // 60] ^= np.int64(1) << (u % 60)
                for at in range(graph.after_at[u], graph.after_at[u + 1]):
                    missing[graph.after[at]] += 1
                for at in range(p.reads_at[u], p.reads_at[u + 1]):
                    reads_in[p.reads[at]] -= p.reads_times[at]
                depth -= 1
                continue
            u = candidates[index[depth]]
            index[depth] += 1
            now = loads[depth + 1]
            now[:] = loads[depth]
            for k in range(n_classes):
                now[0, k] += c.time[u, k]
                now[3, k] += c.time[u, k]
                now[4, k] += c.weight[u, k]
                now[5, k] += c.time[u, k]
            for at in range(p.reads_at[u], p.reads_at[u + 1]):
                x = p.reads[at]
                maker = p.owner[x]
                if maker == u:
                    continue
                before = reads_in[x]
                reads_in[x] += p.reads_times[at]
                if maker >= 0 and mark[maker] == 2:
                    if reads_in[x] == total[x]:
                        for k in range(n_classes):
                            if not p.is_output[x]:
                                now[0, k] -= c.leave[x, k]
                            now[2, k] -= c.leave_port[x, k]
                elif before == 0 or p.per_read:
                    factor = p.reads_times[at] if p.per_read else 1
                    for k in range(n_classes):
                        now[0, k] += factor * c.enter[x, k]
                        now[1, k] += factor * c.enter_port[x, k]
                        now[5, k] += factor * c.enter[x, k]
            seen += 1
            is_open = False
            for k in range(n_classes):
                if now[5, k] < limit and now[1, k] < limit and now[4, k] <= c.capacity[k]:
                    is_open = True
            if not is_open:
                for at in range(p.reads_at[u], p.reads_at[u + 1]):
                    reads_in[p.reads[at]] -= p.reads_times[at]
                continue
            for at in range(p.owned_at[u], p.owned_at[u + 1]):
                x = p.owned[at]
                for k in range(n_classes):
                    if total[x] > 0 or p.is_output[x]:
                        now[0, k] += c.leave[x, k]
                    if total[x] > 0:
                        now[2, k] += c.leave_port[x, k]
            mark[u] = 2
            bits[u // 60] ^= np.int64(1) << (u % 60)
            fill = end[depth]
            for at in range(graph.after_at[u], graph.after_at[u + 1]):
                w = graph.after[at]
                missing[w] -= 1
                if missing[w] == 0:
                    candidates[fill] = w
                    fill += 1
            depth += 1
            chosen[depth] = u
            index[depth], end[depth] = index[depth - 1], fill
            rest[depth] = rest[depth - 1] - worth[u]
            keys[depth] = keys[depth - 1] ^ s.codes[u]
            node = -1
            is_whole = size + depth == n
            for k in range(n_classes):
                load = max(now[0, k], now[1, k], now[2, k])
                if not (load < limit and now[4, k] <= c.capacity[k]):
                    continue
                for number in range(n_live):
                    state = live[number]
                    if digits[state, k] == c.copies[k] or s.value[source, state] >= limit:
                        continue
                    after = state + strides[k]
                    if not is_whole and rest[depth] > left_share[after] * limit * (1 + 1e-9):
                        continue
                    if node < 0:
                        node = _find(s, keys[depth], bits, size + depth)
                        if node < 0:
                            return -1, limit
                    value = max(s.value[source, state], load)
                    if value < s.value[node, after]:
                        s.value[node, after] = value
                        s.before[node, after] = source
                        s.by[node, after] = k
                        if is_whole:
                            limit = min(limit, value)
                            s.full[0] = node
    return 1, limit
