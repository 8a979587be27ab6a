"""What the simulator has to carry out: calls of partitions and handoffs, what they take and wait for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hal.planning.problem import OUTSIDE, Assignment, Floats, Ints, Problem


class Tasks(NamedTuple):
    """Tasks 0 to n_partitions - 1 are the calls of the partitions; the handoffs that overlap follow.

    Attributes:
        n_partitions: Calls.
        target: int[partitions].
        takes: float64[tasks].
        waits_for: Number of tasks that each waits for.
        followers: Tasks that wait for each.
        handoff_tensor: int[handoffs]. Handoffs are in the order of (reading partition, making partition,
            tensor), which is their order on ports and links.
        handoff_out_of: int[handoffs]: partition that made it.
        handoff_into: int[handoffs]: partition that pays for it.
        handoff_from: int[handoffs]: target.
        handoff_to: int[handoffs]: target.
        within_tensor: int[k]: tensors handed over to another target within the call of a partition.
        within_from: int[k]: target.
        within_into: int[k]: that partition.
        energy: Of the whole request.
    """

    n_partitions: int
    target: Ints
    takes: Floats
    waits_for: list[int]
    followers: list[list[int]]
    handoff_tensor: Ints
    handoff_out_of: Ints
    handoff_into: Ints
    handoff_from: Ints
    handoff_to: Ints
    within_tensor: Ints
    within_from: Ints
    within_into: Ints
    energy: float


class _Reads(NamedTuple):
    """Reads across partitions, in the order of (reading partition, making partition, tensor).

    Attributes:
        tensor: int[k].
        into: int[k]: reading partition.
        out_of: int[k]: making partition, or OUTSIDE.
        reader: int[k]: target that reads.
        maker: int[k]: target that made it, or OUTSIDE.
        payer: int[k]: the read that is charged in place of each, which is itself for those that are charged.
    """

    tensor: Ints
    into: Ints
    out_of: Ints
    reader: Ints
    maker: Ints
    payer: Ints


def tasks_of(problem: Problem, assignment: Assignment) -> Tasks:
    """The tasks of an assignment that breaks no order and has one target to a partition."""
    n_partitions = assignment.n_partitions
    target = np.zeros(n_partitions, np.int64)
    target[assignment.partition] = assignment.target
    reads = _reads(problem, assignment)
    inner = reads.maker != OUTSIDE
    beside = np.zeros(len(inner), np.bool_)
    if problem.overlap:
        beside[inner] = problem.silicon[reads.maker[inner]] != problem.silicon[reads.reader[inner]]
    charged = reads.payer == np.arange(len(inner))
    transfer = np.zeros(len(inner))
    transfer[inner] = problem.transfer[reads.tensor[inner], reads.maker[inner], reads.reader[inner]]
    receive = problem.receive[reads.tensor, reads.reader] * (reads.maker != reads.reader)

    units = np.arange(problem.n_units)
    computing = _sums(assignment.partition, problem.time[units, assignment.target], target)
    extra = problem.call[target].copy()
    extra += _sums(reads.into[charged], (receive + np.where(beside, 0.0, transfer))[charged], target)
    extra += _sends(problem, assignment, target)
    handoffs = np.flatnonzero(charged & beside)
    handing = _sums(reads.into[handoffs], transfer[handoffs], target)

    # A read waits for the handoff that is charged for it, or else for the partition that makes the tensor.
    task_of = np.full(len(inner), -1)
    task_of[handoffs] = n_partitions + np.arange(len(handoffs))
    awaited = np.where(beside, task_of[reads.payer], reads.out_of)
    waits = set(zip(awaited[inner].tolist(), reads.into[inner].tolist(), strict=True))
    waits |= set(zip(reads.out_of[handoffs].tolist(), task_of[handoffs].tolist(), strict=True))
    n_tasks = n_partitions + len(handoffs)
    waits_for = [0] * n_tasks
    followers: list[list[int]] = [[] for _ in range(n_tasks)]
    for before, after in sorted(waits):
        waits_for[after] += 1
        followers[before].append(after)
    within = np.flatnonzero(charged & inner & ~beside & (reads.maker != reads.reader))
    spent = float(problem.energy[units, assignment.target].sum())
    return Tasks(
        n_partitions=n_partitions,
        target=target,
        takes=np.concatenate([computing + extra, transfer[handoffs]]),
        waits_for=waits_for,
        followers=followers,
        handoff_tensor=reads.tensor[handoffs],
        handoff_out_of=reads.out_of[handoffs],
        handoff_into=reads.into[handoffs],
        handoff_from=reads.maker[handoffs],
        handoff_to=reads.reader[handoffs],
        within_tensor=reads.tensor[within],
        within_from=reads.maker[within],
        within_into=reads.into[within],
        energy=spent + float((problem.power[target] * (extra + handing)).sum()),
    )


def _reads(problem: Problem, assignment: Assignment) -> _Reads:
    made_by = problem.producer[problem.read_tensor]
    is_outside = made_by == OUTSIDE
    into = assignment.partition[problem.read_unit].astype(np.int64)
    out_of = np.where(is_outside, OUTSIDE, assignment.partition[made_by])
    rows = np.flatnonzero(into != out_of)
    rows = rows[np.lexsort((problem.read_tensor[rows], out_of[rows], into[rows]))]
    tensor, into, out_of = problem.read_tensor[rows], into[rows], out_of[rows]
    reader = assignment.target[problem.read_unit[rows]].astype(np.int64)
    maker = np.where(is_outside[rows], OUTSIDE, assignment.target[made_by[rows]])
    if problem.charge == "edge":
        payer = np.arange(len(rows))
    else:
        key = reader if problem.charge == "target" else into
        # The rows are in the order of reading partitions, so that the first of each kind pays.
        kinds = tensor * (problem.n_units + problem.n_targets) + key
        _, first, same = np.unique(kinds, return_index=True, return_inverse=True)
        payer = first[same]
    return _Reads(tensor, into, out_of, reader, maker, payer)


def _sends(problem: Problem, assignment: Assignment, target: Ints) -> Floats:
    """float64[partitions]: time to send what other targets read, and outputs."""
    made_by = problem.producer
    leaves = problem.is_output & (made_by != OUTSIDE)
    maker = made_by[problem.read_tensor]
    elsewhere = assignment.target[maker] != assignment.target[problem.read_unit]
    leaves[problem.read_tensor[(maker != OUTSIDE) & elsewhere]] = True
    tensors = np.flatnonzero(leaves)
    units = made_by[tensors]
    return _sums(assignment.partition[units], problem.send[tensors, assignment.target[units]], target)


def _sums(keys: npt.NDArray[np.integer], values: Floats, like: Ints) -> Floats:
    return np.bincount(keys, weights=values, minlength=len(like)).astype(np.float64)
