"""What a model would take on a machine that is not here: a profile of estimates.

Where kernels of a machine are stored, :mod:`hal.profiling.predict_target` tells from them; else each kernel
takes a launch and the roofline of its device::

    launch_ns + max(operations / flops_per_s, bytes / bytes_per_s)

with the kernels of :mod:`hal.graph.fusion`, and each call of a target ``call_ns``. Both overheads are
properties of the device in its machine profile, which says where they come from, or the ones below. Bytes are
those of the graph's own types, in whatever precision a target computes.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 2009.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from hal import demo
from hal.errors import TargetError
from hal.graph.facts import facts
from hal.graph.fusion import is_view, kernels
from hal.graph.model import Graph
from hal.planning.costs_times import CALL_NS
from hal.planning.units import remarks, units
from hal.profiling import predict
from hal.profiling.assembly import graph_info
from hal.profiling.predict_target import LAUNCH_NS, ROOFLINE_HIGH, ROOFLINE_LOW
from hal.profiling.preflight import preflight
from hal.profiling.roofline import ceiling_for, limited_unit
from hal.records.estimate import ModelEstimate
from hal.records.facts import ModelFacts, NodeFact
from hal.records.machine import Ceiling, MachineProfile
from hal.records.profile import (
    SCHEMA_VERSION,
    KernelCost,
    KernelTable,
    OutputError,
    Profile,
    TargetProfile,
    Timing,
)
from hal.records.targets import Device, Target
from hal.version import __version__

#: Says in a record that nothing was run.
ESTIMATED = "estimated: nothing was run"
#: Unit roundoff by precision, the least relative error of a value that is stored in it.
#: Source: Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 2.1: 2^-p for p digits.
ROUNDOFF = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}
#: Types of kernels that were never run; a view only renames memory.
_ESTIMATE, _VIEW = "estimate", "view"
_WIDTH = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}


def planned(model: str | Path | Graph, shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """Read a model for planning: shapes count, weights are neither read nor have to be there.

    Args:
        model: A file, ``demo:NAME`` or a Graph.
        shapes: Shapes of inputs with free dimensions.

    Raises:
        ModelError: It cannot be read.
        InputError: Shapes do not fit, or dimensions stay free.
    """
    if isinstance(model, Graph):
        return model.bind(shapes or {})
    if str(model).startswith(predict.DEMO):
        found = demo.find(str(model).removeprefix(predict.DEMO))
        return Graph.load(found.model, name=str(model)).bind(shapes or found.shapes)
    preflight(Path(model), shapes or {}, has_weights=False)
    return Graph.load(Path(model), has_weights=False).bind(shapes or {})


def estimated(
    model: str | Path | Graph,
    machine: MachineProfile,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    known: Mapping[str, predict.Machine] | None = None,
) -> Profile:
    """A profile of a model on a machine that is not here. Nothing is run.

    Every target of it is marked: its timing is of no runs, and so are the costs of its units.

    Args:
        model: As for :func:`planned`.
        machine: Made by :func:`hal.records.machines.combine`.
        shapes: Shapes of inputs with free dimensions.
        known: What is stored of the machines that this one was combined from, by the name of their profile;
            see :func:`stored`.

    Raises:
        ModelError: The model cannot be read.
        InputError: Shapes do not fit, or dimensions stay free.
        TargetError: The machine has no ceiling, and no kernels of its devices are stored.
    """
    graph = planned(model, shapes)
    nodes = facts(graph)
    tables = _from_kernels(nodes, graph, machine, known or {})
    groups, folded = kernels(nodes)
    costs = [_kernel(order, group, nodes) for order, group in enumerate(groups)]
    for target, ceiling, device in _roofs(machine):
        if str(target) not in tables:
            tables[str(target)] = _from_roofline(costs, folded, ceiling, device)
    if not tables:
        names = ", ".join(dict.fromkeys(device.id for device in machine.devices)) or "none"
        raise TargetError(
            f"nothing tells what {graph.name!r} would take: the machine profile has no ceilings of its "
            f"devices ({names}) and no kernels of them are stored; measure it there with hal devices "
            "--measure, or write ceilings from a data sheet into it"
        )
    plain = {target: table for target, (table, _, _) in tables.items()}
    own = _own_roundoff(graph)
    found = units(nodes, plain)
    return Profile(
        schema_version=SCHEMA_VERSION,
        hal_version=__version__,
        created=machine.created,
        model=graph_info(graph, "shapes alone"),
        environment=machine.environment,
        plugins=(),
        devices=machine.devices,
        targets=tuple(
            TargetProfile(
                target=target,
                status="ok",
                timing=_timing(table.total_ns + between_ns),
                errors=_errors(graph, own, target, len(table.kernels)),
                kernels=table,
                measured=machine.created,
            )
            for target, (table, between_ns, _) in tables.items()
        ),
        notes=(
            f"{ESTIMATED}; each time is a guess that may be off by a factor",
            *_sources(tables),
            *(remarks(nodes, found, plain) if known else ()),
            *machine.notes,
        ),
        facts=nodes,
        units=tuple(limited_unit(unit, machine.ceilings) for unit in found),
        ceilings=machine.ceilings,
        links=machine.links,
    )


def stored(machines: Sequence[tuple[str, MachineProfile]]) -> dict[str, predict.Machine]:
    """What the user's store holds of machines, by the names that :func:`~hal.records.machines.combine` uses.

    Raises:
        StorageError: The store cannot be read.
    """
    found = {}
    for name, profile in machines:
        mine = predict.known_machines(profile.environment)
        if mine and mine[0].environment == profile.environment:
            found[name] = mine[0]
    return found


def call_ns(device: Device) -> int:
    """What each call of a target of a device takes beside its kernels."""
    return int(device.properties.get("call_ns", CALL_NS))


def launch_ns(device: Device) -> int:
    """What each kernel takes beside its roofline."""
    return int(device.properties.get("launch_ns", LAUNCH_NS))


#: Kernels of a target, the time of a run in none of them, and where they come from.
_Told = tuple[KernelTable, int, str]


def _from_kernels(
    nodes: ModelFacts, graph: Graph, machine: MachineProfile, known: Mapping[str, predict.Machine]
) -> dict[str, _Told]:
    """Targets with stored kernels, by their names on the imagined machine."""
    found: dict[str, _Told] = {}
    for device in machine.devices:
        here = known.get(str(device.properties.get("profile", "")))
        was = str(device.properties.get("was", device.id))
        for name in here.targets if here else ():
            target = Target.parse(name)
            if here is None or target.device != was or target.variant != device.variant:
                continue
            moved = str(msgspec.structs.replace(target, device=device.id))
            if moved in found:
                continue
            estimate = predict.predictor(name, here).model(nodes, graph.name, graph.digest)
            found[moved] = (_table(estimate), max(estimate.between_ns, 0), estimate.total.source)
    return found


def _sources(tables: Mapping[str, _Told]) -> list[str]:
    """Where the targets' figures come from, each source once."""
    named: dict[str, list[str]] = {}
    for target, (_, _, source) in tables.items():
        named.setdefault(source, []).append(target)
    return [f"{', '.join(targets)}: {source}" for source, targets in named.items()]


