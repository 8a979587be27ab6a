"""A placement problem from a profile: what was measured, as numbers.

Which targets there are: those that answered rightly, within the precision that the error budget allows. Of a
target that defines no units (it compiles whole graphs into few kernels), and of one whose kernels were not
timed, only the whole model was measured. It is offered for the whole model: a cut costs as much as the model,
see :func:`hal.planning.costs_links.only_whole`. So is a runtime whose idle threads spin, where its twin
``+spinning=false`` was measured too: a plan of several partitions has the twin's costs, for it turns spinning
off (:func:`hal.executor.executor.compile_plan`). Where the twin was not measured, the spinning figures stand
in for it.

What things cost: units :mod:`hal.planning.costs_times`, handoffs :mod:`hal.planning.costs_links`, memory,
energy and error :mod:`hal.planning.costs_limits`. Which nodes and values :mod:`hal.planning.costs_units`.
The problem's times are nanoseconds, its energies millijoules, its errors squares of relative L2 errors.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hal.errors import TargetError, UserError, problems
from hal.planning.costs_limits import capacities, live_bytes_of, squared_errors, weight_bytes_of, workspace_of
from hal.planning.costs_links import Handoffs, Links, Place, handoffs, only_whole, with_extras
from hal.planning.costs_switching import Switches
from hal.planning.costs_times import Times, shares_of, times_of, whole_times
from hal.planning.costs_units import Placeable, placeable
from hal.planning.problem import OBJECTIVES, Assignment, Floats, Problem
from hal.planning.twins import SPINNING, plain_twin
from hal.records.facts import ModelFacts
from hal.records.machine import Link, Load, MachineProfile
from hal.records.plan import BoundaryCost, Constraints
from hal.records.profile import Profile, TargetProfile
from hal.records.targets import Device, Target

#: How much faster a model must be with all threads than with one, for them to be worth waking in a part.
#: Source: measured here, on two cores. Waking one costs 20 to 50 us; two parts of 220 us on OpenVINO took
#: twice as long in turn with two threads each as with one, though alone they took the same.
_THREADS_HELP = 1.25


@dataclass(frozen=True)
class Modelled:
    """A problem, and what its numbers stand for.

    Attributes:
        problem: The problem.
        profile: It was made from.
        facts: Of the profile's model.
        constraints: What was asked.
        placed: Units and values, by the problem's numbers.
        places: Where each target computes, by the problem's numbers.
        excluded: Targets that are not in the problem, and why.
        links: That its costs used.
        estimated: Whether any cost is not measured.
        notes: What the reader of a plan should know.
        switches: What taking turns costs.
        least_switch: float64[t]: the part of the problem's calls that stands for it, ns.
        only_whole: Numbers of the targets that are for the whole model alone.
    """

    problem: Problem
    profile: Profile
    facts: ModelFacts
    constraints: Constraints
    placed: Placeable
    places: tuple[Place, ...]
    excluded: dict[str, str]
    links: tuple[Link, ...]
    estimated: bool
    notes: tuple[str, ...]
    switches: Switches
    least_switch: Floats
    only_whole: frozenset[int]

    def carried_out(self, assignment: Assignment) -> Problem:
        """The problem in which an assignment's partitions take what their order makes of them.

        In place of the least that a change of target costs, the first unit of each partition has what its
        turn costs; see :mod:`hal.planning.costs_switching`. Only this assignment is to be carried out in it.

        Args:
            assignment: Of the problem's units.
        """
        problem = self.problem
        if not self.switches:
            return problem
        _, first = np.unique(assignment.partition, return_index=True)
        targets = assignment.target[first]
        taken = problem.time[np.arange(problem.n_units), assignment.target]
        computing = np.bincount(assignment.partition, taken)
        n_nodes = np.bincount(assignment.partition, [len(unit.nodes) for unit in self.placed.units])
        loads = [Load(int(n), float(ns)) for n, ns in zip(n_nodes, computing, strict=True)]
        time = problem.time.copy()
        time[first, targets] += self.switches.extra_ns(targets.tolist(), loads)
        return dataclasses.replace(problem, time=time, call=problem.call - self.least_switch)

    @property
    def is_imagined(self) -> bool:
        """Whether no target was run."""
        timings = [target.timing for target in self.profile.targets if target.timing]
        return bool(timings) and not any(timing.n for timing in timings)

    @property
    def machine(self) -> str:
        """Where costs came from, in words."""
        if not self.is_imagined:
            return "measured"
        parts = (str(place.device.properties.get("profile", "")) for place in self.places)
        names = list(dict.fromkeys(filter(None, parts)))
        return "estimated" + (f" for {' + '.join(names)}" if names else "")


def model(
    profile: Profile,
    constraints: Constraints | None = None,
    *,
    extras: Sequence[BoundaryCost] = (),
    machine: MachineProfile | None = None,
) -> Modelled:
    """Make a problem from a profile.

    Args:
        profile: With facts; units, links and devices are its own.
        constraints: What is asked; its targets may be shell patterns, none means all.
        extras: What boundaries between partitions were measured to cost beyond the links.
        machine: Its links are taken in place of the profile's.

    Raises:
        UserError: The profile is too old, the objective cannot be had, or a constraint names nothing.
        TargetError: No target is left, or a constraint names one that is not there.
    """
    constraints = constraints or Constraints()
    if profile.facts is None or not profile.facts.nodes:
        raise UserError(
            f"the profile of {profile.model.name!r} says nothing of the model's nodes: it was written by hal "
            f"{profile.hal_version}; profile the model again"
        )
    _check(constraints)
    facts = profile.facts
    placed = placeable(facts, profile.units)
    chosen, excluded = _chosen(profile, constraints)
    places = tuple(_place(profile, target.target) for target in chosen)
    links = Links(machine.links if machine is not None else profile.links, places)
    given = [producer < 0 for producer in placed.producer]
    found = handoffs(places, links, placed.n_bytes, given)
    times, guessed = _times(chosen, places, facts, placed, links, found)
    names = tuple(target.target for target in chosen)
    found = with_extras(found, placed.values, names, extras)
    for at, one in enumerate(times):
        if one.is_whole:
            taken = chosen[at].timing
            only_whole(found, at, given, placed.is_output, float(taken.median_ns) if taken else 0.0)
    switches = Switches(machine.links if machine is not None else profile.links, places)
    least = np.where([one.is_whole for one in times], 0.0, switches.least_ns())
    times = [one._replace(call=one.call + extra) for one, extra in zip(times, least.tolist(), strict=True)]
    problem = _problem(chosen, places, facts, placed, times, found, constraints)
    problem = _pinned(problem, placed, constraints)
    return Modelled(
        problem=problem,
        profile=profile,
        facts=facts,
        constraints=constraints,
        placed=placed,
        places=places,
        excluded=excluded,
        links=tuple(links.used.values()),
        estimated=bool(guessed or links.guessed or any(t.timing and not t.timing.n for t in chosen)),
        notes=tuple(_notes(names, times, guessed, links)),
        switches=switches,
        least_switch=least,
        only_whole=frozenset(at for at, one in enumerate(times) if one.is_whole),
    )


def _check(constraints: Constraints) -> None:
    found = []
    if constraints.objective not in OBJECTIVES:
        found.append(
            f"objective {constraints.objective!r} is unknown; expected one of {', '.join(OBJECTIVES)}"
        )
    if not constraints.max_error >= 0:
        found.append(f"max_error is {constraints.max_error}; expected 0 or more")
    if constraints.max_partitions < 0:
        found.append(f"max_partitions is {constraints.max_partitions}; expected 0 for any number, or more")
    if found:
        raise UserError(problems("the plan cannot be made as asked for", found))


def _chosen(profile: Profile, constraints: Constraints) -> tuple[list[TargetProfile], dict[str, str]]:
    """Targets of the problem; the others with the reason."""
    by_name = {target.target: target for target in profile.targets}
    for pattern in constraints.targets:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in by_name):
            raise TargetError(
                f"no target {pattern!r} is in the profile of {profile.model.name!r}; there are "
                f"{', '.join(by_name) or 'none'}; profile the model on it first"
            )
    chosen, excluded = [], {}
    for name, target in by_name.items():
        twin = plain_twin(name)
        wanted = not constraints.targets or any(
            fnmatch.fnmatchcase(one, pattern)
            for pattern in constraints.targets
            for one in (name, twin)
            if one is not None
        )
        reason = "" if wanted else "it was not asked for"
        reason = reason or _unusable(target, constraints)
        if reason:
            excluded[name] = reason
        else:
            chosen.append(target)
    if not chosen:
        found = [f"{name}: {reason}" for name, reason in excluded.items()] or ["the profile has no targets"]
        raise TargetError(problems(f"no target is left to place {profile.model.name!r} on", found))
    return chosen, excluded


def _unusable(target: TargetProfile, constraints: Constraints) -> str:
    """Why a target cannot be used; empty where it can."""
    precision = Target.parse(target.target).configuration.precision
    if target.status != "ok":
        return f"{target.status}: {target.reason}" if target.reason else target.status
    if target.timing is None:
        return "its time was not measured"
    if precision != "fp32" and constraints.max_error == 0:
        return f"it computes in {precision}, and no error is allowed"
    if precision != "fp32" and math.isfinite(constraints.max_error):
        if target.relative_l2 is None:
            return f"it computes in {precision}, and its error was not measured"
        if not math.isfinite(target.relative_l2):
            return "its error is infinite"
    if constraints.objective == "energy" and target.energy is None:
        return "its energy was not measured: the device does not tell, or it may not be read"
    return ""


def _only_whole(chosen: Sequence[TargetProfile]) -> set[str]:
    """Targets that a twin stands in for where they are not to compute the whole model.

    One with sleeping threads does for the target whose threads spin; one with a single thread does where
    more threads make the model less than :data:`_THREADS_HELP` times as fast.
    """
    taken = {target.target: target.timing.median_ns for target in chosen if target.timing is not None}
    found = set()
    for name, own_ns in taken.items():
        twin = plain_twin(name)
        if twin is not None and (
            SPINNING in dict(Target.parse(name).configuration.options)
            or own_ns <= _THREADS_HELP * taken.get(twin, 0)
        ):
            found.add(twin)
    return found


def _place(profile: Profile, name: str) -> Place:
    target = Target.parse(name)
    mine = [d for d in profile.devices if (d.id, d.variant) == (target.device, target.variant)]
    device = next(iter(mine or [d for d in profile.devices if d.id == target.device]), None)
    if device is None:
        kind = target.device.partition(":")[0]
        pool = "host" if kind == "cpu" else target.device
        device = Device(
            id=target.device, name=target.device, kind=kind, silicon=target.device, memory_pool=pool
        )
    return Place(target, device)


def _times(
    chosen: Sequence[TargetProfile],
    places: Sequence[Place],
    facts: ModelFacts,
    placed: Placeable,
    links: Links,
    found: Handoffs,
) -> tuple[list[Times], list[str]]:
    """Times of each target, and the targets whose call is an estimate."""
    given = np.array([producer < 0 for producer in placed.producer], np.bool_)
    wanted = np.array(placed.is_output, np.bool_)
    twins = _only_whole(chosen)
    known: dict[str, Times] = {}
    ends: list[tuple[float, float]] = []
    guessed = []
    for at, (target, place) in enumerate(zip(chosen, places, strict=True)):
        assert target.timing is not None
        call, is_guess = links.call_ns(place)
        if is_guess:
            guessed.append(target.target)
        # A time that was estimated has no transfers in it.
        ends_ns = (
            float(found.receive[given, at].sum() + found.send[wanted, at].sum()) if target.timing.n else 0.0
        )
        ends.append((call, ends_ns))
        times = times_of(target, facts, placed.units, call, ends_ns)
        if times is not None:
            known[target.target] = times._replace(is_whole=target.target in twins)
    shares = shares_of(placed.units, known)
    for target, (call, ends_ns) in zip(chosen, ends, strict=True):
        if target.target not in known and target.timing is not None:
            known[target.target] = whole_times(float(target.timing.median_ns), shares, call, ends_ns)
    return [known[target.target] for target in chosen], guessed


def _problem(
    chosen: Sequence[TargetProfile],
    places: Sequence[Place],
    facts: ModelFacts,
    placed: Placeable,
    times: Sequence[Times],
    found: Handoffs,
    constraints: Constraints,
) -> Problem:
    n, t = len(placed.units), len(chosen)
    silicons = list(dict.fromkeys(place.device.silicon for place in places))
    pools = list(dict.fromkeys(place.device.memory_pool for place in places))
    time = np.stack([one.time for one in times], axis=1)
    reasons: dict[tuple[int, int], str] = {}
    for at, target in enumerate(chosen):
        for refused in target.refused:
            unit = placed.home.get(refused.node)
            if unit is not None:
                time[unit, at] = np.inf
                reasons[unit, at] = f"{refused.op} {refused.node} is refused: {refused.reason}"
    power, energy = np.zeros(t), np.zeros((n, t))
    error = np.zeros((n, t))
    weights = weight_bytes_of(facts, placed.units)
    live = live_bytes_of(facts, placed.units)
    workspace = np.zeros((n, t), np.int64)
    for at, target in enumerate(chosen):
        if target.energy is not None and target.timing is not None:
            power[at] = target.energy.per_run_mj / target.timing.median_ns
            energy[:, at] = power[at] * times[at].time
        if places[at].target.configuration.precision != "fp32":
            error[:, at] = squared_errors(target, placed.units)
        workspace[:, at] = live + workspace_of(target, weights, live)
    readers = [(value, unit) for value, units in enumerate(placed.readers) for unit in units]
    return Problem(
        time=time,
        silicon=np.array([silicons.index(place.device.silicon) for place in places]),
        pool=np.array([pools.index(place.device.memory_pool) for place in places]),
        producer=np.array(placed.producer, np.int64),
        read_tensor=np.array([value for value, _ in readers], np.int64),
        read_unit=np.array([unit for _, unit in readers], np.int64),
        is_output=np.array(placed.is_output, np.bool_),
        transfer=found.transfer,
        send=found.send,
        receive=found.receive,
        call=np.array([one.call for one in times]),
        energy=energy,
        power=power,
        weight_bytes=np.repeat(weights[:, None], t, axis=1),
        workspace_bytes=workspace,
        error=error,
        capacity=capacities(places, pools, constraints.memory_bytes),
        link=found.link,
        max_error=constraints.max_error**2,
        max_partitions=constraints.max_partitions,
        objective=constraints.objective,
        unit_names=tuple(unit.name for unit in placed.units),
        target_names=tuple(target.target for target in chosen),
        pool_names=tuple(pools),
        silicon_names=tuple(silicons),
        reasons=reasons,
    )


def _pinned(problem: Problem, placed: Placeable, constraints: Constraints) -> Problem:
    """The problem with units kept on the targets that they, or nodes of theirs, are pinned to."""
    if not constraints.pinned:
        return problem
    number = {unit.name: at for at, unit in enumerate(placed.units)}
    found, pins = [], dict[int, tuple[str, str]]()
    for name, target in constraints.pinned.items():
        unit = placed.home.get(name, number.get(name))
        if unit is None:
            found.append(f"{name!r} is neither a unit nor a node that runs")
        elif target not in problem.target_names:
            names = ", ".join(problem.target_names)
            found.append(f"{name!r} is pinned to {target}, which cannot be used; expected one of {names}")
        elif pins.setdefault(unit, (name, target))[1] != target:
            other, there = pins[unit]
            found.append(
                f"{name!r} is pinned to {target} and {other!r} to {there}, but both are in unit "
                f"{placed.units[unit].name!r}, which is placed whole"
            )
    if found:
        raise UserError(problems("nodes cannot be pinned as asked for", found))
    time: Floats = problem.time.copy()
    reasons = dict(problem.reasons)
    for unit, (name, target) in pins.items():
        for at, other in enumerate(problem.target_names):
            # Plans of several partitions turn spinning off.
            if other != target and plain_twin(other) != target:
                time[unit, at] = np.inf
                reasons[unit, at] = f"{name} is pinned to {target}"
    return problem.replace(time=time, reasons=reasons)


def _notes(names: Sequence[str], times: Sequence[Times], guessed: Sequence[str], links: Links) -> list[str]:
    found = []
    twins = {plain_twin(name) for name in names}
    for name, one in zip(names, times, strict=True):
        if one.is_whole and name in twins:
            found.append(
                f"{name} is offered for the whole model: for parts it has one thread, or none that spin"
            )
        elif one.is_whole:
            found.append(f"{name} is offered for the whole model: its kernels do not tell what a part costs")
        if one.spread > 0:
            share = one.spread / max(float(one.time.sum()), 1.0)
            found.append(
                f"{name}: {share:.1%} of its time is in kernels of no unit and counts for what ran next"
            )
    if guessed:
        found.append(
            f"what a call takes was not measured on {', '.join(guessed)} and is estimated; hal devices "
            "--measure measures it"
        )
    if links.guessed:
        pairs = ", ".join(f"{source} to {destination}" for source, destination in links.guessed)
        found.append(f"handoffs were not measured and are estimated: {pairs}")
    return found
