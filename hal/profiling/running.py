"""Running a model once, on the target named or on the fastest right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from hal import plugins
from hal.errors import PluginError, TargetError
from hal.profiling.discovery import discover
from hal.profiling.engine import profile
from hal.profiling.progress import Progress, Silent
from hal.profiling.sources import Subject, resolve
from hal.records.targets import Target
from hal.sampling import Policy
from hal.tensor import Array, as_numpy
from hal.worker import Deadlines, WorkerBackend

#: Enough to tell targets apart that differ by more than a few percent.
_QUICK = Policy(warm_up_max_ns=500_000_000, min_time_ns=200_000_000, min_bursts=4, max_time_ns=1_000_000_000)


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """Outputs of one run, and where it ran.

    Attributes:
        target: As written.
        chosen_because: ``asked for``, or how it was chosen.
        inputs_from: ``given``, the demo's test set, or random.
        outputs: Arrays by name.
    """

    target: str
    chosen_because: str
    inputs_from: str
    outputs: dict[str, Array]


def run(
    model: Any,
    inputs: Any = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: str | None = None,
    deadlines: Deadlines | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Run a model once, in a child process.

    Args:
        model: As for :func:`hal.profile`.
        inputs: As for :func:`hal.profile`.
        shapes: As for :func:`hal.profile`.
        target: Where; None measures all fp32 targets briefly and takes the fastest that is right.
        deadlines: Of the child's steps.
        progress: Told of what happens.

    Raises:
        ModelError: The model cannot be read.
        InputError: Inputs or shapes do not fit.
        TargetError: The target is not here, or none answers rightly.
        PluginError: The backend refused or failed.
    """
    progress = progress or Silent()
    subject = resolve(model, inputs, shapes=shapes)
    because = "asked for"
    if target is None:
        target, because = _fastest(subject, deadlines, progress)
    backend_name = Target.parse(target).backend
    known = backend_name in {plugin.name for plugin in plugins.installed()}
    # An unknown backend is answered with what there is instead, so all are asked.
    discovery = discover([backend_name] if known else None, progress, deadlines=deadlines)
    chosen = discovery.targets([target])[0]
    progress.stage(f"running on {chosen}")
    with WorkerBackend(plugins.reference(chosen.backend), deadlines=deadlines) as backend:
        device = discovery.device(chosen)
        executable = backend.compile(device, subject.graph, chosen.configuration)
        outputs = [as_numpy(output) for output in executable.run(subject.inputs)]
    names = [spec.name for spec in subject.graph.signature.outputs]
    return RunResult(
        target=str(chosen),
        chosen_because=because,
        inputs_from=subject.inputs_from,
        outputs=dict(zip(names, outputs, strict=True)),
    )


def _fastest(subject: Subject, deadlines: Deadlines | None, progress: Progress) -> tuple[str, str]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    record = profile(
        subject,
        targets=["*/fp32"],
        policy=_QUICK,
        kernels=False,
        deadlines=deadlines,
        progress=progress,
    )
    ranking = record.ranking
    if not ranking:
        reasons = "; ".join(f"{t.target} {t.status}: {t.reason}" for t in record.targets)
        if all(t.status in ("failed", "refused") for t in record.targets):
            raise PluginError(f"no target can run {record.model.name!r}: {reasons}")
        raise TargetError(f"no target answers {record.model.name!r} rightly: {reasons}")
    best = ranking[0]
    when = "now" if best.measured >= started else best.measured
    return best.target, f"fastest of {len(record.targets)} fp32 targets, measured {when}"
