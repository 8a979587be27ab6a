"""Kernels of a target as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hal.cli import figures
from hal.cli.output import cell, indented, line, one_line, table
from hal.records.profile import KernelCost, KernelTable, TargetProfile
from hal.units import format_ns, format_rate

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Longest texts in the table; every row must fit a terminal of 100 columns.
_KERNEL_CHARACTERS = 13
_TYPE_CHARACTERS = 11
_OPS_CHARACTERS = 19
_NODES_CHARACTERS = 11
#: Names listed before "and N more".
_NAMES_LISTED = 6


def kernels_text(target: TargetProfile, kernels: KernelTable, n_top: int) -> Iterator[RenderableType]:
    """The most expensive kernels, their sum, and what is not in it.

    Args:
        target: Whose kernels.
        kernels: Its table.
        n_top: Kernels listed.
    """
    shown = kernels.kernels[:n_top]
    yield line(
        f"Kernels of {target.target}, the {len(shown)} most expensive of {len(kernels.kernels)}", "bold"
    )
    made = table(
        ("time", "number"),
        ("share", "number"),
        ("rate", "number"),
        ("limit", "name"),
        ("kernel", "name"),
        ("type", "name"),
        ("ops", "name"),
        ("nodes", "name"),
    )
    for kernel in shown:
        name = f"{kernel.name} on {kernel.device}" if kernel.device else kernel.name
        made.add_row(
            cell(figures.time_text(kernel.median_ns)),
            cell(figures.share_text(kernel.median_ns, kernels.total_ns)),
            cell(_rate(kernel)),
            cell(kernel.limit or figures.NOTHING),
            cell(name, _KERNEL_CHARACTERS),
            cell(kernel.type, _TYPE_CHARACTERS),
            cell(_fitting(kernel.ops) or "unknown", _OPS_CHARACTERS),
            cell(_listed(kernel.nodes) or "unknown", _NODES_CHARACTERS),
        )
    yield made
    yield indented(_sum(target, kernels))
    yield from map(indented, _left_over(kernels))


def _rate(kernel: KernelCost) -> str:
    """What the kernel achieves, in the unit of what limits it."""
    if kernel.flops_per_s and kernel.limit != "memory":
        return format_rate(kernel.flops_per_s, "FLOP/s")
    if kernel.bytes_per_s:
        return format_rate(kernel.bytes_per_s, "B/s")
    return figures.NOTHING


def _sum(target: TargetProfile, kernels: KernelTable) -> str:
    end_to_end = ""
    if target.timing is not None:
        share = figures.share_text(kernels.total_ns, target.timing.median_ns)
        end_to_end = f" = {share} of end to end {format_ns(target.timing.median_ns)}"
    instruments = format_ns(kernels.instrumented_ns)
    if kernels.overhead is not None:
        instruments += f", {kernels.overhead:+.1%} to plain runs beside"
        if kernels.inflated:
            instruments += ": kernel times are inflated"
    unattributed = figures.share_text(kernels.unattributed_ns, kernels.total_ns)
    return (
        f"sum of kernels {format_ns(kernels.total_ns)}{end_to_end} (with instruments on: {instruments}); "
        f"unattributed {figures.time_text(kernels.unattributed_ns)} = {unattributed}"
    )


def _left_over(kernels: KernelTable) -> Iterator[str]:
    """Time without nodes, by the kernels' names, and nodes without time."""
    strangers = [kernel for kernel in kernels.kernels if not kernel.nodes and kernel.median_ns]
    if strangers:
        texts = [f"{one_line(kernel.name, 40)} {figures.time_text(kernel.median_ns)}" for kernel in strangers]
        yield f"kernels of no known node: {_some(texts)}"
    if kernels.folded:
        yield f"{_nodes(len(kernels.folded))} computed at compile time"
    if kernels.unknown:
        names = [one_line(name, 40) for name in kernels.unknown]
        yield f"{_nodes(len(kernels.unknown))} found in no kernel: {_some(names)}"


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _NAMES_LISTED} more" if len(texts) > _NAMES_LISTED else ""
    return f"{', '.join(texts[:_NAMES_LISTED])}{more}"


def _fitting(ops: Sequence[str]) -> str:
    """As many different operators as fit whole, and how many more there are: ``Conv, Add +3``."""
    different = list(dict.fromkeys(ops))
    for n_left_out in range(len(different)):
        kept = different[: len(different) - n_left_out]
        text = ", ".join(kept) + (f" +{n_left_out}" if n_left_out else "")
        if len(text) <= _OPS_CHARACTERS or len(kept) == 1:
            return text
    return ""


def _listed(nodes: Sequence[str]) -> str:
    if len(nodes) < 2:
        return "".join(nodes)
    more = f" +{len(nodes) - 1}"
    return f"{one_line(nodes[0], _NODES_CHARACTERS - len(more))}{more}"


def _nodes(n: int) -> str:
    return f"{n} node" if n == 1 else f"{n} nodes"
