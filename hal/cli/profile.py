"""``hal profile``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hal.cli import options
from hal.cli.output import emit, say, show
from hal.cli.progress import shown
from hal.cli.requests import default_output, read_request


def profile(
    model: options.Model,
    shape: options.Shapes = None,
    input: options.Inputs = None,
    target: options.Targets = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE.json",
            help="Where to write the profile (default: MODEL.profile.json here; with --json, nowhere).",
        ),
    ] = None,
    force: options.Force = False,
    time_s: options.TimeS = None,
    no_kernels: Annotated[
        bool, typer.Option("--no-kernels", help="Leave out the times of single kernels.")
    ] = False,
    compiled: options.Compiled = False,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Kernels listed per target.")] = 10,
    json: options.Json = False,
) -> int:
    """Measure a model on every target, kernel by kernel.

    Writes what was measured as JSON and prints it as tables: times, memory, errors against a
    reference, and the fastest target. Exit code 1 where no target answered rightly.
    """
    from hal.records import files

    path = output or (None if json else default_output(model))
    if path is not None:
        files.check_free(path, force=force)
    policy = options.policy(time_s)
    request = read_request(model, shape, input)

    from hal import profiling
    from hal.cli.profile_text import profile_text

    with shown() as progress:
        measured = profiling.profile(
            request.model,
            request.inputs,
            shapes=request.shapes,
            targets=target,
            policy=policy,
            kernels=not no_kernels,
            compiled=compiled,
            progress=progress,
        )
    content = files.to_json(measured)
    try:
        if path is not None:
            files.write(path, content, force=force)
            say(f"Wrote {path}")
    finally:
        # Minutes of measuring are printed even where the file could not be written.
        if json:
            emit(content.decode(), sys.stdout)
        show(profile_text(measured, top), sys.stderr if json else sys.stdout)
    return 0 if measured.ranking else 1
