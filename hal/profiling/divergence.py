"""``hal diff``: the first node at which two targets part, and the smallest model that shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from hal import plugins
from hal.backend import Target
from hal.errors import TargetError, UserError
from hal.graph.cut import Cutter
from hal.graph.difference import TensorError
from hal.graph.model import Graph
from hal.profiling.discovery import Discovery, discover
from hal.profiling.divergence_reproduce import Part, Reproducer
from hal.profiling.divergence_search import Exposed, Found, Job, bisect, expose, finite, first_exposed
from hal.profiling.divergence_sides import REFERENCE, Pair, ReferenceSide, Side, TargetSide
from hal.profiling.judge import TOLERANCES
from hal.profiling.privacy import scrub
from hal.profiling.progress import Progress, Silent
from hal.profiling.sources import Subject, resolve
from hal.records.divergence import Divergence, Reproduction, ValueDifference
from hal.tensor import Array
from hal.worker import Deadlines, WorkerBackend


@dataclass(frozen=True)
class Diff:
    """What was found.

    Attributes:
        record: All of it but the reproduction's model and inputs.
        model: The smallest model found on which the targets part too; None where nothing parted.
        inputs: Its inputs, by name.
    """

    record: Divergence
    model: Graph | None = None
    inputs: dict[str, Array] | None = None


def diff(
    model: Any,
    inputs: Any = None,
    *,
    targets: Sequence[str],
    shapes: Mapping[str, Sequence[int]] | None = None,
    tolerance: float | None = None,
    locate: bool = True,
    deadlines: Deadlines | None = None,
    progress: Progress | None = None,
) -> Diff:
    """Compare the answers of two targets; where they part, find the first node and the smallest reproduction.

    Args:
        model: As for :func:`hal.profile`.
        inputs: As for :func:`hal.profile`.
        targets: Two targets, or one and ``reference``.
        shapes: As for :func:`hal.profile`.
        tolerance: Relative L2 above which a value parts; None for what rounding in the coarser of the two
            precisions explains (:data:`hal.profiling.judge.TOLERANCES`).
        locate: Whether to look inside the model; else only its outputs are compared.
        deadlines: Of the children's steps.
        progress: Told of what happens.

    Raises:
        ModelError: The model cannot be read.
        InputError: Inputs or shapes do not fit.
        TargetError: These are not two different targets of this machine.
        UserError: The tolerance is no number of 0 or more.
        PluginError: A target refuses the model or fails on it.
        ReferenceUnavailable: The reference is asked for and has no answer.
    """
    progress = progress or Silent()
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise UserError(
            f"tolerance {tolerance:g} is no relative error; expected a number of 0 or more, for example 0.001"
        )
    if len(targets) != 2:
        raise TargetError(f"{len(targets)} targets were given; expected two, or one and {REFERENCE!r}")
    subject = resolve(model, inputs, shapes=shapes)
    pair = _pair(targets, deadlines, progress)
    try:
        return compare(subject, pair, tolerance=tolerance, locate=locate, progress=progress)
    finally:
        pair.close()


def compare(
    subject: Subject,
    pair: Pair,
    *,
    tolerance: float | None = None,
    locate: bool = True,
    progress: Progress | None = None,
    budget_bytes: int | None = None,
) -> Diff:
    """:func:`diff` of two open sides.

    Args:
        subject: The bound model and its inputs.
        pair: The sides; they stay open.
        tolerance: As for :func:`diff`.
        locate: As for :func:`diff`.
        progress: As for :func:`diff`.
        budget_bytes: Memory that exposed values may take on one side; None for a share of what is free.

    Raises:
        PluginError: A side refuses the model or fails on it.
    """
    progress = progress or Silent()
    precision = max((side.precision for side in pair.sides), key=TOLERANCES.__getitem__)
    limit = TOLERANCES[precision] if tolerance is None else tolerance
    progress.stage(f"running {subject.graph.name} on {pair.sides[0].name} and {pair.sides[1].name}")
    at_the_end = pair.compare(subject.graph, subject.named_inputs)
    ends = tuple(name for name, error in at_the_end.items() if error.relative_l2 > limit)
    record = Divergence(
        model=subject.graph.name,
        digest=subject.graph.digest,
        n_nodes=len(subject.graph.nodes),
        inputs_from=subject.inputs_from,
        targets=(pair.sides[0].name, pair.sides[1].name),
        against=pair.base.name,
        tolerance=limit,
        tolerance_from=f"what rounding in {precision} explains" if tolerance is None else "asked for",
        parted=bool(ends),
        outputs=value_differences(at_the_end),
    )
    if not locate:
        return Diff(record)
    cutter = Cutter(subject.graph)
    job = Job(cutter, subject.named_inputs, pair, limit, ends, progress, budget_bytes)
    exposed = expose(job)
    record = msgspec.structs.replace(
        record,
        worst=exposed.worst([spec.name for spec in subject.graph.signature.outputs]),
        growth=exposed.growth,
        n_compared=len(exposed.errors),
        n_left_out=sum(
            cutter.graph.nodes[node].op_type != "Constant" and len(cutter.writes(node))
            for node in cutter.nodes
        )
        - len(exposed.errors),
        notes=tuple(scrub(note) for note in (*exposed.notes, *exposed.unbounded)),
    )
    return _located(job, record, exposed, at_the_end) if ends else Diff(record)


def _located(job: Job, record: Divergence, exposed: Exposed, at_the_end: Mapping[str, TensorError]) -> Diff:
    """Add the first node and the reproduction."""
    found: Found | None = first_exposed(job, exposed)
    notes = list(record.notes)
    if found is None:
        if exposed.errors:
            notes.append(
                "with all values as outputs the difference is gone, because nodes are not fused then; the "
                "growth is that of nodes that are not fused"
            )
        found = bisect(job, at_the_end)
    reproducer = Reproducer(job)
    part = reproducer.smallest(found)
    if part is None:
        errors = {name: at_the_end[name] for name in job.ends}
        part = Part(job.cutter.graph, dict(job.inputs), errors, "model", "")
    reproduction = Reproduction(
        extent=part.extent,
        nodes=tuple(part.graph.nodes),
        outputs=value_differences(part.errors),
        n_tried=reproducer.n_tried,
        inputs_from=part.inputs_from,
    )
    record = msgspec.structs.replace(
        record,
        found_by=found.by if found is not None else "",
        first=found.first if found is not None else None,
        reproduction=reproduction,
        notes=tuple(notes),
    )
    return Diff(record, part.graph, part.inputs)


def value_differences(errors: Mapping[str, TensorError]) -> tuple[ValueDifference, ...]:
    """Errors as they are recorded."""
    return tuple(
        ValueDifference(
            name=name,
            relative_l2=finite(error.relative_l2),
            max_abs=finite(error.max_abs),
            n_nonfinite=error.n_nonfinite,
        )
        for name, error in errors.items()
    )


def _pair(targets: Sequence[str], deadlines: Deadlines | None, progress: Progress) -> Pair:
    wanted = [target for target in targets if target != REFERENCE]
    backends = [Target.parse(target).backend for target in wanted]
    installed = {plugin.name for plugin in plugins.installed()}
    # An unknown backend is answered with what there is instead, so all are asked.
    known = list(dict.fromkeys(backends)) if set(backends) <= installed else None
    discovery = discover(known, progress, deadlines=deadlines) if wanted else None
    sides = [
        ReferenceSide(progress) if name == REFERENCE else _target_side(discovery, name, deadlines)
        for name in targets
    ]
    if sides[0].name == sides[1].name:
        raise TargetError(
            f"both targets are {sides[0].name!r}; give two different ones, or one and {REFERENCE!r}"
        )
    return Pair(sides[0], sides[1])


def _target_side(discovery: Discovery | None, name: str, deadlines: Deadlines | None) -> Side:
    assert discovery is not None  # there is a target, so it was looked for
    chosen = discovery.targets([name])[0]
    ref = plugins.reference(chosen.backend)
    return TargetSide(
        str(chosen),
        discovery.device(chosen),
        chosen.configuration,
        lambda: WorkerBackend(ref, deadlines=deadlines),
    )


__all__ = ["Diff", "compare", "diff", "value_differences"]
