"""The plan that was measured to be the best: profile, solve, run the finalists, learn, solve again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from hal.backend import Configuration, OptionValue, Target
from hal.choosing.feedback import learn
from hal.choosing.finalists import WORTH, Arena, Candidate, Measured, best_of, finalist_of, measure
from hal.choosing.planner import asked
from hal.choosing.throughput import loaded
from hal.errors import PlanError, problems
from hal.graph.facts import facts
from hal.graph.ranges import Shapes
from hal.planning.compiled import is_new
from hal.planning.costs import Modelled
from hal.planning.costs import model as modelled_of
from hal.planning.plans import plan_of, ranked
from hal.planning.portfolio import solve
from hal.planning.twins import plain, plain_twin
from hal.profiling.discovery import Discovery
from hal.profiling.engine import Job, prepare, profile_of, reference_of
from hal.profiling.progress import Progress
from hal.records.plan import BoundaryCost, Constraints, Plan, Throughput
from hal.records.profile import Profile, Timing
from hal.sampling import Policy
from hal.worker import Deadlines

#: Placements that are measured in one round, the single-target ones among them, which are always.
#: Source: the brief of issue 4; each costs seconds.
FINALISTS = 8
#: Rounds of measuring, correcting and solving again. Source: issue 4, "at most three rounds".
ROUNDS = 3
#: Mixed placements that are run under load. Source: ours; each costs some ten seconds.
MIXED = 2


def choose(
    model: Any,
    inputs: Any = None,
    *,
    shapes: Shapes | None = None,
    objective: str = "latency",
    max_error: float = 0.0,
    memory: Mapping[str, str | int] | None = None,
    targets: Sequence[str] | None = None,
    pinned: Mapping[str, str] | None = None,
    max_partitions: int = 0,
    budget_s: float = 2.0,
    policy: Policy | None = None,
    fresh: bool = False,
    deadlines: Deadlines | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Find the best placement of a model on this machine's targets, by measuring.

    The model is profiled (what the store has is not measured again) and the placement problem solved. The
    best placements, and always every single target that keeps the constraints, are compiled and run in turn,
    and their answers compared with the reference. What boundaries between partitions were seen to cost is
    learned and the problem is solved again, until no better placement comes up, three rounds at most. The
    measured objective decides; a placement of several partitions must beat the best single target by more
    than the noise.

    Args:
        model: A path, ``demo:NAME``, ONNX bytes or model, a Graph, or a framework's model with ``inputs``.
        inputs: Arrays by name or position; None for the demo's own or random ones.
        shapes: Shapes of inputs with free dimensions; of a range of sizes, ``(1, 8)``, the largest counts.
        objective: ``latency``, ``throughput``, ``energy`` or ``memory``.
        max_error: Highest relative L2 error of the worst output; 0 allows fp32 targets only. Predicted and
            measured errors are held against it.
        memory: Limit by device id or memory pool, in bytes or as text: ``{"cuda:0": "8GiB"}``.
        targets: Targets that may be used, or shell patterns of them; None for all.
        pinned: Node or unit to the target it must run on.
        max_partitions: Highest number of partitions; 0 for any.
        budget_s: Seconds for each search.
        policy: Of warm-up and sampling, of the profile and of the finalists.
        fresh: Profile anew, whatever the store has.
        deadlines: Of the children's steps.
        progress: Told of what happens.

    Raises:
        ModelError: The model cannot be read.
        InputError: Inputs, shapes or a memory limit do not fit.
        TargetError: No target fits.
        Infeasible: No plan keeps all constraints; says which cannot hold and by how much.
        PlanError: No finalist could be run.
    """
    constraints = asked(
        objective=objective,
        max_error=max_error,
        memory=memory,
        targets=targets,
        pinned=pinned,
        max_partitions=max_partitions,
    )
    job, profile = profiled(
        model,
        inputs,
        shapes=shapes,
        constraints=constraints,
        policy=policy,
        fresh=fresh,
        deadlines=deadlines,
        progress=progress,
    )
    return chosen(job, profile, constraints, budget_s=budget_s)


