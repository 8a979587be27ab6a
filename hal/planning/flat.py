"""A problem as flat arrays that compiled code can walk: who reads what, and who made it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hal.planning.problem import Floats, Ints, Problem, Small

CHARGE_EDGE, CHARGE_PARTITION, CHARGE_TARGET = 0, 1, 2
_CHARGES = {"edge": CHARGE_EDGE, "partition": CHARGE_PARTITION, "target": CHARGE_TARGET}


class Flat(NamedTuple):
    """Fields of :class:`~hal.planning.problem.Problem`, and its tensors by unit (compressed sparse rows).

    Attributes:
        reads_at: int[n + 1]; tensors that unit u reads are ``reads[reads_at[u]:reads_at[u + 1]]``, those of
            the units that come first in the topological order first.
        made_at: int[n + 1]; tensors that unit u makes are ``made[made_at[u]:made_at[u + 1]]``.
        readers_at: int[v + 1]; units that read tensor x are ``readers[readers_at[x]:readers_at[x + 1]]``.
        order: int[n]: units in topological order.
    """

    time: Floats
    silicon: Small
    producer: Small
    is_output: npt.NDArray[np.bool_]
    transfer: Floats
    send: Floats
    receive: Floats
    call: Floats
    energy: Floats
    power: Floats
    slots: Small
    link: Small
    reads_at: Small
    reads: Small
    made_at: Small
    made: Small
    readers_at: Small
    readers: Small
    order: Small
    charge: int
    by_unit: bool
    overlap: bool
    send_port: bool
    receive_port: bool


def flat(problem: Problem) -> Flat:
    """The problem's flat form, made once."""
    found = problem.__dict__.get("_flat")
    if found is None:
        found = problem.__dict__["_flat"] = _flat(problem)
    assert isinstance(found, Flat)
    return found


def _flat(problem: Problem) -> Flat:
    n, v = problem.n_units, problem.n_tensors
    position = np.empty(n, np.int64)
    position[problem.order] = np.arange(n)
    made_by = problem.producer[problem.read_tensor]
    rank = np.where(made_by < 0, -1, position[made_by])
    by_unit = np.lexsort((problem.read_tensor, rank, problem.read_unit))
    by_tensor = np.lexsort((problem.read_unit, problem.read_tensor))
    inner = np.flatnonzero(problem.producer >= 0)
    made = inner[np.argsort(problem.producer[inner], kind="stable")]
    return Flat(
        time=problem.time,
        silicon=problem.silicon.astype(np.int32),
        producer=problem.producer.astype(np.int32),
        is_output=problem.is_output,
        transfer=problem.transfer,
        send=problem.send,
        receive=problem.receive,
        call=problem.call,
        energy=problem.energy,
        power=problem.power,
        slots=problem.slots.astype(np.int32),
        link=problem.link.astype(np.int32),
        reads_at=_starts(problem.read_unit, n),
        reads=problem.read_tensor[by_unit].astype(np.int32),
        made_at=_starts(problem.producer[inner], n),
        made=made.astype(np.int32),
        readers_at=_starts(problem.read_tensor, v),
        readers=problem.read_unit[by_tensor].astype(np.int32),
        order=problem.order.astype(np.int32),
        charge=_CHARGES[problem.charge],
        by_unit=problem.start == "unit",
        overlap=problem.overlap,
        send_port=problem.send_port,
        receive_port=problem.receive_port,
    )


def _starts(keys: Ints, count: int) -> Small:
    return np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=count))]).astype(np.int32)
