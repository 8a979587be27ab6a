"""Placements in a contest: compiled, judged and run in turn, each in a child process of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from hal import host, plugins, stats
from hal.backend import Device, Target
from hal.executor.backend import PLAN, Spot, plan_ref, plan_target
from hal.executor.executor import end_of
from hal.executor.partitions import Piece
from hal.profiling.discovery import Discovery
from hal.profiling.engine import CHILD_BYTES, WEIGHT_COPIES, Job
from hal.profiling.lane import Lane, interleave
from hal.records.facts import ModelFacts
from hal.records.plan import Finalist, Plan
from hal.records.profile import TargetProfile, Timing
from hal.records.targets import place_name
from hal.sampling import Policy
from hal.tensor import Array

#: A placement takes part in the contest where the best one is predicted to take at least this share of it.
#: Source: the goal of issue 4 for predictions: 15% off at worst, on both sides.
WORTH = 0.7


@dataclass(frozen=True)
class Candidate:
    """A placement that is to be measured.

    Attributes:
        name: ``only TARGET``, or the solver that found it.
        plan: As predicted.
        predicted_ns: Its latency; of a whole model on one target that was measured, what was measured.
        round: In which round it came up, from 0.
    """

    name: str
    plan: Plan
    predicted_ns: int
    round: int = 0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """For the executor."""
        return tuple(Piece(partition.target, partition.nodes) for partition in self.plan.partitions)

    @property
    def placement(self) -> str:
        """In words."""
        return self.plan.placement


@dataclass(frozen=True)
class Measured:
    """A candidate and what was learned of it.

    Attributes:
        candidate: The candidate.
        record: As of a target; its kernels are the partitions.
        failure: Why it is out; empty where it is not.
    """

    candidate: Candidate
    record: TargetProfile
    failure: str

    @property
    def timing(self) -> Timing | None:
        """End to end; None where it failed."""
        return None if self.failure else self.record.timing


@dataclass(frozen=True)
class Arena:
    """What all candidates have in common.

    Attributes:
        job: The model, its inputs, and how to measure.
        facts: Of the model.
        reference: Its right outputs; None where there are none.
        max_error: Highest relative L2 error; judged where it is above 0.
        objective: What counts.
    """

    job: Job
    facts: ModelFacts
    reference: Sequence[Array] | None
    max_error: float
    objective: str


def measure(arena: Arena, candidates: Sequence[Candidate], policy: Policy) -> list[Measured]:
    """Measure candidates, in turn as far as memory allows.

    Args:
        arena: What they have in common.
        candidates: Those that fit into memory together run in turn; only these can be compared by rounds.
        policy: Of warm-up and sampling.
    """
    spots = spots_of(arena.job.discovery)
    found = []
    for number, group in enumerate(_groups(candidates, arena.job.subject.graph.weight_bytes)):
        found += _measure(arena, group, policy, spots, number)
    return found


def spots_of(discovery: Discovery) -> dict[str, Spot]:
    """Every device that can be used, by ``DEVICE/BACKEND[-VARIANT]``."""
    return {
        place_name(f.device.id, f.backend, f.device.variant): Spot(
            ref=plugins.reference(f.backend), device=f.device
        )
        for f in discovery.found
        if not f.device.unavailable
    }


def best_of(measured: Sequence[Measured], objective: str) -> Measured | None:
    """The best of them: of those that cannot be told apart, the simplest.

    Fewer partitions go first, then the better value. A later one wins only where it is better by more than
    the noise: the 95% interval of the ratio of paired bursts excludes 1 (of unpaired ones where they did not
    run in turn); figures without rounds (energy, memory) must differ by :data:`NOISE`.

    Args:
        measured: At least one.
        objective: ``latency``, ``throughput``, ``energy`` or ``memory``.
    """
    standing = [(value, one) for one in measured if (value := value_of(one, objective)) is not None]
    standing.sort(key=lambda pair: (len(pair[1].candidate.plan.partitions), pair[0]))
    if not standing:
        return None
    winner, best = standing[0][1], standing[0][0]
    for value, one in standing[1:]:
        if value < best and _is_better(one, winner, objective, value / best):
            winner, best = one, value
    return winner


#: Relative difference below which two energies or memories are the same.
#: Source: the goal of issue 4, "beyond 2% noise".
NOISE = 0.02


def value_of(measured: Measured, objective: str) -> float | None:
    """The measured objective: ns, mJ or bytes; None where it failed or nobody tells.

    Where a device does not tell its energy, the predicted energy stands in, in proportion to the time.
    """
    timing, plan = measured.timing, measured.candidate.plan
    if timing is None:
        return None
    if objective in ("latency", "throughput"):
        return float(timing.median_ns)
    if objective == "memory":
        memory = measured.record.memory
        return None if memory is None else float(memory.model_bytes + (memory.device_bytes or 0))
    if measured.record.energy is not None:
        return measured.record.energy.per_run_mj
    predicted = plan.predicted
    if predicted.energy_mj is None:
        return None
    return predicted.energy_mj * timing.median_ns / max(predicted.latency_ns, 1)


def ratio_of(one: Measured, other: Measured) -> stats.RatioEstimate | None:
    """Time of one over the other's; None where either failed."""
    if one.timing is None or other.timing is None:
        return None
    ours, theirs = (
        [stats.median(burst) for burst in timing.bursts_ns] for timing in (one.timing, other.timing)
    )
    if one.timing.group != other.timing.group:
        return stats.independent_ratio(ours, theirs)
    n = min(len(ours), len(theirs))
    return stats.paired_ratio(ours[:n], theirs[:n])


