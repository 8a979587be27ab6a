"""``hal profile``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hal.cli import options
from hal.cli.output import emit, say, show
from hal.cli.outputs import Form, check_outputs, write_outputs
from hal.cli.progress import shown
from hal.cli.requests import default_output, read_request

if TYPE_CHECKING:
    from hal.records.profile import Profile


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
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure everything, also what the store has and is still valid.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Also write a report for a browser.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace", metavar="FILE.json", help="Also write a trace for Perfetto or chrome://tracing."
        ),
    ] = None,
    speedscope: Annotated[
        Path | None,
        typer.Option("--speedscope", metavar="FILE.json", help="Also write a flame graph for speedscope."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Kernels listed per target.")] = 10,
    json: options.Json = False,
) -> int:
    """Measure a model on every target, kernel by kernel.

    Writes what was measured as JSON and prints it as tables: times, memory, errors against a
    reference, and the fastest target. Exit code 1 where no target answered rightly.
    """
    from hal.records import files

    path = output or (None if json else default_output(model))
    check_outputs((path, html, trace, speedscope), force=force)
    policy = options.policy(time_s)
    request = read_request(model, shape, input)

    from hal import profiling, report
    from hal.cli.profile_text import profile_text

    started = datetime.now(UTC).isoformat(timespec="seconds")
    with shown() as progress:
        measured = profiling.profile(
            request.model,
            request.inputs,
            shapes=request.shapes,
            targets=target,
            policy=policy,
            kernels=not no_kernels,
            compiled=compiled,
            machine=not no_kernels,
            fresh=fresh,
            progress=progress,
        )
    content = files.to_json(measured)
    forms: list[Form] = [
        (path, lambda: content),
        (html, lambda: report.html(measured).encode()),
        (trace, lambda: report.chrome_trace(measured)),
        (speedscope, lambda: report.speedscope(measured)),
    ]
    try:
        write_outputs(forms, force=force)
    finally:
        # Minutes of measuring are printed even where the file could not be written.
        if json:
            emit(content.decode(), sys.stdout)
        show(profile_text(measured, top), sys.stderr if json else sys.stdout)
        _say_reused(measured, started)
    return 0 if measured.ranking else 1


def _say_reused(profile: Profile, started: str) -> None:
    """Figures of an earlier day must not pass for new ones."""
    earlier = [target for target in profile.targets if target.measured < started]
    if earlier:
        which = (
            "all targets" if len(earlier) == len(profile.targets) else ", ".join(t.target for t in earlier)
        )
        say(
            f"From the store, nothing having changed since: {which}, measured "
            f"{min(target.measured for target in earlier)}; --fresh measures again"
        )
