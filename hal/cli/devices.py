"""``hal devices``."""

from __future__ import annotations

import json as json_
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hal.cli import options
from hal.cli.output import emit, say, show
from hal.cli.progress import LiveLine, StageLines, shown
from hal.errors import UserError

if TYPE_CHECKING:
    from hal.cli.devices_text import Key
    from hal.profiling import Discovery, Proof
    from hal.records.machine import MachineProfile


def devices(
    no_proof: Annotated[
        bool, typer.Option("--no-proof", help="List only; compute nothing on the devices.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure what the devices can do and what handing tensors costs."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE.json", help="With --measure: where to write the record."),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> int:
    """List the devices, and why what is missing is missing.

    Each device computes a small known answer as proof. Exit code 1 where one fails or there is none.
    """
    from hal.records import files

    if output is not None and not measure:
        raise UserError(f"--output {str(output)!r} has nothing to write; add --measure")
    if output is not None:
        files.check_free(output, force=force)

    from hal import profiling
    from hal.cli import devices_text

    with shown() as progress:
        found = profiling.discover(progress=progress)
        proofs = {} if no_proof else _prove(found, progress)
        machine = _measure(found, progress) if measure else None
    listing = devices_text.Listing(found, proofs, machine)
    try:
        if machine is not None and output is not None:
            files.write(output, files.to_json(machine), force=force)
            say(f"Wrote {output}")
    finally:
        # What took half a minute is printed even where the file could not be written.
        if json:
            emit(json_.dumps(devices_text.devices_json(listing), indent=1) + "\n", sys.stdout)
        else:
            show(devices_text.devices_text(listing), sys.stdout)
    return 0 if listing.works else 1


def _prove(found: Discovery, progress: LiveLine | StageLines) -> dict[Key, Proof]:
    from hal import profiling

    proofs = {}
    usable = [(plugin, device) for plugin, device in found.devices if not device.unavailable]
    for n_done, (plugin, device) in enumerate(usable):
        progress.stage(f"computing on {device.id} with {plugin}")
        progress.advance(n_done, len(usable))
        proofs[plugin, device.id, device.variant] = profiling.prove(plugin, device)
    return proofs


def _measure(found: Discovery, progress: LiveLine | StageLines) -> MachineProfile | None:
    """The machine's record; None where no device can be used, which the listing shows."""
    from hal.profiling.machine import measure_machine

    if all(device.unavailable for _, device in found.devices):
        return None
    return measure_machine(found, progress=progress)
