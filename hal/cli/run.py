"""``hal run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hal.cli import options
from hal.cli.output import emit, say, show
from hal.cli.progress import shown
from hal.cli.requests import read_request


def run(
    model: options.Model,
    input: options.Inputs = None,
    shape: options.Shapes = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="TARGET", help="Run here (default: hal chooses).")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE.npz", help="Write the outputs, as arrays by name."),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> int:
    """Run a model once and print its outputs in short.

    Without --input it runs on the demo's own inputs or on random ones, always the same. Without
    --target the fp32 targets are measured briefly and the fastest right one is taken.
    """
    from hal.records import files

    if output is not None:
        files.check_free(output, force=force)
    request = read_request(model, shape, input)

    from hal import profiling
    from hal.cli import run_text

    with shown() as progress:
        result = profiling.run(
            request.model, request.inputs, shapes=request.shapes, target=target, progress=progress
        )
    try:
        if output is not None:
            files.write(output, run_text.npz_writer(result.outputs), force=force)
            say(f"Wrote {output}")
    finally:
        if json:
            emit(run_text.run_json(result), sys.stdout)
        else:
            show(run_text.run_text(result), sys.stdout)
    return 0
