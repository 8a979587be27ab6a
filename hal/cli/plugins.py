"""``hal plugins`` and ``hal plugins check``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hal.cli import options
from hal.cli.output import emit, show
from hal.cli.progress import shown


def plugins(context: typer.Context, json: options.Json = False) -> int:
    """List the installed plugins, or check one.

    The list is read without importing any. hal plugins check NAME runs the conformance suite on one.
    """
    if context.invoked_subcommand is not None:
        return 0
    from hal.cli import plugins_text
    from hal.plugins import installed

    found = installed()
    if json:
        emit(plugins_text.plugins_json(found), sys.stdout)
    else:
        show(plugins_text.plugins_text(found), sys.stdout)
    return 0


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A plugin that hal plugins lists.")],
    json: options.Json = False,
) -> int:
    """Run the conformance suite on a plugin.

    It checks that claims are true, answers right, times real and ends clean. Exit code 1 where a check fails.
    """
    from hal import testing
    from hal.cli import plugins_text
    from hal.plugins import reference

    ref = reference(name)
    with shown() as progress:
        results = testing.check_isolated(
            ref, lambda check_name: progress.stage(f"checking {name}: {check_name}")
        )
    if json:
        emit(plugins_text.checks_json(results), sys.stdout)
    else:
        show(plugins_text.checks_text(name, results), sys.stdout)
    return 1 if any(result.outcome == "failed" for result in results) else 0
