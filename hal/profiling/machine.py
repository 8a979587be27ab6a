"""The profile of a machine: its ceilings and links, measured once per environment, whatever the model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from hal import plugins
from hal.profiling import environment
from hal.profiling.ceilings import measure_ceilings
from hal.profiling.chain import Stage
from hal.profiling.discovery import Discovery
from hal.profiling.links import measure_links
from hal.profiling.privacy import scrub
from hal.profiling.progress import Progress
from hal.records.machine import MACHINE_SCHEMA_VERSION, MachineProfile
from hal.records.targets import Configuration, Device, Target, place_name
from hal.version import __version__
from hal.worker import Deadlines

_S = 1_000_000_000
#: The graphs are small, so a child that takes longer hangs. Source: the longest seen on two busy cores was
#: 12 s, for the imports of four children that start together.
_DEADLINES = Deadlines(open_ns=60 * _S, discover_ns=60 * _S, compile_ns=30 * _S, run_ns=30 * _S)


def measure_machine(
    discovery: Discovery,
    *,
    targets: Sequence[str] | None = None,
    links: bool = True,
    deadlines: Deadlines | None = None,
    progress: Progress | None = None,
) -> MachineProfile:
    """Measure what the devices can do, and what it costs to pass tensors between the backends.

    A target or a pair that fails, crashes or hangs costs itself: it is left out with a note, or is a link
    with a reason.

    Args:
        discovery: What is here.
        targets: Targets or shell patterns of them; None for all.
        links: Whether to measure the handoffs too, which takes most of the time.
        deadlines: Of the children's steps; None for ones that suit small graphs.
        progress: Told of what happens.

    Raises:
        TargetError: No target fits.
    """
    deadlines = deadlines or _DEADLINES
    stages = _stages(discovery, discovery.targets(targets))
    ceilings, notes = measure_ceilings(stages, deadlines=deadlines, progress=progress)
    ends = [stage for stage, _ in stages]
    found = measure_links(ends, deadlines=deadlines, progress=progress) if links else ()
    return MachineProfile(
        schema_version=MACHINE_SCHEMA_VERSION,
        hal_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment.describe(discovery.installed),
        devices=tuple(public(device) for _, device in discovery.devices),
        ceilings=ceilings,
        links=found,
        notes=notes,
    )


def public(device: Device) -> Device:
    """A device for a record: its texts without host, user and path names."""
    properties = {
        name: scrub(value) if isinstance(value, str) else value for name, value in device.properties.items()
    }
    return msgspec.structs.replace(device, unavailable=scrub(device.unavailable), properties=properties)


def _stages(discovery: Discovery, targets: Sequence[Target]) -> list[tuple[Stage, list[Target]]]:
    """The devices of backends that the targets lie on, each with its targets, fp32 first.

    Options are left out: what a machine can do is measured with each backend's defaults.
    """
    grouped: dict[str, dict[str, Target]] = {}
    for target in targets:
        plain = msgspec.structs.replace(
            target, configuration=Configuration.of(target.configuration.precision)
        )
        place = place_name(target.device, target.backend, target.variant)
        grouped.setdefault(place, {})[str(plain)] = plain
    stages = []
    for name, found in grouped.items():
        group = sorted(found.values(), key=lambda target: target.configuration.precision != "fp32")
        device = discovery.device(group[0])
        stages.append((Stage(name=name, ref=plugins.reference(group[0].backend), device=device), group))
    return stages
