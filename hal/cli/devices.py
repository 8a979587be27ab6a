"""``hal devices``."""

from __future__ import annotations

import json as json_
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hal.cli import options
from hal.cli.output import emit, show
from hal.cli.progress import LiveLine, StageLines, shown

if TYPE_CHECKING:
    from hal.cli.devices_text import Key
    from hal.profiling import Discovery, Proof


def devices(
    no_proof: Annotated[
        bool, typer.Option("--no-proof", help="List only; compute nothing on the devices.")
    ] = False,
    json: options.Json = False,
) -> int:
    """List the devices, and why what is missing is missing.

    Each device computes a small known answer as proof. Exit code 1 where one fails or there is none.
    """
    from hal import profiling
    from hal.cli import devices_text

    with shown() as progress:
        found = profiling.discover(progress=progress)
        proofs = {} if no_proof else _prove(found, progress)
    listing = devices_text.Listing(found, proofs)
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
