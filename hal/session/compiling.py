"""From a model to a session: profile and plan are found or made, and the plan is compiled in this process."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hal.choosing.choose import chosen, profiled
from hal.choosing.finalists import spots_of
from hal.choosing.planner import asked
from hal.errors import InputError, StorageError, UserError, problems
from hal.executor.backend import Spot
from hal.executor.partitions import pieces_of
from hal.graph.model import Graph
from hal.graph.ranges import Ranges, Shapes, has_ranges
from hal.profiling.engine import Job
from hal.profiling.sources import Subject, imported, opened, resolve
from hal.profiling.store import Asked, Store, profile_id
from hal.records.plan import Constraints, Plan
from hal.records.profile import Profile
from hal.records.reading import read_plan
from hal.session import sockets
from hal.session.batching import gathered_runner
from hal.session.calling import Calling
from hal.session.events import Events, OnEvent
from hal.session.isolation import Isolate, Isolation
from hal.session.runner import Runner, runner_of
from hal.session.session import Session
from hal.session.sizes import AnySize, Model
from hal.tensor import Array
from hal.version import __version__

_log = logging.getLogger("hal")

#: What a session does with inputs of shapes that it was not compiled for.
NewShapes = Literal["refuse", "replan"]


def compile(
    model: Any,
    inputs: Any = None,
    *,
    shapes: Shapes | None = None,
    objective: str = "latency",
    max_error: float = 0.0,
    memory: Mapping[str, str | int] | None = None,
    targets: Sequence[str] | None = None,
    strict: bool = False,
    budget_s: float = 2.0,
    deadline_s: float | None = None,
    on_event: OnEvent | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    new_shapes: NewShapes = "refuse",
    isolate: Isolate = False,
    watch: bool = False,
    adaptive: bool = False,
) -> Session:
    """Make a model ready to run on the targets of this machine that were measured to be the best for it.

    The first time, the model is measured on every target it may use, which takes a minute or so; what the
    store has is not measured again. The plan is that of :func:`hal.choose`, kept in the store and found there
    as long as nothing changed that it depends on; or the given one. Its backends are opened in this process.

    Args:
        model: A path, ``demo:NAME``, ONNX bytes or model, a Graph, or a framework's model with ``inputs``.
        inputs: Arrays by name or position, as examples; None for the demo's own or random ones.
        shapes: Shapes of inputs with free dimensions, by name. A pair is a range of sizes, both ends
            included: ``{"x": [(1, 8), 3, 224, 224]}``. The largest sizes are measured and planned for, and
            that plan serves requests of all sizes within.
        objective: ``latency``, ``throughput``, ``energy`` or ``memory``.
        max_error: Highest relative L2 error of the worst output; 0 allows fp32 targets only.
        memory: Limit by device id or memory pool, in bytes or as text: ``{"cuda:0": "8GiB"}``.
        targets: Targets that may be used, or shell patterns of them: ``["cpu:0/*"]``; None for all.
        strict: Raise where a device is lost or fails, instead of planning again for those that remain.
        budget_s: Seconds for each search.
        deadline_s: Seconds after which a run is cut off; None for never. With it, each run takes about 20
            microseconds more.
        on_event: Told of each event, in a thread of a request.
        plan: A plan of this model, or a file of one; what was asked of it holds here too.
        new_shapes: What to do with inputs of other shapes, outside of the ranges: ``refuse`` them, or
            ``replan``, which compiles for them when they first come, as for these, and keeps the last 8
            shapes.
        isolate: Backends that run in child processes, so that what ends their process is an error here: True
            for all, or names or shell patterns: ``["openvino"]``. Tensors pass through shared memory.
        watch: Let ``hal top`` of this user show the session while it is open.
        adaptive: Plan again where a partition takes longer than it should for long, with the device as slow
            as it is; no request is lost.

    Raises:
        ModelError: The model cannot be read.
        InputError: Inputs, shapes, a memory limit or options do not fit.
        TargetError: No target fits.
        Infeasible: No plan keeps all constraints; says which cannot hold and by how much.
        PlanError: The given plan is of another model or machine, or no finalist could be run.
        PluginError: A backend cannot compile its part.
        StorageError: The session is to be watched, and there is no private folder for that.
    """
    sockets.check(watch)
    if new_shapes not in ("refuse", "replan"):
        raise InputError(f"new_shapes is {new_shapes!r}; expected 'refuse' or 'replan'")
    given = None if plan is None else _read(plan)
    if given is None:
        constraints = asked(objective=objective, max_error=max_error, memory=memory, targets=targets)
    else:
        _check_unasked(objective=objective, max_error=max_error, memory=memory, targets=targets)
        constraints = given.constraints
    how = _How(constraints, strict, budget_s, deadline_s, on_event, Isolation(isolate), adaptive)
    again = source = None
    if new_shapes == "replan" or has_ranges(shapes):
        model, source = _kept(model)
    if shapes is not None and has_ranges(shapes) and not isinstance(source, Graph):
        # From here on it is a graph, which has free dimensions: it is not exported again for other sizes.
        model, inputs = imported(source, inputs, shapes)
        source = model
    if new_shapes == "replan":
        again = functools.partial(_again, source, how)
    made = _session(model, inputs, shapes, how, given, again, source)
    return sockets.announced(made, watch=watch)


@dataclass(frozen=True)
class _How:
    """What all sessions of a model have in common, whatever the shapes."""

    constraints: Constraints
    strict: bool
    budget_s: float
    deadline_s: float | None
    on_event: OnEvent | None
    isolation: Isolation
    adaptive: bool

    def asked(self, profile: Profile) -> Asked:
        """What the choice of a plan depends on."""
        return Asked(
            profile=profile_id(profile),
            constraints=self.constraints,
            budget_s=self.budget_s,
            hal_version=__version__,
        )


def _session(
    model: Any,
    inputs: Any,
    shapes: Shapes | None,
    how: _How,
    plan: Plan | None = None,
    again: Any = None,
    source: Any = None,
) -> Session:
    subject = resolve(model, inputs, shapes=shapes)
    ranged: tuple[Graph, Ranges] | None = None
    if shapes is not None and has_ranges(shapes):
        whole = {spec.name: spec.shape for spec in subject.graph.signature.inputs}
        ranged = source.bind_ranges(shapes, whole)
    if plan is not None:
        pieces_of(plan, subject.graph)  # before anything is measured for it
    job, profile = profiled(subject, constraints=how.constraints)
    if plan is None:
        plan = _found(profile, how) or _kept_plan(profile, how, job)
    spots, graph = spots_of(job.discovery), subject.graph
    runner = _carried(how, graph, plan, profile, spots, strict=how.strict)
    carry = functools.partial(_carried, how)
    gathered = gathered_runner(carry, graph, runner.plan, profile, spots)
    sizes = None
    if ranged is not None:
        sizes = AnySize(
            Model(source, *ranged, profile, spots, carry),
            graph,
            runner,
            strict=how.strict,
            events=Events(how.on_event),
        )
    return Session(runner, graph, profile, again=again, gathered=gathered, sizes=sizes, adaptive=how.adaptive)


def _carried(
    how: _How, graph: Graph, plan: Plan, profile: Profile, spots: Mapping[str, Spot], *, strict: bool
) -> Runner:
    return runner_of(
        graph,
        plan,
        profile,
        spots,
        constraints=how.constraints,
        strict=strict,
        deadline_s=how.deadline_s,
        on_event=how.on_event,
        isolation=how.isolation,
    )


def _found(profile: Profile, how: _How) -> Plan | None:
    """The plan that was chosen from this profile before; a store that cannot be read has none."""
    try:
        with Store.open() as store:
            found = store.plan(how.asked(profile))
            # Plans of earlier versions were not measured under load.
            is_whole = found is None or found.throughput or how.constraints.objective != "throughput"
            return found if is_whole else None
    except (StorageError, UserError) as error:
        _log.warning("plans are not found again: %s", error)
        return None


def _kept_plan(profile: Profile, how: _How, job: Job) -> Plan:
    """A plan, measured now and kept in the store where that is possible."""
    plan = chosen(job, profile, how.constraints, budget_s=how.budget_s)
    try:
        with Store.open() as store:
            store.put_plan(how.asked(profile), plan)
    except StorageError as error:
        _log.warning("the plan is not kept: %s", error)
    return plan


def _again(source: Any, how: _How, calling: Calling, arrays: Sequence[Array]) -> Session:
    """A session for the shapes of these inputs."""
    if not isinstance(source, Graph):
        return _session(source, calling.example(arrays), None, how)
    inputs, shapes = examples(calling.names, arrays)
    return _session(source, inputs, shapes, how)


def examples(
    names: Sequence[str], arrays: Sequence[Array]
) -> tuple[dict[str, Array] | None, dict[str, tuple[int, ...]]]:
    """A request as inputs to measure with, and their shapes.

    There are no inputs where one holds NaN, with which answers cannot be compared: random ones are taken.

    Args:
        names: Of the inputs.
        arrays: The request.
    """
    shapes = {name: array.shape for name, array in zip(names, arrays, strict=True)}
    has_nan = any(array.dtype.kind == "f" and np.isnan(array).any() for array in arrays)
    return None if has_nan else dict(zip(names, arrays, strict=True)), shapes


def _kept(model: Any) -> tuple[Any, Any]:
    """A model to resolve now, and the source of sessions for other shapes: the same, read once."""
    graph = model.graph if isinstance(model, Subject) else opened(model)
    if graph is None:
        return model, model
    # A demo has inputs of its own, which a graph does not.
    return (model if isinstance(model, str) and model.startswith("demo:") else graph), graph


def _read(plan: Plan | str | os.PathLike[str]) -> Plan:
    if isinstance(plan, Plan):
        return plan
    try:
        data = Path(plan).read_bytes()
    except OSError as error:
        raise StorageError(f"plan {os.fspath(plan)!r} cannot be read: {error.strerror or error}") from error
    return read_plan(data, repr(os.fspath(plan)))


def _check_unasked(**options: Any) -> None:
    """Refuse what would have no effect beside a given plan."""
    defaults = {"objective": "latency", "max_error": 0.0, "memory": None, "targets": None}
    found = [f"{name}={value!r}" for name, value in options.items() if value != defaults[name]]
    if found:
        raise InputError(
            problems(
                "a given plan was made for what was asked then",
                [f"{', '.join(found)} would have no effect; leave it out, or leave out plan to plan anew"],
            )
        )
