"""How much later each partition of a line could end: the longest paths behind all of them, backwards."""

from __future__ import annotations

import numpy as np

from hal.planning.compiled import compiled
from hal.planning.evaluate import sort
from hal.planning.flat import CHARGE_EDGE, CHARGE_TARGET, Flat
from hal.planning.timeline import Line, carried


@compiled
def settle(f: Flat, plan: Line, restart: int, stop: int) -> None:
    """Bring ``late``, ``back`` and ``path`` of a line up to date.

    The recursion of :func:`~hal.planning.timeline.timed` runs backwards from where the line is as it was, and
    ends, before the first place that changed, where all paths are as they were. Paths through a silicon with
    several slots are left out, and so is waiting for a tensor that another partition pays for: the paths that
    are left make ``late`` a lower bound there, and exact elsewhere.

    Args:
        f: The problem.
        plan: The line, evaluated; changed.
        restart: The first place that changed.
        stop: Nothing has changed from here on.
    """
    n, n_tensors, n_silicons = len(plan.place), len(f.producer), len(f.slots)
    by_target = f.charge == CHARGE_TARGET
    receive_at = n_silicons
    link_at = 2 * n_silicons
    silicon_at = plan.back.shape[1] - n_silicons
    state = plan.back[stop].copy()
    # The first place that makes something whose path has changed.
    near = n
    hi = stop
    while hi > 0:
        lo = int(plan.head[plan.unit_at[hi - 1]])
        b = plan.target[plan.unit_at[lo]]
        s = f.silicon[b]
        late = state[silicon_at + s] if f.slots[s] == 1 else 0.0
        n_coming = 0
        for at in range(lo, hi):
            unit = plan.unit_at[at]
            for at_made in range(f.made_at[unit], f.made_at[unit + 1]):
                x = f.made[at_made]
                for at_path in range(f.readers_at[x], f.readers_at[x + 1]):
                    if plan.place[f.readers[at_path]] >= hi:
                        late = max(late, plan.path[at_path])
            for at_read in range(f.reads_at[unit], f.reads_at[unit + 1]):
                x = f.reads[at_read]
                maker = f.producer[x]
                plan.fresh[x] = 0.0
                if maker >= 0 and plan.place[maker] < lo:
                    plan.coming[n_coming] = (np.int64(plan.head[maker]) + 1) * n_tensors + x
                    n_coming += 1
        plan.late[lo] = late
        start = late + plan.taken[lo]
        if f.slots[s] == 1:
            state[silicon_at + s] = start
        sort(plan.coming[:n_coming])
        for number in range(n_coming - 1, -1, -1):
            if f.charge != CHARGE_EDGE and number and plan.coming[number - 1] == plan.coming[number]:
                continue
            x = plan.coming[number] % n_tensors
            a = plan.target[f.producer[x]]
            c = f.silicon[a]
            long = f.transfer[x, a, b]
            path = start
            if c != s and f.overlap and long > 0:
                if by_target and plan.arrived_for[x, b] != lo:
                    continue
                path = carried(f, state, receive_at, link_at, a, b, path, long)
            plan.fresh[x] = max(plan.fresh[x], path)
        for at in range(lo, hi):
            unit = plan.unit_at[at]
            for at_read in range(f.reads_at[unit], f.reads_at[unit + 1]):
                x = f.reads[at_read]
                at_path = plan.read_path[at_read]
                if plan.path[at_path] != plan.fresh[x]:
                    plan.path[at_path] = plan.fresh[x]
                    if f.producer[x] >= 0:
                        near = min(near, plan.place[f.producer[x]])
        is_same = lo < restart and near >= lo
        for number in range(len(state)):
            if plan.back[lo, number] != state[number]:
                is_same = False
                plan.back[lo, number] = state[number]
        if is_same:
            return
        hi = lo
