"""Profiles and benchmarks: lanes started one by one, measured in turn, recorded together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from hal import host, plugins
from hal.backend import Target
from hal.errors import ModelError, TargetError
from hal.graph.facts import facts
from hal.graph.ranges import Shapes
from hal.graph.reference import ReferenceUnavailable, cached_reference
from hal.profiling import environment
from hal.profiling.assembly import assemble, merge, model_info
from hal.profiling.discovery import Discovery, discover
from hal.profiling.lane import Lane, interleave
from hal.profiling.machine import measure_machine
from hal.profiling.privacy import scrub
from hal.profiling.progress import Progress, Silent
from hal.profiling.ratios import rebase
from hal.profiling.recall import Recall, regrouped
from hal.profiling.sources import Subject, resolve
from hal.records.facts import ModelFacts
from hal.records.machine import Environment, MachineProfile
from hal.records.places import cache_folder
from hal.records.profile import Profile, TargetProfile
from hal.sampling import Policy
from hal.tensor import Array
from hal.units import format_bytes
from hal.worker import Deadlines

#: Memory a target's child is expected to take beside a multiple of the weights.
#: Source: resident size of idle PyTorch, the largest of the runtimes tested (docs/measuring.md).
CHILD_BYTES = 500 << 20
#: Copies of the weights a runtime may hold while it compiles: read, repacked, and one in transit.
WEIGHT_COPIES = 3


#: Time for the reference. Source: the slowest real model tested takes 12 s (a decoder of 135 M parameters).
_REFERENCE_S = 600


def profile(
    model: Any,
    inputs: Any = None,
    *,
    shapes: Shapes | None = None,
    targets: Sequence[str] | None = None,
    policy: Policy | None = None,
    kernels: bool = True,
    compiled: bool = False,
    machine: bool = True,
    fresh: bool = False,
    deadlines: Deadlines | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measure a model on every target of this machine.

    Each target runs in a process of its own; plain runs are interleaved over all targets, kernel times
    come from separate instrumented runs, and every answer is compared with the reference. The profile is
    kept in the store, and targets whose figures are there and still valid are not measured again.

    Args:
        model: A path, ``demo:NAME``, ONNX bytes or model, a Graph, or a framework's model with ``inputs``.
        inputs: Arrays by name or position; None for the demo's own or random ones.
        shapes: Shapes of inputs with free dimensions; of a range of sizes, ``(1, 8)``, the largest counts.
        targets: Targets or shell patterns of them; None for all.
        policy: Of warm-up and sampling.
        kernels: Whether to take kernel times.
        compiled: Also measure the compiled mode of backends that run eagerly by default.
        machine: Whether to measure the machine's ceilings and links where the store has none.
        fresh: Measure all targets, whatever the store has.
        deadlines: Of the children's steps.
        progress: Told of what happens.

    Raises:
        ModelError: The model cannot be read.
        InputError: Inputs or shapes do not fit.
        TargetError: No target fits.
    """
    job = prepare(model, inputs, shapes, targets, policy, deadlines, compiled, kernels, progress)
    return profile_of(job, machine=machine, fresh=fresh)


def profile_of(job: Job, *, machine: bool = True, fresh: bool = False) -> Profile:
    """What :func:`profile` does once it is clear what is to be measured.

    Args:
        job: From :func:`prepare`.
        machine: As for :func:`profile`.
        fresh: As for :func:`profile`.
    """
    here = environment.describe(job.discovery.installed)
    info = model_info(job.subject)
    recall = Recall(here)
    known = {} if fresh else recall.targets(info, job.policy, job.kernels, job.targets)
    whole = recall.whole(known, job.targets)
    if whole is not None:
        return whole
    missing = [target for target in job.targets if str(target) not in known]
    found = facts(job.subject.graph)
    measured, notes = _measure_all(job, missing, found)
    limits = _machine(job, recall, here, measure=machine and job.kernels, fresh=fresh)
    results = merge(job.targets, measured, regrouped(known))
    record = assemble(info, found, job.discovery, here, results, limits, notes)
    recall.keep(record)
    # Not part of what is kept: it tells of the store, not of the model.
    return msgspec.structs.replace(record, notes=(*record.notes, *dict.fromkeys(recall.notes)))


