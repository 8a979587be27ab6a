"""The application: commands, global options, and what a wrong command line is answered with."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from hal import trace
from hal.cli import bench, compare, devices, diff, doctor, plan, plugins, predict, profile, profiles, run, top
from hal.cli.outcome import guarded
from hal.cli.output import emit, say

#: What typer raises for a wrong command line. It moved between modules from one version to the
#: next, so it is taken from a public class that derives from it.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_NO_COMMAND = "NoArgsIsHelpError"


def build(*, traceback: bool = False) -> typer.Typer:
    """The application with every command.

    Args:
        traceback: Whether errors print where they came from.
    """
    app = typer.Typer(
        name="hal",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        no_args_is_help=True,
    )
    app.callback()(_globals)
    app.command("devices")(guarded(devices.devices, traceback=traceback))
    app.command("doctor")(guarded(doctor.doctor, traceback=traceback))
    app.command("profile")(guarded(profile.profile, traceback=traceback))
    app.command("bench")(guarded(bench.bench, traceback=traceback))
    app.command("run")(guarded(run.run, traceback=traceback))
    app.command("compare")(guarded(compare.compare, traceback=traceback))
    app.command("diff")(guarded(diff.diff, traceback=traceback))
    app.command("plan")(guarded(plan.plan, traceback=traceback))
    app.command("predict")(guarded(predict.predict, traceback=traceback))
    app.command("top")(guarded(top.top, traceback=traceback))
    group = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    group.callback(invoke_without_command=True)(guarded(plugins.plugins, traceback=traceback))
    group.command("check")(guarded(plugins.check, traceback=traceback))
    app.add_typer(group, name="plugins")
    kept = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)
    kept.callback()(guarded(profiles.profiles, traceback=traceback))
    kept.command("list")(guarded(profiles.list_profiles, traceback=traceback))
    kept.command("show")(guarded(profiles.show_profile, traceback=traceback))
    kept.command("export")(guarded(profiles.export, traceback=traceback))
    kept.command("import")(guarded(profiles.import_profiles, traceback=traceback))
    kept.command("prune")(guarded(profiles.prune, traceback=traceback))
    app.add_typer(kept, name="profiles")
    return app


def execute(arguments: Sequence[str]) -> int:
    """Run one command line and return the exit code."""
    # Wanted when something just went wrong, so it may stand anywhere, as when appended to the line.
    traceback = "--traceback" in arguments
    words = [word for word in arguments if word != "--traceback"]
    if not trace.enable_from_environment():
        # What hal logs it also says in its results; without this, logging would print warnings itself.
        logging.getLogger("hal").addHandler(logging.NullHandler())
    return guarded(_parse_and_run, traceback=traceback)(words, traceback)


def _parse_and_run(words: list[str], traceback: bool) -> int:
    try:
        code = build(traceback=traceback)(words, standalone_mode=False, prog_name="hal")
    except _UsageError as error:
        return _usage(error)
    except typer.Abort:
        raise KeyboardInterrupt from None
    return code if isinstance(code, int) else 0


def _usage(error: Exception) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "hal"
    if type(error).__name__ == _NO_COMMAND and context is not None:
        say(context.get_help())
    else:
        message = str(getattr(error, "format_message", lambda: error)())
        say(f"error: {message.rstrip('.')}\nrun '{path} --help' for the arguments and options")
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        from hal import __version__

        emit(f"hal {__version__}\n", sys.stdout)
        raise typer.Exit(0)


def _globals(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="With an error, print where it came from. Goes anywhere.")
    ] = False,
) -> None:
    """Measure a model on every device and runtime of this machine, and run the best.

    Start with: hal profile demo:digits
    """
