"""One profile from what was measured now and what was measured earlier."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from hal.backend import Target
from hal.graph.model import Graph
from hal.planning.units import remarks, units
from hal.profiling.discovery import Discovery
from hal.profiling.machine import public
from hal.profiling.privacy import scrub
from hal.profiling.ratios import against_fastest
from hal.profiling.roofline import limited, limited_unit
from hal.profiling.sources import Subject
from hal.records.facts import ModelFacts
from hal.records.machine import Environment, MachineProfile
from hal.records.profile import SCHEMA_VERSION, ModelInfo, Profile, TargetProfile
from hal.version import __version__

_REFERENCE = "onnx ReferenceEvaluator, heavy operators in float64"


def assemble(
    model: ModelInfo,
    facts: ModelFacts,
    discovery: Discovery,
    environment: Environment,
    targets: Sequence[TargetProfile],
    machine: MachineProfile | None,
    notes: Sequence[str],
) -> Profile:
    """The record.

    Args:
        model: What was measured.
        facts: Of its nodes.
        discovery: Devices and plugins.
        environment: Of this machine.
        targets: In the order asked for.
        machine: Ceilings and links, where they are known.
        notes: What the reader should know.
    """
    unusable = [
        f"{device.id} ({backend}) cannot be used: {scrub(device.unavailable)}"
        for backend, device in discovery.devices
        if device.unavailable
    ]
    ceilings = machine.ceilings if machine else ()
    targets = [
        target
        if target.kernels is None
        else msgspec.structs.replace(target, kernels=limited(target.kernels, ceilings, target.target))
        for target in targets
    ]
    tables = {target.target: target.kernels for target in targets if target.kernels and target.status == "ok"}
    found = units(facts, tables)
    return Profile(
        schema_version=SCHEMA_VERSION,
        hal_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        environment=environment,
        plugins=discovery.plugins,
        devices=tuple(public(device) for _, device in discovery.devices),
        targets=tuple(targets),
        ratios=against_fastest(targets),
        reference=_REFERENCE if any(target.errors for target in targets) else "",
        notes=(*notes, *remarks(facts, found, tables), *unusable),
        facts=facts,
        units=tuple(limited_unit(unit, ceilings) for unit in found),
        ceilings=ceilings,
        links=machine.links if machine else (),
    )


def merge(
    wanted: Sequence[Target], measured: Mapping[str, TargetProfile], known: Mapping[str, TargetProfile]
) -> list[TargetProfile]:
    """Targets in the order asked for; groups of earlier runs get numbers of their own.

    Only targets of one group ran side by side, so numbers must never meet by chance.

    Args:
        wanted: All targets.
        measured: Measured now, in groups numbered from 0.
        known: Measured earlier, with groups that differ where their runs did.
    """
    first = 1 + max((t.timing.group for t in known.values() if t.timing), default=-1)
    found = []
    for target in map(str, wanted):
        record = known.get(target) or measured[target]
        if target not in known and record.timing is not None:
            timing = msgspec.structs.replace(record.timing, group=record.timing.group + first)
            record = msgspec.structs.replace(record, timing=timing)
        found.append(record)
    return found


def model_info(subject: Subject) -> ModelInfo:
    """The model and its inputs, as the record tells them."""
    return graph_info(subject.graph, subject.inputs_from, _digest(subject))


def graph_info(graph: Graph, inputs_from: str, inputs_digest: str = "") -> ModelInfo:
    """A model as records tell of it.

    Args:
        graph: The bound graph.
        inputs_from: Where its inputs come from, in words.
        inputs_digest: Of their values; empty where there are none.
    """
    return ModelInfo(
        name=graph.name,
        digest=graph.digest,
        opset=graph.opset,
        n_nodes=len(graph.nodes),
        weight_bytes=graph.weight_bytes,
        inputs=graph.signature.inputs,
        outputs=graph.signature.outputs,
        inputs_from=inputs_from,
        inputs_digest=inputs_digest,
    )


def _digest(subject: Subject) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(subject.named_inputs.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        # Tensors of text hold objects, which have no bytes of their own.
        digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.hexdigest()