def bench(
    model: Any,
    inputs: Any = None,
    *,
    shapes: Shapes | None = None,
    targets: Sequence[str] | None = None,
    baseline: str | None = None,
    policy: Policy | None = None,
    compiled: bool = False,
    deadlines: Deadlines | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Compare targets by interleaved runs alone: a profile without kernels, measured now and not kept.

    Args:
        model: As for :func:`profile`.
        inputs: As for :func:`profile`.
        shapes: As for :func:`profile`.
        targets: As for :func:`profile`.
        baseline: Target that the ratios are taken against; None for the fastest right one.
        policy: As for :func:`profile`.
        compiled: As for :func:`profile`.
        deadlines: As for :func:`profile`.
        progress: As for :func:`profile`.

    Raises:
        ModelError: The model cannot be read.
        InputError: Inputs or shapes do not fit.
        TargetError: No target fits, or the baseline is not among them or could not be measured.
    """
    job = prepare(model, inputs, shapes, targets, policy, deadlines, compiled, False, progress)
    names = [str(target) for target in job.targets]
    if baseline is not None and baseline not in names:
        raise TargetError(f"baseline {baseline!r} is not among the targets; these are {', '.join(names)}")
    found = facts(job.subject.graph)
    measured, notes = _measure_all(job, job.targets, found)
    record = assemble(
        model_info(job.subject),
        found,
        job.discovery,
        environment.describe(job.discovery.installed),
        merge(job.targets, measured, {}),
        None,
        notes,
    )
    return record if baseline is None else rebase(record, baseline)


@dataclass(frozen=True)
class Job:
    """What is to be measured, where and how.

    Attributes:
        subject: The model and its inputs.
        discovery: Of this machine.
        targets: To be measured.
        policy: Of warm-up and sampling.
        deadlines: Of the children's steps.
        kernels: Whether to take kernel times.
        progress: Told of what happens.
    """

    subject: Subject
    discovery: Discovery
    targets: Sequence[Target]
    policy: Policy
    deadlines: Deadlines | None
    kernels: bool
    progress: Progress


def prepare(
    model: Any,
    inputs: Any,
    shapes: Shapes | None,
    targets: Sequence[str] | None,
    policy: Policy | None,
    deadlines: Deadlines | None,
    compiled: bool,
    kernels: bool,
    progress: Progress | None,
) -> Job:
    """Read the model and find the targets; the arguments are those of :func:`profile`."""
    progress = progress or Silent()
    subject = resolve(model, inputs, shapes=shapes)
    discovery = discover(progress=progress, deadlines=deadlines)
    chosen = discovery.targets(targets, compiled=compiled)
    return Job(subject, discovery, chosen, policy or Policy(), deadlines, kernels, progress)


def _machine(
    job: Job, recall: Recall, here: Environment, *, measure: bool, fresh: bool
) -> MachineProfile | None:
    """Ceilings and links: from the store, else measured once for this environment."""
    found = None if fresh and measure else recall.machine()
    if found is None and measure:
        found = measure_machine(job.discovery, deadlines=job.deadlines, progress=job.progress)
        recall.keep_machine(found)
    return found


def _measure_all(
    job: Job, targets: Sequence[Target], found: ModelFacts
) -> tuple[dict[str, TargetProfile], list[str]]:
    """What was measured, by target, and what to note."""
    reference, reference_note = reference_of(job.subject, job.progress)
    notes = [reference_note] if reference_note else []
    groups = list(_groups(targets, job.subject))
    if len(groups) > 1:
        notes.append(
            f"the targets were measured in {len(groups)} groups, because all at once would not fit into "
            f"{format_bytes(host.available_memory_bytes())} of memory; compare only within a group"
        )
    lanes: list[Lane] = []
    for number, group in enumerate(groups):
        lanes += _measure(job, number, group, reference, found)
    return {str(lane.target): lane.record() for lane in lanes}, notes


def _measure(
    job: Job,
    number: int,
    group: Sequence[Target],
    reference: Sequence[Array] | None,
    found: ModelFacts,
) -> list[Lane]:
    subject, progress = job.subject, job.progress
    with ExitStack() as stack:
        lanes = []
        for target in group:
            ref = plugins.reference(target.backend)
            device = job.discovery.device(target)
            lane = Lane(ref, device, target, job.policy, job.deadlines, group=number)
            stack.callback(lane.close)
            lanes.append(lane)
        for n_done, lane in enumerate(lanes):
            progress.stage(f"compiling {lane.target}")
            progress.advance(n_done, len(lanes))
            lane.start(subject)
            if reference is not None:
                lane.judge(reference, subject.graph)
        interleave(lanes, progress)
        for lane in lanes:
            lane.read_memory()
            lane.read_energy()
        if subject.evaluation is not None:
            progress.stage("running the labelled data")
            for lane in lanes:
                lane.score(subject.evaluation)
        for n_done, lane in enumerate(lanes):
            if job.kernels:
                progress.stage(f"timing kernels on {lane.target}")
                progress.advance(n_done, len(lanes))
                lane.time_kernels(subject, found)
            lane.export_blob()
        return lanes


def _groups(targets: Sequence[Target], subject: Subject) -> Iterator[Sequence[Target]]:
    """Targets that fit into memory together."""
    each = CHILD_BYTES + WEIGHT_COPIES * subject.graph.weight_bytes
    at_once = max(int(host.available_memory_bytes() * 0.8) // each, 1)
    for start in range(0, len(targets), at_once):
        yield targets[start : start + at_once]


def reference_of(subject: Subject, progress: Progress) -> tuple[list[Array] | None, str]:
    """The reference's outputs by position, or None and why there are none."""
    progress.stage("computing the reference")
    graph = subject.graph
    try:
        answers = cached_reference(
            graph.digest,
            graph.to_proto,
            subject.named_inputs,
            cache_folder() / "reference",
            progress=progress.advance,
            limit_s=_REFERENCE_S,
        )
    except (ReferenceUnavailable, ModelError) as error:  # ModelError: too large for one message
        return None, f"no reference, so answers were not checked: {scrub(str(error))}"
    return [answers[spec.name] for spec in graph.signature.outputs], ""