def profiled(
    model: Any,
    inputs: Any = None,
    *,
    shapes: Shapes | None = None,
    constraints: Constraints,
    policy: Policy | None = None,
    fresh: bool = False,
    deadlines: Deadlines | None = None,
    progress: Progress | None = None,
) -> tuple[Job, Profile]:
    """The profile that a plan needs: of the targets it may use, and of those as they run in mixed plans.

    Args:
        model: As for :func:`choose`.
        inputs: As for :func:`choose`.
        shapes: As for :func:`choose`.
        constraints: What is asked of the plan.
        policy: As for :func:`choose`.
        fresh: As for :func:`choose`.
        deadlines: As for :func:`choose`.
        progress: As for :func:`choose`.

    Returns:
        What is to be run, and what was measured of it.
    """
    patterns = constraints.targets or None
    job = prepare(model, inputs, shapes, patterns, policy, deadlines, False, True, progress)
    everything = constraints.max_error > 0
    wanted = [t for t in job.targets if everything or t.configuration.precision == "fp32"] or job.targets
    job = replace(job, targets=[*wanted, *twins(job.discovery, wanted, "threads", 1)])
    # One target, however many threads it has, hands nothing over; measuring links takes longer than it does.
    machine = len(wanted) > 1
    profile = profile_of(job, machine=machine, fresh=fresh)
    if constraints.max_partitions == 1 or not machine:
        return job, profile
    # Where more threads do not make it faster, they need not be put to rest: one will do.
    taken = {t.target: t.timing.median_ns for t in profile.targets if t.timing is not None}
    ones = {twin: ns for name, ns in taken.items() if (twin := plain_twin(name))}
    helped = [t for t in wanted if taken.get(str(t), math.inf) < ones.get(str(t), math.inf)]
    resting = list(twins(job.discovery, helped, "spinning", False))
    if not resting:
        return job, profile
    job = replace(job, targets=[*job.targets, *resting])
    return job, profile_of(job, machine=machine)


def chosen(job: Job, profile: Profile, constraints: Constraints, *, budget_s: float = 2.0) -> Plan:
    """What :func:`choose` does once the model is profiled.

    Args:
        job: From :func:`profiled`.
        profile: From :func:`profiled`.
        constraints: What is asked.
        budget_s: Seconds for each search.
    """
    reference, note = reference_of(job.subject, job.progress)
    found = facts(job.subject.graph)
    arena = Arena(job, found, reference, constraints.max_error, constraints.objective)
    throughput = None
    measured: Sequence[Measured]
    if constraints.objective == "throughput":
        bases, notes = _bases(arena, profile, constraints, budget_s)
        loads = loaded(arena, bases)
        measured, best, throughput = loads.measured, loads.best, loads.throughput
        notes = [*notes, *loads.notes]
    else:
        measured, notes = _rounds(arena, profile, constraints, budget_s)
        best = best_of(measured, constraints.objective)
    if best is None:
        failed = [f"{one.candidate.name}: {one.failure}" for one in measured]
        raise PlanError(problems(f"no placement of {job.subject.graph.name!r} could be carried out", failed))
    return _record(best, measured, throughput, [*notes, *([note] if note else [])])


def searching(what: str = "") -> str:
    """The stage of a search, as progress shows it; a first search says why it takes long."""
    first = "; the first time, the planner's code is compiled: a minute or so" if is_new() else ""
    return f"searching{what}{first}"


def twins(
    discovery: Discovery, targets: Sequence[Target], option: str, value: OptionValue
) -> Iterator[Target]:
    """The same targets with an option set, where their backend offers it and they do not say otherwise.

    Args:
        discovery: Says what is offered.
        targets: The targets.
        option: ``threads`` or ``spinning``: what keeps runtimes in one process out of each other's way.
        value: Of the option; targets for which it is the default are left out.
    """
    for target in targets:
        options = dict(target.configuration.options)
        offered = next(
            (
                {spec.name: spec.default for spec in found.options}
                for found in discovery.found
                if (found.backend, found.device.id, found.device.variant)
                == (target.backend, target.device, target.variant)
            ),
            dict[str, OptionValue](),
        )
        if option not in offered or option in options or offered[option] == value:
            continue
        changed = Configuration.of(target.configuration.precision, {**options, option: value})
        yield msgspec.structs.replace(target, configuration=changed)


def _rounds(
    arena: Arena, profile: Profile, constraints: Constraints, budget_s: float
) -> tuple[list[Measured], list[str]]:
    """All that was measured, the latest figures of each placement, and what to note."""
    extras: tuple[BoundaryCost, ...] = ()
    known: dict[str, Measured] = {}
    notes: list[str] = []
    for number in range(ROUNDS):
        arena.job.progress.stage(searching(f" again ({number} of {ROUNDS - 1})" if number else ""))
        modelled = modelled_of(profile, constraints, extras=extras)
        proposed = candidates(modelled, profile, budget_s, number)
        new = [one for one in proposed if one.placement not in known]
        if number:
            new = [one for one in new if _is_promising(one, known, arena.objective)]
        if not new:
            break
        standing = best_of(list(known.values()), arena.objective) if known else None
        again = [] if standing is None else [standing.candidate]
        found = measure(arena, [*again, *new], arena.job.policy)
        known |= {one.candidate.placement: one for one in found}
        if all(len(one.candidate.plan.partitions) == 1 for one in found):
            break
        extras = learn(found, extras)
    return list(known.values()), notes


