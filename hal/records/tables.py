"""Profiles as rows, for pandas, Parquet and CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from hal.errors import UserError
from hal.records.profile import KernelCost, Profile, TargetProfile

#: Columns and their types in Arrow's words. docs/cli.md names them.
COLUMNS = {
    "target": "string",
    "order": "int64",
    "kernel": "string",
    "type": "string",
    "device": "string",
    "ops": "list",
    "nodes": "list",
    "module": "string",
    "source": "string",
    "median_ns": "int64",
    "p10_ns": "int64",
    "p90_ns": "int64",
    "n": "int64",
    "inflated": "bool",
    "flops": "int64",
    "moved_bytes": "int64",
    "weight_bytes": "int64",
    "activation_bytes": "int64",
    "flops_per_s": "float64",
    "bytes_per_s": "float64",
}
#: Columns of which a figure may be missing; pandas' own integers have no empty value.
_MAYBE_MISSING = ("flops", "moved_bytes", "activation_bytes")


def kernel_rows(profile: Profile) -> list[dict[str, Any]]:
    """One row per kernel, target by target, each in the order of execution.

    Returns:
        Rows with the keys of :data:`COLUMNS`: times in ns per run, ``flops_per_s`` and ``bytes_per_s``
        achieved, ``module`` the innermost module that holds all its nodes, ``source`` the line of the first
        node that has one; None where a figure is not known, an empty text where a name is not.
    """
    places = {} if profile.facts is None else profile.facts.by_name()
    found = []
    for target in profile.targets:
        for kernel in sorted(_kernels(target), key=lambda one: one.order):
            facts = [places[name] for name in kernel.nodes if name in places]
            row = {
                "target": target.target,
                "order": kernel.order,
                "kernel": kernel.name,
                "type": kernel.type,
                "device": kernel.device or target.target.split("/")[0],
                "ops": list(kernel.ops),
                "nodes": list(kernel.nodes),
                "module": _shared([fact.module for fact in facts if fact.module]),
                "source": next((fact.source for fact in facts if fact.source), ""),
                "median_ns": kernel.median_ns,
                "p10_ns": kernel.p10_ns,
                "p90_ns": kernel.p90_ns,
                "n": kernel.n,
                "inflated": target.kernels is not None and target.kernels.inflated,
                "flops": kernel.flops,
                "moved_bytes": kernel.moved_bytes,
                "weight_bytes": kernel.weight_bytes,
                "activation_bytes": kernel.activation_bytes,
                "flops_per_s": kernel.flops_per_s,
                "bytes_per_s": kernel.bytes_per_s,
            }
            found.append(row)
    return found


def data_frame(profile: Profile) -> Any:
    """The rows of :func:`kernel_rows` as a ``pandas.DataFrame``.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise _missing("a table for pandas", "pandas") from error
    frame = pd.DataFrame(kernel_rows(profile), columns=list(COLUMNS))
    kinds = {name: kind for name, kind in COLUMNS.items() if kind in ("int64", "float64", "bool")}
    return frame.astype({**kinds, **dict.fromkeys(_MAYBE_MISSING, "Int64")})


def parquet(profile: Profile) -> bytes:
    """The rows of :func:`kernel_rows` as a Parquet file.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise _missing("a Parquet file", "pyarrow") from error
    kinds = {kind: pa.type_for_alias(kind) for kind in set(COLUMNS.values()) - {"list"}}
    kinds["list"] = pa.list_(pa.string())
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(kernel_rows(profile), schema=schema), file)
    return file.getvalue()


def comma_separated(profile: Profile) -> bytes:
    """The rows of :func:`kernel_rows` as CSV in UTF-8, with a heading; lists are joined by ``;``."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in kernel_rows(profile):
        writer.writerow({**row, "ops": ";".join(row["ops"]), "nodes": ";".join(row["nodes"])})
    return file.getvalue().encode()


def _kernels(target: TargetProfile) -> tuple[KernelCost, ...]:
    return () if target.kernels is None else target.kernels.kernels


def _shared(modules: list[str]) -> str:
    """What dotted paths have in common, whole names only."""
    if not modules:
        return ""
    parts = [module.split(".") for module in modules]
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def _missing(what: str, library: str) -> UserError:
    return UserError(f"{what} needs {library}, which is not installed; run: pip install hal-runtime[tables]")
