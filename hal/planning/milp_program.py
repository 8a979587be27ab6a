"""Throughput as a mixed-integer linear program, for HiGHS."""

from __future__ import annotations

from typing import NamedTuple

import highspy
import numpy as np
import numpy.typing as npt

from hal.planning.highs import Highs
from hal.planning.pipeline_arrays import Pipeline
from hal.planning.pipeline_segments import Tolls
from hal.planning.problem import Floats, Ints, Small

#: What the largest load of the best plan becomes for HiGHS, whose tolerances are absolute, 1e-6.
_SIZE = 100.0


class Program(NamedTuple):
    """A program, rows compressed.

    Variables: x[u, b] whether block u is on target b, at u * t + b; then one each for the tensors that enter
    and leave targets; the last is the largest load.

    Attributes:
        cost: float64[columns].
        upper: float64[columns].
        n_integers: The first columns, which are 0 or 1.
        starts: int32[rows + 1].
        columns: int32[entries].
        values: float64[entries].
        low: float64[rows].
        high: float64[rows].
    """

    cost: Floats
    upper: Floats
    n_integers: int
    starts: Small
    columns: Small
    values: Floats
    low: Floats
    high: Floats


def scale_of(p: Pipeline, objective: float) -> float:
    """What loads are divided by, so that the objective, or a guess at it, becomes :data:`_SIZE`."""
    if not (np.isfinite(objective) and objective > 0):
        mean = np.where(np.isfinite(p.time), p.time, 0.0).mean(axis=1)
        objective = float(mean.sum() / p.time.shape[1]) or 1.0
    return objective / _SIZE


def scaled(p: Pipeline, c: Tolls, scale: float) -> tuple[Pipeline, Tolls]:
    """A pipeline and its costs with all loads divided by ``scale``."""
    return p._replace(time=p.time / scale, call=p.call / scale), c._replace(
        enter=c.enter / scale,
        leave=c.leave / scale,
        enter_port=c.enter_port / scale,
        leave_port=c.leave_port / scale,
    )


def solver_of(program: Program, seconds: float, seed: int) -> highspy.Highs:
    """HiGHS, loaded."""
    lp = highspy.HighsLp()
    n = len(program.cost)
    lp.num_col_, lp.num_row_ = n, len(program.low)
    lp.col_cost_ = program.cost
    lp.col_lower_ = np.zeros(n)
    lp.col_upper_ = program.upper
    lp.row_lower_, lp.row_upper_ = program.low, program.high
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = program.starts
    lp.a_matrix_.index_ = program.columns
    lp.a_matrix_.value_ = program.values
    kind = [highspy.HighsVarType.kInteger] * program.n_integers
    lp.integrality_ = kind + [highspy.HighsVarType.kContinuous] * (n - program.n_integers)
    solver = Highs()
    solver.setOptionValue("time_limit", max(seconds, 0.01))
    solver.setOptionValue("random_seed", seed % (1 << 31))
    solver.setOptionValue("threads", 1)
    for name in ("mip_rel_gap", "mip_abs_gap"):
        solver.setOptionValue(name, 1e-9)
    solver.passModel(lp)
    return solver


def give_start(solver: highspy.Highs, p: Pipeline, target: Small) -> None:
    """Start from a plan; HiGHS finds the other variables."""
    n, t = p.time.shape
    chosen = np.zeros((n, t))
    chosen[np.arange(n), target] = 1.0
    solver.setSolution(n * t, np.arange(n * t, dtype=np.int32), chosen.reshape(-1))