def finalist_of(measured: Measured, chosen: Measured) -> Finalist:
    """For the record of the plan."""
    ratio = ratio_of(measured, chosen)
    return Finalist(
        name=measured.candidate.name,
        placement=measured.candidate.placement,
        n_partitions=len(measured.candidate.plan.partitions),
        predicted_ns=measured.candidate.predicted_ns,
        measured=measured.timing,
        ratio=None if ratio is None else ratio.ratio,
        errors=measured.record.errors,
        failure=measured.failure,
        round=measured.candidate.round,
    )


def _is_better(one: Measured, other: Measured, objective: str, ratio: float) -> bool:
    if objective not in ("latency", "throughput"):
        return ratio < 1 - NOISE
    estimate = ratio_of(one, other)
    return estimate is not None and estimate.high < 1


def _measure(
    arena: Arena, candidates: Sequence[Candidate], policy: Policy, spots: Mapping[str, Spot], group: int
) -> list[Measured]:
    job, progress = arena.job, arena.job.progress
    with ExitStack() as stack:
        lanes = []
        for number, candidate in enumerate(candidates):
            lane = _lane(arena, candidate, policy, spots, number, group)
            stack.callback(lane.close)
            lanes.append(lane)
        for n_done, (lane, candidate) in enumerate(zip(lanes, candidates, strict=True)):
            progress.stage(f"compiling {candidate.placement}")
            progress.advance(n_done, len(lanes))
            lane.start(job.subject)
            if arena.reference is not None:
                lane.judge(arena.reference, job.subject.graph)
        interleave(lanes, progress)
        for lane, candidate in zip(lanes, candidates, strict=True):
            if arena.objective == "memory":
                lane.read_memory()
            if arena.objective == "energy":
                lane.read_energy()
            if len(candidate.plan.partitions) > 1:
                lane.time_kernels(job.subject, arena.facts)
        return [
            Measured(candidate, record := lane.record(), _failure(record, arena.max_error))
            for lane, candidate in zip(lanes, candidates, strict=True)
        ]


def _lane(
    arena: Arena,
    candidate: Candidate,
    policy: Policy,
    spots: Mapping[str, Spot],
    number: int,
    group: int,
) -> Lane:
    job, pieces = arena.job, candidate.pieces
    targets = [Target.parse(piece.target) for piece in pieces]
    if len(pieces) == 1:
        ref = plugins.reference(targets[0].backend)
        return Lane(ref, job.discovery.device(targets[0]), targets[0], policy, job.deadlines, group=group)
    name = f"p{number}"
    devices = [job.discovery.device(target) for target in targets]
    silicons = {device.silicon for device in devices}
    n_requests = 1 + len(silicons) if arena.objective == "throughput" and len(silicons) > 1 else 1
    target = plan_target(name, pieces, n_requests)
    return Lane(
        plan_ref(spots, {name: pieces}), _stand_in(devices), target, policy, job.deadlines, group=group
    )


def _stand_in(devices: Sequence[Device]) -> Device:
    """The device whose readings are the plan's: the one that computes it all, else none."""
    return devices[0] if len({device.silicon for device in devices}) == 1 else PLAN


def _failure(record: TargetProfile, max_error: float) -> str:
    if record.status != "ok":
        return f"{record.status}: {record.reason}"
    if record.timing is None:
        return "it was not timed"
    error = record.relative_l2
    if max_error > 0 and error is not None and error > max_error:
        told = f"{error:.3g}" if math.isfinite(error) else "infinite"
        return f"its measured error is {told} (relative L2); at most {max_error:g} is allowed"
    return ""


def _groups(candidates: Sequence[Candidate], weight_bytes: int) -> Iterator[list[Candidate]]:
    """Candidates that fit into memory together."""
    room = int(host.available_memory_bytes() * 0.8)
    group: list[Candidate] = []
    used = 0
    for candidate in candidates:
        n_backends = len({end_of(Target.parse(piece.target)) for piece in candidate.pieces})
        needed = CHILD_BYTES * n_backends + WEIGHT_COPIES * weight_bytes
        if group and used + needed > room:
            yield group
            group, used = [], 0
        group.append(candidate)
        used += needed
    if group:
        yield group


__all__ = [
    "Arena",
    "Candidate",
    "Measured",
    "best_of",
    "finalist_of",
    "measure",
    "ratio_of",
    "spots_of",
    "value_of",
]