def _roofs(machine: MachineProfile) -> list[tuple[Target, Ceiling, Device]]:
    """Each target that reached a ceiling, or is said to in a data sheet."""
    by_id = {device.id: device for device in machine.devices}
    found = []
    for ceiling in machine.ceilings:
        target = Target.parse(ceiling.compute_target)
        usable = ceiling_for([ceiling], ceiling.compute_target)
        if usable is not None and target.device in by_id:
            found.append((target, usable, by_id[target.device]))
    return found


def _from_roofline(
    costs: Sequence[KernelCost], folded: Sequence[str], ceiling: Ceiling, device: Device
) -> _Told:
    found = []
    for cost in costs:
        computing_ns = (cost.flops or 0) / ceiling.flops_per_s * 1e9
        moving_ns = (cost.moved_bytes or 0) / ceiling.bytes_per_s * 1e9
        taken = 0.0 if cost.type == _VIEW else launch_ns(device) + max(computing_ns, moving_ns)
        found.append(
            msgspec.structs.replace(
                cost,
                median_ns=round(taken),
                p10_ns=round(taken * ROOFLINE_LOW),
                p90_ns=round(taken * ROOFLINE_HIGH),
            )
        )
    source = f"kernel by kernel a launch of {launch_ns(device)} ns and the roofline of its device"
    return _summed(found, folded), call_ns(device), source


def _kernel(order: int, group: Sequence[NodeFact], nodes: ModelFacts) -> KernelCost:
    """What a kernel has to do, without its time."""
    names = tuple(node.name for node in group)
    work = nodes.work(names)
    return KernelCost(
        name=names[0],
        type=_VIEW if is_view(group) else _ESTIMATE,
        nodes=names,
        ops=tuple(node.op for node in group),
        device="",
        median_ns=0,
        p10_ns=0,
        p90_ns=0,
        n=0,
        order=order,
        flops=work.flops,
        moved_bytes=work.moved_bytes,
        weight_bytes=work.weight_bytes,
        activation_bytes=work.activation_bytes,
    )


def _table(estimate: ModelEstimate) -> KernelTable:
    costs = [
        KernelCost(
            name=group.nodes[0],
            type=_ESTIMATE,
            nodes=group.nodes,
            ops=group.ops,
            device="",
            median_ns=group.cost.median_ns,
            p10_ns=group.cost.low_ns,
            p90_ns=group.cost.high_ns,
            n=0,
            order=order,
            flops=group.flops,
            moved_bytes=group.moved_bytes,
        )
        for order, group in enumerate(estimate.groups)
    ]
    return _summed(costs, estimate.free)


def _summed(costs: Sequence[KernelCost], folded: Sequence[str]) -> KernelTable:
    total = sum(cost.median_ns for cost in costs)
    return KernelTable(
        kernels=tuple(sorted(costs, key=lambda cost: -cost.median_ns)),
        total_ns=total,
        unattributed_ns=0,
        instrumented_ns=total,
        folded=tuple(folded),
    )


def _timing(taken_ns: int) -> Timing:
    return Timing(
        median_ns=taken_ns,
        p10_ns=taken_ns,
        p90_ns=taken_ns,
        n=0,
        interval_low_ns=taken_ns,
        interval_high_ns=taken_ns,
        stable=False,
        reason=ESTIMATED,
    )


def _own_roundoff(graph: Graph) -> float:
    """Of the least precise type that the graph has weights of."""
    dtypes = {value.dtype for value in graph.model.graph.initializers.values() if value.dtype is not None}
    names = {dtype.name for dtype in dtypes}
    return max((ROUNDOFF[_WIDTH[name]] for name in names if name in _WIDTH), default=0.0)


def _errors(graph: Graph, own: float, target: str, n_kernels: int) -> tuple[OutputError, ...]:
    """What rounding in a precision that is less than the graph's own adds up to.

    Source: Higham, Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41
    (2019): n rounding errors u grow like sqrt(n) u.
    """
    roundoff = ROUNDOFF[Target.parse(target).configuration.precision]
    error = roundoff * n_kernels**0.5 if roundoff > own else 0.0
    return tuple(
        OutputError(name=spec.name, relative_l2=error, max_abs=None, sqnr_db=None)
        for spec in graph.signature.outputs
    )