def _bases(
    arena: Arena, profile: Profile, constraints: Constraints, budget_s: float
) -> tuple[list[Candidate], list[str]]:
    """The placements that are run under load: every single target, and the best mixed ones; what to note.

    Mixed ones are measured one by one first, as for other objectives, so that what their boundaries cost is
    known. How many threads a single target has is for the ways to say in which it is run.
    """
    arena.job.progress.stage(searching())
    proposed = candidates(modelled_of(profile, constraints), profile, budget_s, 0)
    mixed: list[Candidate] = []
    notes: list[str] = []
    if any(len(one.plan.partitions) > 1 for one in proposed):
        measured, notes = _rounds(arena, profile, constraints, budget_s)
        standing = [(one.timing.median_ns, one.candidate) for one in measured if one.timing is not None]
        standing.sort(key=lambda pair: pair[0])
        mixed = [one for _, one in standing if len(one.plan.partitions) > 1][:MIXED]
    alone = {one.plan.targets[0]: one for one in proposed if len(one.plan.partitions) == 1}
    kept = [one for name, one in alone.items() if plain(name) == name or plain(name) not in alone]
    return [*sorted(kept, key=lambda one: one.predicted_ns), *mixed], notes


def candidates(modelled: Modelled, profile: Profile, budget_s: float, number: int) -> list[Candidate]:
    """The placements worth measuring: all on one target, then the best mixed ones.

    A target that was made for mixed plans is left out as a single target where the plain one is faster.
    """
    solution = ranked(modelled, solve(modelled.problem, budget_s=budget_s, finalists=FINALISTS))
    timings = {target.target: target.timing for target in profile.targets}
    made: list[Candidate] = []
    for proposal in solution.proposals:
        plan = plan_of(
            modelled,
            proposal.assignment,
            solver=proposal.solver,
            bound=solution.bound,
            bound_source=solution.bound_source,
        )
        predicted_ns = plan.predicted.latency_ns
        if len(plan.partitions) == 1:
            name = plan.partitions[0].target
            if _is_beaten_by_plain(name, timings):
                continue
            timing = timings[name]
            predicted_ns = timing.median_ns if timing else predicted_ns
        made.append(Candidate(proposal.solver, plan, predicted_ns, number))
    alone = [one for one in made if len(one.plan.targets) == 1]
    mixed = [one for one in made if len(one.plan.targets) > 1]
    if alone:
        best = min(one.plan.objective for one in alone)
        mixed = [one for one in mixed if WORTH * one.plan.objective <= best]
    return [*alone, *mixed[: max(FINALISTS - len(alone), 1)]]


def _is_beaten_by_plain(name: str, timings: Mapping[str, Timing | None]) -> bool:
    """Whether a target that was made for mixed plans need not be tried alone.

    With threads that sleep it is never faster than with threads that spin; with one thread it may be.
    """
    plain = plain_twin(name)
    theirs, ours = timings.get(plain or ""), timings.get(name)
    if theirs is None or ours is None:
        return False
    return "spinning" in dict(Target.parse(name).configuration.options) or ours.median_ns >= theirs.median_ns


def _is_promising(one: Candidate, known: Mapping[str, Measured], objective: str) -> bool:
    """Whether a new placement is now predicted to beat all that was measured."""
    if objective in ("latency", "throughput"):
        best = min((m.timing.median_ns for m in known.values() if m.timing is not None), default=0)
        return not best or one.plan.objective < best
    return True


def _record(
    best: Measured, measured: Sequence[Measured], throughput: Throughput | None, notes: Sequence[str]
) -> Plan:
    plan, timing = best.candidate.plan, best.timing
    finalists = sorted(
        (finalist_of(one, best) for one in measured),
        key=lambda one: (one.measured is None, one.measured.median_ns if one.measured else 0),
    )
    said = list(notes)
    if plan.constraints.objective == "throughput" and timing is not None:
        said.append("measured is the time between answers under load; predicted is that of one request alone")
    if plan.constraints.objective == "energy" and best.record.energy is None:
        said.append(
            "energy is predicted, in proportion to the measured time: the devices do not tell it in a plan"
        )
    predicted = plan.predicted
    if len(plan.partitions) == 1:
        predicted = msgspec.structs.replace(predicted, latency_ns=best.candidate.predicted_ns)
    return msgspec.structs.replace(
        plan,
        predicted=predicted,
        measured=timing,
        errors=best.record.errors,
        finalists=tuple(finalists),
        throughput=throughput,
        notes=(*plan.notes, *said),
    )
