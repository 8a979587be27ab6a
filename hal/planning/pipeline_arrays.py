"""The arrays of a pipeline, for compiled code."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hal.planning.problem import Floats, Small


class Pipeline(NamedTuple):
    """Blocks and their tensors, for compiled code.

    Times are divided by the slots of their silicon; a silicon of 0 slots takes no time.

    Attributes:
        time: float64[n, t]; infinite where a target cannot compute the block.
        weight: float64[n, t]: bytes.
        error: float64[n, t].
        call: float64[t]: for each target that is used.
        silicon: int32[t].
        pool: int32[t].
        slots: float64[s]: what handoffs are divided by; infinite for 0.
        capacity: float64[m].
        link: int32[t, t].
        owner: int32[v]: block that makes each tensor, or OUTSIDE.
        is_output: bool[v].
        send: float64[v, t].
        receive: float64[v, t].
        transfer: float64[v, t, t].
        readers_at: int32[v + 1], readers: int32, times: int32: blocks that read each tensor, and with how
            many units.
        reads_at: int32[n + 1], reads: int32, reads_times: int32: tensors that each block reads.
        owned_at: int32[n + 1], owned: int32: tensors that each block makes.
        per_read: Whether a tensor is charged for each reading unit.
        within: Whether handoffs within a target are charged.
        overlap: As in the problem.
        send_port: As in the problem.
        receive_port: As in the problem.
    """

    time: Floats
    weight: Floats
    error: Floats
    call: Floats
    silicon: Small
    pool: Small
    slots: Floats
    capacity: Floats
    link: Small
    owner: Small
    is_output: npt.NDArray[np.bool_]
    send: Floats
    receive: Floats
    transfer: Floats
    readers_at: Small
    readers: Small
    times: Small
    reads_at: Small
    reads: Small
    reads_times: Small
    owned_at: Small
    owned: Small
    per_read: bool
    within: bool
    overlap: bool
    send_port: bool
    receive_port: bool
