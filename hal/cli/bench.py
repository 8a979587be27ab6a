"""``hal bench``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hal.cli import options
from hal.cli.output import emit, show
from hal.cli.progress import shown
from hal.cli.requests import read_request


def bench(
    model: options.Model,
    shape: options.Shapes = None,
    input: options.Inputs = None,
    target: options.Targets = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="TARGET", help="Compare with this target (default: the fastest)."),
    ] = None,
    time_s: options.TimeS = None,
    compiled: options.Compiled = False,
    json: options.Json = False,
) -> int:
    """Compare all targets on a model, as ratios.

    The targets run in turn, so that all meet the same noise. Exit code 1 where no target answered rightly.
    """
    policy = options.policy(time_s)
    request = read_request(model, shape, input)

    from hal import profiling
    from hal.cli.profile_text import bench_text
    from hal.records import files

    with shown() as progress:
        measured = profiling.bench(
            request.model,
            request.inputs,
            shapes=request.shapes,
            targets=target,
            baseline=baseline,
            policy=policy,
            compiled=compiled,
            progress=progress,
        )
    if json:
        emit(files.to_json(measured).decode(), sys.stdout)
    show(bench_text(measured), sys.stderr if json else sys.stdout)
    return 0 if measured.ranking else 1