def program_of(
    p: Pipeline,
    c: Tolls,
    may: npt.NDArray[np.bool_],
    max_error: float,
    ceiling: Floats | None = None,
    even: float = 0.0,
) -> Program:
    """The program of a pipeline.

    Args:
        p: The pipeline.
        c: Costs, each target a class of its own.
        may: bool[n, t]: targets of each block that are left to choose from.
        max_error: Highest sum of errors.
        ceiling: float64[s]: highest load of each silicon and its ports, beside the largest load that is made
            small; not a number where that alone counts. By default it counts everywhere.
        even: What a unit of load anywhere costs, beside the largest load.
    """
    n, t = p.time.shape
    v, s = len(p.owner), len(p.slots)
    rows: list[Ints] = []
    cols: list[Ints] = []
    vals: list[Floats] = []
    low: list[Floats] = []
    high: list[Floats] = []
    n_rows = 0

    def put(row: npt.ArrayLike, col: npt.ArrayLike, value: npt.ArrayLike) -> None:
        at, columns, numbers = np.broadcast_arrays(row, col, np.asarray(value, np.float64))
        rows.append(at.reshape(-1).astype(np.int64))
        cols.append(columns.reshape(-1).astype(np.int64))
        vals.append(numbers.reshape(-1))

    def close(count: int, least: float, most: npt.ArrayLike) -> int:
        nonlocal n_rows
        low.append(np.full(count, least))
        high.append(np.broadcast_to(np.asarray(most, np.float64), (count,)).copy())
        n_rows += count
        return n_rows

    x = np.arange(n * t).reshape(n, t)
    put(np.arange(n)[:, None], x, 1.0)
    at = close(n, 1.0, 1.0)
    reads = np.repeat(np.arange(v), np.diff(p.readers_at))
    other = p.owner[reads] != p.readers
    reads, reader, times = reads[other], p.readers[other], p.times[other]
    owner = p.owner[reads]
    real = owner >= 0
    # One variable for each read, or for each tensor, and target.
    key, share = (np.arange(len(reads)), times) if p.per_read else (reads, np.ones(len(reads)))
    many, first = np.unique(key, return_index=True)
    tensor, factor = reads[first], share[first].astype(np.float64)
    slot = np.searchsorted(many, key)
    enters = n * t + np.arange(len(many) * t).reshape(len(many), t)
    width = n * t + enters.size
    row = at + np.arange(len(reads) * t).reshape(-1, t)
    put(row, enters[slot], 1.0)
    put(row, x[reader], -1.0)
    put(row[real], x[owner[real]], 1.0)
    at = close(row.size, 0.0, np.inf)
    made = np.unique(reads[real & ~p.is_output[reads]])
    leaves = width + np.arange(len(made) * t).reshape(len(made), t)
    width += leaves.size
    inner = real & ~p.is_output[reads]
    row = at + np.arange(int(inner.sum()) * t).reshape(-1, t)
    put(row, leaves[np.searchsorted(made, reads[inner])], 1.0)
    put(row, x[owner[inner]], -1.0)
    put(row, x[reader[inner]], 1.0)
    at = close(row.size, 0.0, np.inf)
    # Outputs leave in any case.
    wanted = np.flatnonzero(p.is_output & (p.owner >= 0))
    base = np.where(may, p.time, 0.0)
    np.add.at(base, p.owner[wanted], c.leave[wanted])
    calls = np.flatnonzero(p.call > 0)
    used = width + np.arange(len(calls))
    width += len(calls)
    row = at + np.arange(n * len(calls)).reshape(n, -1)
    put(row, used[None, :], 1.0)
    put(row, x[:, calls], -1.0)
    at = close(row.size, 0.0, np.inf)
    largest = width
    silicon = at + p.silicon.astype(np.int64)
    put(np.broadcast_to(silicon, (n, t)), x, base)
    put(np.broadcast_to(silicon, enters.shape), enters, c.enter[tensor] * factor[:, None])
    put(np.broadcast_to(silicon, leaves.shape), leaves, c.leave[made])
    put(silicon[calls], used, p.call[calls])
    is_free = np.isnan(ceiling) if ceiling is not None else np.ones(s, bool)
    roof = np.zeros(s) if ceiling is None else np.where(is_free, 0.0, ceiling)
    put(at + np.arange(s), largest, -is_free.astype(np.float64))
    at = close(s, -np.inf, roof)
    if c.enter_port.any():
        port = at + p.silicon.astype(np.int64)
        put(np.broadcast_to(port, enters.shape), enters, c.enter_port[tensor] * factor[:, None])
        put(at + np.arange(s), largest, -is_free.astype(np.float64))
        at = close(s, -np.inf, roof)
    if c.leave_port.any():
        port = at + p.silicon.astype(np.int64)
        put(np.broadcast_to(port, leaves.shape), leaves, c.leave_port[made])
        put(at + np.arange(s), largest, -is_free.astype(np.float64))
        at = close(s, -np.inf, roof)
    limited = np.flatnonzero(np.isfinite(p.capacity))
    for m in limited:
        of_it = np.flatnonzero(p.pool == m)
        put(at, x[:, of_it], p.weight[:, of_it] / max(p.capacity[m], 1.0))
        at = close(1, -np.inf, 1.0 if p.capacity[m] else 0.0)
    if np.isfinite(max_error):
        put(at, x, p.error)
        at = close(1, -np.inf, max_error)
    all_rows, all_cols, all_vals = np.concatenate(rows), np.concatenate(cols), np.concatenate(vals)
    kept = all_vals != 0
    all_rows, all_cols, all_vals = all_rows[kept], all_cols[kept], all_vals[kept]
    order = np.argsort(all_rows, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(all_rows, minlength=at))])
    upper = np.ones(width + 1)
    upper[: n * t] = may.reshape(-1)
    upper[largest] = np.inf
    cost = np.zeros(width + 1)
    cost[largest] = 1.0
    cost[: n * t] = even * base.reshape(-1)
    cost[enters] = even * c.enter[tensor] * factor[:, None]
    cost[leaves] = even * c.leave[made]
    return Program(
        cost,
        upper,
        n * t,
        starts.astype(np.int32),
        all_cols[order].astype(np.int32),
        all_vals[order],
        np.concatenate(low),
        np.concatenate(high),
    )
