"""What a model would take on targets that were measured with other models or at other shapes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hal import demo, plugins
from hal.errors import ProfileNotFound, TargetError
from hal.graph.facts import facts
from hal.graph.model import Graph
from hal.profiling import environment
from hal.profiling.predict_past import lone_records, past_runs
from hal.profiling.predict_target import TargetPredictor
from hal.profiling.preflight import preflight
from hal.profiling.roofline import ceiling_for
from hal.profiling.store import Store
from hal.records.estimate import ModelEstimate
from hal.records.kernels import KernelRecord
from hal.records.machine import Ceiling, Environment
from hal.records.profile import Profile

#: What names of the demo models begin with.
DEMO = "demo:"
#: Newest profiles that are read whole. Of older ones the kernels alone count.
#: Source: reading one takes about 10 ms, and nobody waits longer than a second gladly.
_N_PROFILES = 100


@dataclass(frozen=True)
class Machine:
    """What was measured in one environment.

    Attributes:
        environment: Machine and software.
        profiles: Newest first.
        ceilings: Of its devices.
        records: Kernels of older profiles too.
    """

    environment: Environment
    profiles: tuple[Profile, ...]
    ceilings: tuple[Ceiling, ...] = ()
    records: tuple[KernelRecord, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets with a measured run."""
        names = (
            part.target
            for profile in self.profiles
            for part in profile.targets
            if part.status == "ok" and part.kernels is not None
        )
        return tuple(dict.fromkeys([*names, *(record.target for record in self.records)]))


def predict(
    model: str | Path | Graph,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    targets: Sequence[str] | None = None,
    machines: Sequence[Machine] | None = None,
) -> tuple[ModelEstimate, ...]:
    """Estimate a model end to end, fastest target first. Nothing is run.

    Args:
        model: A file, ``demo:NAME`` or a Graph.
        shapes: Shapes of inputs with free dimensions.
        targets: Targets or shell patterns of them; None for all that were measured here. A whole name
            that was not measured is estimated from the roofline of its device, where that is known.
        machines: What to predict from; None for what the store holds, see :func:`known_machines`.

    Raises:
        ModelError: The model cannot be read.
        InputError: Shapes do not fit, or dimensions stay free.
        TargetError: Nothing is known of a target; the text says which command to run.
        StorageError: The store cannot be read.
    """
    graph = bound(model, shapes)
    known = facts(graph)
    here = environment.describe(plugins.installed())
    machines = known_machines(here) if machines is None else machines
    found = []
    for target, machine in _chosen(targets, machines, here):
        estimate = predictor(target, machine).model(known, graph.name, graph.digest)
        notes = (*_strange(machine.environment, here), *estimate.notes)
        found.append(msgspec.structs.replace(estimate, notes=notes))
    return tuple(sorted(found, key=lambda estimate: estimate.total.median_ns))


def predictor(target: str, machine: Machine) -> TargetPredictor:
    """What a machine's figures say of one of its targets.

    Raises:
        TargetError: They say nothing; the text says which command to run.
    """
    runs = past_runs(machine.profiles, target)
    lone = lone_records((record for record in machine.records if record.target == target), runs)
    return TargetPredictor(target, runs, lone, ceiling_for(machine.ceilings, target))


def bound(model: str | Path | Graph, shapes: Mapping[str, Sequence[int]] | None) -> Graph:
    """Read a model and bind its shapes, without making inputs: those may be larger than this machine.

    Raises:
        ModelError: It cannot be read.
        InputError: Shapes do not fit, or dimensions stay free.
    """
    if isinstance(model, str) and model.startswith(DEMO):
        found = demo.find(model.removeprefix(DEMO))
        return Graph.load(found.model, name=model).bind(shapes or found.shapes)
    if not isinstance(model, Graph):
        preflight(Path(model), shapes or {})
        model = Graph.load(model)
    return model.bind(shapes or {})


def known_machines(here: Environment) -> tuple[Machine, ...]:
    """What the user's store holds, by environment: this one first, then the most recently measured.

    Raises:
        StorageError: The store cannot be read.
    """
    with Store.open() as store:
        profiles = []
        for summary in store.summaries(limit=_N_PROFILES):
            try:
                profiles.append(store.get(summary.id))
            except ProfileNotFound:  # deleted by another process just now
                continue
        grouped = group_machines(profiles, here)
        return tuple(
            Machine(
                environment=machine.environment,
                profiles=machine.profiles,
                ceilings=machine.ceilings or _measured_ceilings(store, machine.environment),
                records=tuple(store.kernels(environment=machine.environment)),
            )
            for machine in grouped
        )


def group_machines(profiles: Iterable[Profile], here: Environment) -> tuple[Machine, ...]:
    """Profiles by environment: this one first, then the most recently measured."""
    groups: list[list[Profile]] = []
    for profile in sorted(profiles, key=lambda profile: profile.created, reverse=True):
        mine = next((group for group in groups if group[0].environment == profile.environment), None)
        if mine is None:
            groups.append([profile])
        else:
            mine.append(profile)
    groups.sort(key=lambda group: group[0].environment != here)
    return tuple(
        Machine(
            environment=group[0].environment,
            profiles=tuple(group),
            ceilings=next((profile.ceilings for profile in group if profile.ceilings), ()),
        )
        for group in groups
    )


def _measured_ceilings(store: Store, where: Environment) -> tuple[Ceiling, ...]:
    machine = store.machine(where)
    return machine.ceilings if machine is not None else ()


def _chosen(
    patterns: Sequence[str] | None, machines: Sequence[Machine], here: Environment
) -> list[tuple[str, Machine]]:
    """Each target with the first machine that knows it.

    Raises:
        TargetError: A pattern fits nothing that is known.
    """
    known: dict[str, Machine] = {}
    for machine in machines:
        for target in machine.targets:
            known.setdefault(target, machine)
    if not patterns:
        mine = {target: machine for target, machine in known.items() if machine.environment == here}
        chosen = mine or known
        if not chosen:
            raise TargetError(
                "no target is known: predictions are made from what was measured, and the store holds no "
                "profile with kernel times; run hal profile on other models, or on this one, first"
            )
        return list(chosen.items())
    found: dict[str, Machine] = {}
    for pattern in patterns:
        matches = {name: machine for name, machine in known.items() if fnmatch.fnmatchcase(name, pattern)}
        roofs = (machine for machine in machines if ceiling_for(machine.ceilings, pattern) is not None)
        roof = next(roofs, None)
        if not matches and roof is not None:
            matches = {pattern: roof}
        if not matches:
            raise TargetError(
                f"nothing is known of the target {pattern!r}: no kernel was measured on it and no ceiling of "
                f"its device; known are {', '.join(known) or 'none'}; run hal profile MODEL --target "
                f"{pattern!r} where the device is, and hal profiles import where that is another machine"
            )
        found.update(matches)
    return list(found.items())


def _strange(measured: Environment, here: Environment) -> list[str]:
    """A note where the figures come from another machine or other software."""
    fields = [
        field for field in Environment.__struct_fields__ if getattr(measured, field) != getattr(here, field)
    ]
    if not fields:
        return []
    if (measured.cpu, measured.n_usable_cpus) != (here.cpu, here.n_usable_cpus):
        return [f"for another machine: {measured.cpu}, {measured.n_usable_cpus} usable CPUs"]
    return [f"from figures taken when this machine differed in {', '.join(fields)}"]
