"""Outputs of one run: a short summary, as JSON, and as an .npz file."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from hal.cli.output import cell, line, table
from hal.tensor import Array

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hal.profiling import RunResult


#: Values looked at in one go, so that a large output needs little more memory than it takes already.
_N_AT_ONCE = 1 << 20


class Summary(NamedTuple):
    """An output in short. Figures are None for strings, for empty outputs, and where not finite.

    Attributes:
        dtype: Element type.
        shape: Sizes.
        minimum: Least finite value.
        mean: Mean of the finite values, computed in float64.
        maximum: Greatest finite value.
        largest_at: Index of the greatest value along all dimensions.
        n_not_finite: NaN and infinities.
    """

    dtype: str
    shape: tuple[int, ...]
    minimum: float | None
    mean: float | None
    maximum: float | None
    largest_at: tuple[int, ...] | None
    n_not_finite: int


def summarize(output: Array) -> Summary:
    """Look at all values of an output."""
    name = "string" if output.dtype.kind in "OSU" else output.dtype.name
    nothing = Summary(name, tuple(output.shape), None, None, None, None, 0)
    if name == "string" or output.dtype.kind == "c":
        return nothing
    flat = output.reshape(-1)
    least, total, greatest, largest_at, n_finite = math.inf, 0.0, -math.inf, -1, 0
    for start in range(0, flat.size, _N_AT_ONCE):
        values = flat[start : start + _N_AT_ONCE].astype(np.float64)
        at = np.flatnonzero(np.isfinite(values))
        if not at.size:
            continue
        values = values[at]
        top = int(values.argmax())
        if values[top] > greatest:
            greatest, largest_at = float(values[top]), start + int(at[top])
        least = min(least, float(values.min()))
        with np.errstate(over="ignore"):  # of float64 near its limit; said below
            total += float(values.sum())
        n_finite += at.size
    n_not_finite = int(flat.size - n_finite)
    if not n_finite:  # empty outputs too
        return nothing._replace(n_not_finite=n_not_finite)
    return Summary(
        name,
        tuple(output.shape),
        least,
        total / n_finite if math.isfinite(total) else None,
        greatest,
        tuple(int(i) for i in np.unravel_index(largest_at, output.shape)),
        n_not_finite,
    )


def run_text(result: RunResult) -> Iterator[RenderableType]:
    """What ``hal run`` prints."""
    yield line(f"ran on {result.target} ({result.chosen_because}); inputs: {result.inputs_from}", "bold")
    made = table(
        ("output", "text"),
        ("type", "name"),
        ("shape", "name"),
        ("min", "number"),
        ("mean", "number"),
        ("max", "number"),
        ("largest at", "name"),
    )
    damaged = []
    for name, output in result.outputs.items():
        found = summarize(output)
        made.add_row(
            cell(name, 60),
            cell(found.dtype),
            cell(_sizes(found.shape)),
            *(cell(_number(value)) for value in (found.minimum, found.mean, found.maximum)),
            cell("-" if found.largest_at is None else _sizes(found.largest_at)),
        )
        if found.n_not_finite:
            damaged.append(
                f"{cell(name, 60)} holds {found.n_not_finite} of {output.size} values that are not finite"
            )
    yield made
    for text in damaged:
        yield line(text, "yellow")


def run_json(result: RunResult) -> str:
    """What ``hal run --json`` prints."""
    found = {
        "target": result.target,
        "chosen_because": result.chosen_because,
        "inputs_from": result.inputs_from,
        "outputs": {name: summarize(output)._asdict() for name, output in result.outputs.items()},
    }
    return json.dumps(found, indent=1) + "\n"


def npz_writer(outputs: Mapping[str, Array]) -> Callable[[IO[bytes]], None]:
    """A function that writes the outputs into an open file as ``numpy.load`` reads them.

    numpy's files know no bfloat16 and no float8: those are written as float32, which holds all their values.
    """

    def write(file: IO[bytes]) -> None:
        # numpy.savez takes names as keywords and so refuses an output that is called "file".
        with zipfile.ZipFile(file, "w") as archive:
            for name, output in outputs.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, _storable(output), allow_pickle=False)

    return write


def _storable(output: Array) -> Array:
    if output.dtype.kind == "O":
        return output.astype(np.str_)
    if output.dtype == ml_dtypes.bfloat16 or output.dtype.name.startswith("float8"):
        return output.astype(np.float32)
    return np.asarray(output)


def _sizes(sizes: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}"
