"""``hal compare``."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hal.cli import options
from hal.cli.output import emit, show
from hal.cli.progress import shown
from hal.cli.requests import read_request
from hal.errors import TargetError, UserError

if TYPE_CHECKING:
    from hal.records.comparison import Comparison
    from hal.records.profile import Profile
    from hal.sampling import Policy

#: Options that say how to measure, as typed.
_OF_MEASURING = ("--shape", "--input", "--time-s")


def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A profile (file or id from hal profiles list) or a plan; with --targets also a model.",
        ),
    ],
    b: Annotated[str | None, typer.Argument(metavar="B", help="What is compared with A.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="PATTERN", help="Only these targets of both profiles. Repeatable."),
    ] = None,
    targets: Annotated[
        tuple[str, str] | None,
        typer.Option("--targets", metavar="T1 T2", help="Compare these two targets of A, layer by layer."),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare although models or environments are unlike.")
    ] = False,
    fail_if_slower: Annotated[
        str | None,
        typer.Option(
            "--fail-if-slower",
            metavar="5%",
            help="Exit code 1 where B is slower than A by more, and noise does not explain it.",
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Blocks listed per target.")] = 20,
    shape: options.Shapes = None,
    input: options.Inputs = None,
    time_s: options.TimeS = None,
    json: options.Json = False,
) -> int:
    """Compare two profiles, two targets of one layer by layer, or two plans.

    A model in place of a profile is measured first, both targets in turn. Nothing is called faster unless
    the 95% interval of the ratio excludes 1. Exit code 1 where nothing could be compared, or B fails
    --fail-if-slower.
    """
    limit = None if fail_if_slower is None else parse_limit(fail_if_slower)
    from hal.cli.compare_plans import compare_plan_files, is_plan

    if b is not None and is_plan(a) and is_plan(b):
        measuring = dict(zip(_OF_MEASURING, (shape, input, time_s), strict=True))
        _refuse({"--target": target, "--targets": targets, **measuring}, "two plans")
        return compare_plan_files(a, b, anyway=anyway, limit=limit, json=json)
    if targets is not None:
        _refuse({"a second profile B": b, "--target": target, "--anyway": anyway}, "--targets")
        found = _two_targets(a, targets, shape, input, time_s)
    else:
        measuring = dict(zip(_OF_MEASURING, (shape, input, time_s), strict=True))
        found = _two_profiles(a, b, target, anyway, measuring)
    return _told(found, limit, top, json)


def parse_limit(text: str) -> float:
    """Read ``5%`` or ``0.05`` as a share.

    Raises:
        UserError: It is neither.
    """
    number = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%?)", text.strip(), re.ASCII)
    value = float(number[1]) / (100 if number[2] else 1) if number else -1.0
    # Above 1 without a sign is a slip: 5 would allow six times the time.
    if not number or (value > 1 and not number[2]):
        raise UserError(f"--fail-if-slower {text!r} is no share of A's time; expected for example 5% or 0.05")
    return value


def is_model(text: str) -> bool:
    """Whether a word names a model to measure and not a profile: by its form, else by the first byte."""
    path = Path(text)
    if text.startswith("demo:") or path.suffix.lower() == ".onnx":
        return True
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return not file.read(64).lstrip().startswith(b"{")
    except OSError:  # whoever reads the profile says why it cannot be
        return False


def _two_profiles(
    a: str, b: str | None, target: list[str] | None, anyway: bool, measuring: Mapping[str, object]
) -> Comparison:
    if is_model(a):
        raise UserError(
            f"{a!r} is a model; say which two targets to measure with --targets T1 T2, or name profiles "
            "that hal profile wrote"
        )
    if b is None:
        raise UserError(
            f"{a!r} alone is nothing to compare; name a second profile, or two of its targets with "
            "--targets T1 T2"
        )
    if is_model(b):
        raise UserError(f"{b!r} is a model; measure it first with hal profile and name what that wrote")
    _refuse(measuring, "two profiles")

    from hal.profiling import compare as comparing
    from hal.profiling.store import load_profile

    return comparing.compare_profiles(
        load_profile(a), load_profile(b), targets=target, anyway=anyway, labels=(a, b)
    )


def _two_targets(
    a: str,
    targets: tuple[str, str],
    shape: list[str] | None,
    input: list[str] | None,
    time_s: float | None,
) -> Comparison:
    from hal.profiling import compare as comparing
    from hal.profiling.store import load_profile
    from hal.records.targets import Target

    one, other = (str(Target.parse(text)) for text in targets)
    if one == other:
        raise TargetError(f"{one!r} is named twice; --targets takes two different ones")
    if is_model(a):
        profile = _measured(a, (one, other), shape, input, options.policy(time_s))
    else:
        _refuse(dict(zip(_OF_MEASURING, (shape, input, time_s), strict=True)), "a profile")
        profile = load_profile(a)
    return comparing.compare_targets(profile, one, other, label=a)


def _measured(
    model: str,
    targets: tuple[str, str],
    shape: list[str] | None,
    input: list[str] | None,
    policy: Policy | None,
) -> Profile:
    request = read_request(model, shape, input)

    from hal import profiling

    with shown() as progress:
        return profiling.profile(
            request.model,
            request.inputs,
            shapes=request.shapes,
            targets=targets,
            policy=policy,
            machine=False,  # ceilings and links are no part of a comparison
            fresh=True,  # only what runs now runs side by side
            progress=progress,
        )


def _refuse(given: Mapping[str, object], beside: str) -> None:
    """Say that an option means nothing here rather than to leave it out silently.

    Raises:
        UserError: Something of it was given.
    """
    names = [name for name, value in given.items() if value not in (None, False, [])]
    if names:
        raise UserError(f"{' and '.join(names)} cannot be given with {beside}; leave out one or the other")


def _told(found: Comparison, limit: float | None, top: int, json: bool) -> int:
    import msgspec

    from hal.cli.compare_text import compare_text
    from hal.records import files

    if limit is not None:
        failed = tuple(one.b for one in found.slower(limit))
        found = msgspec.structs.replace(found, limit=limit, too_slow=failed)
    if json:
        emit(files.to_json(found).decode(), sys.stdout)
    show(compare_text(found, top), sys.stderr if json else sys.stdout)
    compared = any(one.end_to_end is not None for one in found.targets)
    return 0 if compared and not found.too_slow else 1
