"""Arguments and options that several commands share, and the measuring policy they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hal.errors import UserError

if TYPE_CHECKING:
    from hal.sampling import Policy

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="An ONNX file, or demo:NAME for a model that ships with hal.")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=1,3,640,640",
        help="Whole shape of an input with free dimensions. Repeatable.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="FILE.npz|NAME=FILE",
        help="Arrays by name in an .npz, or one input from an .npy or a picture. Repeatable.",
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="PATTERN",
        help="Only these targets, for example 'cpu:0/openvino/*' or '*/fp32'. Repeatable.",
    ),
]
TimeS = Annotated[
    float | None,
    typer.Option("--time-s", metavar="S", help="Measure each target for at most S seconds (default: 5)."),
]
Compiled = Annotated[
    bool, typer.Option("--compiled", help="Also measure modes that compile for long (torch.compile).")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output file.")]
Json = Annotated[bool, typer.Option("--json", help="Data as JSON on stdout; words on stderr.")]


#: A day. Longer is a slip of the keyboard, and 1e300 s are no number of ns that a clock counts.
_MOST_S = 86_400


def policy(time_s: float | None) -> Policy | None:
    """The measuring policy for ``--time-s``; None for hal's own.

    Raises:
        UserError: Not a number of seconds above 0 and at most a day.
    """
    if time_s is None:
        return None
    if not 0 < time_s <= _MOST_S:  # NaN is neither
        raise UserError(
            f"--time-s {time_s:g} is no time to measure; expected seconds above 0 and at most {_MOST_S} "
            "(a day), for example 2"
        )
    from hal.sampling import Policy

    usual = Policy()
    limit_ns = max(int(time_s * 1e9), 1)
    return Policy(
        warm_up_min_ns=min(usual.warm_up_min_ns, limit_ns),
        warm_up_max_ns=min(usual.warm_up_max_ns, limit_ns),
        # As many bursts as the stopping rule wants must fit into the time.
        burst_ns=min(usual.burst_ns, max(limit_ns // usual.min_bursts, 1)),
        min_time_ns=min(usual.min_time_ns, limit_ns),
        max_time_ns=limit_ns,
    )
