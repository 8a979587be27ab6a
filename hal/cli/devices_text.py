"""Devices as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from hal.cli.figures import NOTHING
from hal.cli.output import cell, line, table
from hal.records.machine import Handoff, Link, MachineProfile
from hal.records.targets import Device, OptionSpec
from hal.units import format_bytes, format_ns, format_rate

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hal.profiling import Discovery, Proof

#: Plugin, device id, variant.
Key = tuple[str, str, str]


class Listing(NamedTuple):
    """All that ``hal devices`` shows.

    Attributes:
        found: What the plugins told.
        proofs: By plugin, device and variant; empty with ``--no-proof``.
        machine: With ``--measure``: ceilings and links.
    """

    found: Discovery
    proofs: Mapping[Key, Proof]
    machine: MachineProfile | None = None

    @property
    def works(self) -> bool:
        """Whether a device is available and no proof failed."""
        usable = [device for _, device in self.found.devices if not device.unavailable]
        return bool(usable) and all(proof.ok for proof in self.proofs.values())


def devices_text(listing: Listing) -> Iterator[RenderableType]:
    """What ``hal devices`` prints."""
    made = table(
        ("device", "name"),
        ("backend", "name"),
        ("name", "text"),
        ("memory", "number"),
        ("precisions", "name"),
        ("state", "text"),
    )
    for plugin, device in listing.found.devices:
        made.add_row(
            cell(device.id, 20),
            cell(_backend(plugin, device), 30),
            cell(device.name, 60),
            cell("-" if device.memory_bytes is None else format_bytes(device.memory_bytes)),
            cell(" ".join(device.precisions), 20),
            _state(device, listing.proofs.get((plugin, device.id, device.variant))),
        )
    if listing.found.devices:
        yield made
    else:
        yield line(
            "no plugin found a device; hal plugins lists the plugins, hal doctor says what to do", "red"
        )
    for info in listing.found.plugins:
        if info.failure:
            yield line(f"plugin {info.name} failed: {info.failure}", "red")
    yield from _options(listing)
    if listing.machine is not None:
        yield from machine_text(listing.machine)


def machine_text(machine: MachineProfile) -> Iterator[RenderableType]:
    """Ceilings and links as tables."""
    yield line("")
    yield line("Ceilings, the most that was reached", "bold")
    made = table(
        ("device", "name"),
        ("precision", "name"),
        ("compute", "number"),
        ("by", "name"),
        ("memory", "number"),
        ("by", "name"),
    )
    for ceiling in machine.ceilings:
        made.add_row(
            cell(ceiling.device, 20),
            cell(ceiling.precision),
            cell(format_rate(ceiling.flops_per_s, "FLOP/s")),
            cell(ceiling.compute_target, 40),
            cell(format_rate(ceiling.bytes_per_s, "B/s")),
            cell(ceiling.copy_target, 40),
        )
    yield made if machine.ceilings else line("no target could be measured", "red")
    for note in machine.notes:
        yield line(note, "yellow")
    if machine.links:
        yield from _links(machine.links)


def _links(links: Sequence[Link]) -> Iterator[RenderableType]:
    sizes = sorted({point.n_bytes for link in links for point in link.points})
    yield line("")
    yield line(
        "Handing on a tensor, by its size, beyond what both ends take anyway (<: lost in noise)", "bold"
    )
    made = table(("from", "name"), ("to", "name"), *((format_bytes(size), "number") for size in sizes))
    for link in links:
        points = {point.n_bytes: point for point in link.points}
        figures = (cell(_handoff(points[size])) if size in points else cell(NOTHING) for size in sizes)
        made.add_row(cell(link.source, 30), cell(link.destination, 30), *figures)
    yield made
    # Both ways fail for one reason: a pair is measured together.
    told: dict[str, str] = {}
    for link in links:
        ends = " and ".join(sorted({link.source, link.destination}))
        if link.reason:
            told.setdefault(ends, link.reason)
    for ends, reason in told.items():
        yield line(f"between {ends}: {reason}", "yellow")


def _handoff(point: Handoff) -> str:
    """The median, or, where a tenth of the rounds saw none, what the noise allows."""
    if point.p10_ns > 0:
        return format_ns(point.median_ns)
    return f"<{format_ns(max(point.p90_ns, point.median_ns, 0))}" if point.p90_ns > 0 else "0"


def devices_json(listing: Listing) -> dict[str, Any]:
    """What ``hal devices --json`` prints."""
    found = []
    for item in listing.found.found:
        proof = listing.proofs.get((item.backend, item.device.id, item.device.variant))
        found.append(
            {
                "backend": item.backend,
                **msgspec.to_builtins(item.device),
                "options": msgspec.to_builtins(item.options),
                "proof": msgspec.to_builtins(proof),
            }
        )
    told = {"devices": found, "plugins": msgspec.to_builtins(listing.found.plugins)}
    if listing.machine is not None:
        told["machine"] = msgspec.to_builtins(listing.machine)
    return told


def _backend(plugin: str, device: Device) -> str:
    return f"{plugin}-{device.variant}" if device.variant else plugin


def _state(device: Device, proof: Proof | None) -> RenderableType:
    if device.unavailable:
        return cell(f"not available: {device.unavailable}", style="yellow")
    if proof is None:
        return cell("available, not proven")
    if proof.ok:
        return cell(f"ok, computed in {format_ns(proof.duration_ns)}", style="green")
    return cell(f"FAILED: {proof.message}", style="bold red")


def _options(listing: Listing) -> Iterator[RenderableType]:
    """Options once per backend: its devices rarely differ in them; the JSON has them per device."""
    seen: dict[tuple[str, str], OptionSpec] = {}
    for item in listing.found.found:
        for spec in item.options:
            seen.setdefault((_backend(item.backend, item.device), spec.name), spec)
    if not seen:
        return
    yield line("")
    yield line("Options of the backends, written after a target as +NAME=VALUE", "bold")
    made = table(
        ("backend", "name"), ("option", "name"), ("values", "text"), ("default", "name"), ("", "text")
    )
    for (backend, name), spec in seen.items():
        values = ", ".join(_written(choice) for choice in spec.choices) or spec.kind
        made.add_row(
            cell(backend, 30), cell(name, 30), cell(values), cell(_written(spec.default), 20), cell(spec.help)
        )
    yield made


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
