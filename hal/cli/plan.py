"""``hal plan``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hal.cli import options
from hal.cli.compare import is_model
from hal.cli.output import emit, show
from hal.cli.outputs import Form, check_outputs, write_outputs
from hal.cli.progress import shown
from hal.cli.requests import default_output
from hal.errors import UserError


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="An ONNX file or demo:NAME; or a profile (file or id), to plan from without measuring.",
        ),
    ],
    shape: options.Shapes = None,
    input: options.Inputs = None,
    target: options.Targets = None,
    objective: Annotated[
        str, typer.Option("--objective", metavar="WHAT", help="latency, throughput, energy or memory.")
    ] = "latency",
    max_error: Annotated[
        float,
        typer.Option(
            "--max-error", metavar="E", help="Highest relative L2 error; 0 means fp32 targets only."
        ),
    ] = 0.0,
    memory: Annotated[
        list[str] | None,
        typer.Option("--memory", metavar="DEVICE=8GiB", help="Limit of a device's memory. Repeatable."),
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option("--pin", metavar="NODE=TARGET", help="Keep a node on a target. Repeatable."),
    ] = None,
    max_partitions: Annotated[
        int, typer.Option("--max-partitions", min=0, metavar="N", help="Highest number; 0 for any.")
    ] = 0,
    budget_s: Annotated[
        float, typer.Option("--budget-s", metavar="S", help="Seconds for the search (default: 2).")
    ] = 2.0,
    use: Annotated[
        Path | None,
        typer.Option("--use", metavar="PLAN.json", help="Take this plan's placement instead of searching."),
    ] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Only predict: compile and run nothing beyond the profile.")
    ] = False,
    machine: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="MACHINE.json",
            help="Plan for this machine profile instead of this machine. Repeatable.",
        ),
    ] = None,
    links: Annotated[
        Path | None,
        typer.Option("--links", metavar="LINKS.json", help="Links between the machines of --with."),
    ] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option("--explain", metavar="NODE", help="Say why a node is where it is. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE.json",
            help="Where to write the plan (default: MODEL.plan.json here; with --json, nowhere).",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Also draw it, for a browser.")
    ] = None,
    annotate: Annotated[
        Path | None,
        typer.Option(
            "--annotate", metavar="FILE.onnx", help="Also write the model with targets on its nodes."
        ),
    ] = None,
    force: options.Force = False,
    time_s: options.TimeS = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure the profile anew, also what the store has.")
    ] = False,
    json: options.Json = False,
) -> int:
    """Decide which target runs which part of a model, prove how good that is, and measure it.

    The finalists, every single target among them, are compiled and run in turn, and the best measured one
    is the plan. With a profile in place of MODEL, with --predict or with --with nothing is run.
    """
    from hal.choosing.planner import asked
    from hal.cli.plan_sources import Source, decided
    from hal.cli.plan_text import explanations_text, plan_json, plan_text
    from hal.planning.explain import explain_node
    from hal.records import files
    from hal.report import annotated, plan_html

    path = output or (None if json else _default(model))
    check_outputs((path, html, annotate), force=force)
    constraints = asked(
        objective=objective,
        max_error=max_error,
        memory=pairs(memory or (), "--memory", "cuda:0=8GiB"),
        targets=target,
        pinned=pairs(pin or (), "--pin", "NODE=cpu:0/openvino/fp32"),
        max_partitions=max_partitions,
    )
    if links is not None and not machine:
        raise UserError("--links says how the machines of --with are connected; name them with --with")
    source = Source(model, shape, input, tuple(machine or ()), links, options.policy(time_s), fresh)
    with shown() as progress:
        found = decided(source, constraints, budget_s=budget_s, use=use, predict=predict, progress=progress)
    told = [explain_node(found.modelled, found.plan, node) for node in explain or ()]
    content = files.to_json(found.plan)
    forms: list[Form] = [
        (path, lambda: content),
        (html, lambda: plan_html(found.plan, found.profile.facts).encode()),
        (annotate, lambda: annotated(found.graph(), found.plan).SerializeToString()),
    ]
    try:
        write_outputs(forms, force=force)
    finally:
        # What was searched and measured is printed even where a file could not be written.
        if json:
            emit(plan_json(found.plan, told), sys.stdout)
        show(plan_text(found.plan), sys.stderr if json else sys.stdout)
        show(explanations_text(found.plan, told), sys.stderr if json else sys.stdout)
    return 0


def pairs(texts: Sequence[str], option: str, example: str) -> dict[str, str]:
    """Read ``NAME=VALUE`` words. A name may hold ``=``, for the last one counts.

    Raises:
        UserError: One has no ``=``, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.rpartition("=") if option == "--memory" else text.partition("=")
        if not sign or not name or not value:
            raise UserError(f"{option} {text!r} is no pair; expected for example {option} {example}")
        if name in found:
            raise UserError(f"{option} names {name!r} twice; name it once")
        found[name] = value
    return found


def _default(model: str) -> Path:
    stem = default_output(model).name.removesuffix(".profile.json") if is_model(model) else Path(model).stem
    return Path(f"{stem.removesuffix('.profile')}.plan.json")
