"""A comparison as tables and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hal.cli import figures
from hal.cli.output import cell, indented, line, one_line, table
from hal.records.comparison import (
    BlockDifference,
    Comparison,
    Difference,
    KernelSum,
    TargetComparison,
    Unlike,
)
from hal.units import format_ns

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: Longest texts in the table of blocks; every row must fit a terminal of 100 columns.
_BLOCK_CHARACTERS = 26
_OPS_CHARACTERS = 19

_STYLES = {"faster": "green", "slower": "bold red"}
_METHODS = {
    "pairs": "the median ratio of {a} rounds in which both ran, and its 95% interval by the sign test",
    "bursts": (
        "recorded bursts ({a} of A, {b} of B), which did not run side by side: the ratio of the medians, and "
        "the 95% interval that inverts the Mann-Whitney test"
    ),
}


def compare_text(found: Comparison, n_top: int) -> Iterator[RenderableType]:
    """Everything ``hal compare`` prints.

    Args:
        found: What was found.
        n_top: Blocks listed per target.
    """
    within = _is_within(found)
    yield from _sides(found, within)
    yield from unlike_text(found.unlike)
    yield line("")
    yield line("End to end per run; ratio: time of B over that of A", "bold")
    yield _targets(found, within)
    yield from _judged(found.targets)
    yield from _remarks(found)
    told = [one for one in found.targets if one.blocks]
    for one in told:
        # Of many, those that differ; what lies within noise has no parts to explain.
        if len(told) == 1 or (one.end_to_end is not None and one.end_to_end.faster):
            yield line("")
            yield from _blocks(one, n_top)
    yield from _limit(found)


def unlike_text(unlike: Sequence[Unlike]) -> Iterator[RenderableType]:
    """Which conditions differ, where two records are compared all the same."""
    if unlike:
        yield line("")
        yield line("Unlike, and compared all the same (--anyway)", "bold")
        for what in unlike:
            yield indented(f"{what.field}: {what.a} in A, {what.b} in B")


def _is_within(found: Comparison) -> bool:
    return any(one.a != one.b for one in found.targets)


def _sides(found: Comparison, within: bool) -> Iterator[RenderableType]:
    first = found.targets[0] if within else None
    for letter, side, target in (
        ("A", found.a, first.a if first else ""),
        ("B", found.b, first.b if first else ""),
    ):
        label = side.label if side.label.endswith(side.model) else f"{side.label} ({side.model})"
        yield line(
            f"{letter}  {f'{target} of ' if target else ''}{one_line(label, 60)}, measured "
            f"{side.created[:16].replace('T', ' ')} by hal {side.hal_version}",
            "bold",
        )


def _targets(found: Comparison, within: bool) -> Table:
    made = table(
        *([] if within else [("target", "text")]),
        ("A", "number"),
        ("B", "number"),
        ("difference", "number"),
        ("ratio", "number"),
        ("95% interval", "number"),
        ("B is", "name"),
    )
    for one in found.targets:
        texts = _end_to_end(one.end_to_end)
        verdict = _verdict(one.end_to_end)
        head = [] if within else [cell(one.a)]
        made.add_row(*head, *map(cell, texts), cell(verdict, style=_STYLES.get(verdict, "")))
    return made


def _end_to_end(found: Difference | None) -> tuple[str, ...]:
    if found is None:
        return (figures.NOTHING,) * 5
    return (
        figures.time_text(found.a_ns),
        figures.time_text(found.b_ns),
        signed(found.b_ns - found.a_ns),
        _ratio(found),
        _interval(found),
    )


def _verdict(found: Difference | None) -> str:
    if found is None:
        return "not compared"
    if not found.method:
        return "not told (too few samples)"
    return {"a": "slower", "b": "faster", "": "within noise"}[found.faster]


def signed(duration_ns: int) -> str:
    """A difference of times: ``+1.20 ms``; ``0`` of equal ones."""
    if not duration_ns:
        return "0"
    return f"{'-' if duration_ns < 0 else '+'}{format_ns(abs(duration_ns))}"


def _ratio(found: Difference) -> str:
    return "inf" if found.ratio is None else figures.ratio_text(found.ratio)


def _interval(found: Difference) -> str:
    if not found.method:
        return figures.NOTHING
    low = "inf" if found.low is None else f"{found.low:.2f}"
    return f"{low}-{'inf' if found.high is None else f'{found.high:.2f}'}"


def _judged(targets: Sequence[TargetComparison]) -> Iterator[RenderableType]:
    """How the ratios were made, each way once, with the samples of all targets it was used for."""
    for method, text in _METHODS.items():
        found = [one.end_to_end for one in targets if one.end_to_end and one.end_to_end.method == method]
        if found:
            counts = {
                "a": _range([one.n_a for one in found]),
                "b": _range([one.n_b for one in found]),
            }
            yield indented(f"by {text.format(**counts)}")


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"


def _remarks(found: Comparison) -> Iterator[RenderableType]:
    lines = [one.reason for one in found.targets if one.reason]
    lines += [f"only A has {name}" for name in found.only_a]
    lines += [f"only B has {name}" for name in found.only_b]
    for one in found.targets:
        if one.end_to_end is not None:
            head = f"{one.a}: " if one.a == one.b else ""
            lines += [f"{head}{note}" for note in one.notes]
            if one.blocks_missing:
                lines.append(f"{head}not compared layer by layer: {one.blocks_missing}")
    if lines:
        yield line("")
        yield line("Notes", "bold")
        for text in lines:
            yield indented(text)


def _blocks(one: TargetComparison, n_top: int) -> Iterator[RenderableType]:
    ranked = sorted(one.blocks, key=lambda block: -abs(_change(block)))
    shown, rest = ranked[:n_top], ranked[n_top:]
    which = f"the {len(shown)} that differ most of {len(ranked)}" if rest else f"all {len(ranked)}"
    head = f"Layers of {one.a}" if one.a == one.b else "Layers"
    yield line(f"{head}, {which}: kernel time per run", "bold")
    made = table(
        ("block", "name"),
        ("ops", "name"),
        ("A", "number"),
        ("B", "number"),
        ("difference", "number"),
        ("ratio", "number"),
        ("share", "number"),
        ("faster", "name"),
    )
    for block in shown:
        found = block.difference
        made.add_row(
            cell(_tail(block.name)),
            cell(_ops(block), _OPS_CHARACTERS),
            cell(figures.NOTHING if block.a is None else figures.time_text(block.a.median_ns)),
            cell(figures.NOTHING if block.b is None else figures.time_text(block.b.median_ns)),
            cell(figures.NOTHING if found is None else signed(_change(block))),
            cell(figures.NOTHING if found is None else _ratio(found)),
            cell(figures.NOTHING if block.share is None else f"{block.share:.1%}"),
            cell(_winner(found)),
        )
    for name, a_ns, b_ns in _sums(one, rest):
        ratio = figures.ratio_text(b_ns / a_ns) if a_ns else figures.NOTHING
        texts = (
            name,
            "",
            figures.time_text(a_ns),
            figures.time_text(b_ns),
            signed(b_ns - a_ns),
            ratio,
            "",
            "",
        )
        made.add_row(*(cell(text, style="bold") for text in texts))
    yield made
    for text in _counts(one):
        yield indented(text)


def _change(block: BlockDifference) -> int:
    return 0 if block.difference is None else block.difference.b_ns - block.difference.a_ns


def _tail(name: str) -> str:
    """The end of a long name: paths of modules begin alike."""
    return name if len(name) <= _BLOCK_CHARACTERS else f"…{name[1 - _BLOCK_CHARACTERS :]}"


def _ops(block: BlockDifference) -> str:
    return ", ".join(block.ops)


def _winner(found: Difference | None) -> str:
    if found is None or not found.method:
        return "?"
    return found.faster.upper() or figures.NOTHING


def _sums(one: TargetComparison, rest: Sequence[BlockDifference]) -> Iterator[tuple[str, int, int]]:
    if rest:
        yield f"the other {_n_blocks(len(rest)).removeprefix('1 ')}", _total(rest, "a"), _total(rest, "b")
    if one.a_kernels is None or one.b_kernels is None:
        return
    yield "unattributed", one.a_kernels.unattributed_ns, one.b_kernels.unattributed_ns
    yield "all kernels", one.a_kernels.total_ns, one.b_kernels.total_ns
    if one.end_to_end is not None:
        yield "end to end", one.end_to_end.a_ns, one.end_to_end.b_ns


def _total(blocks: Sequence[BlockDifference], side: str) -> int:
    costs = [block.a if side == "a" else block.b for block in blocks]
    return sum(cost.median_ns for cost in costs if cost is not None)


def _counts(one: TargetComparison) -> Iterator[str]:
    judged = [block for block in one.blocks if block.difference is not None and block.difference.method]
    won = {side: [block for block in judged if _winner(block.difference) == side] for side in ("A", "B")}
    if judged:
        n_even = len(judged) - len(won["A"]) - len(won["B"])
        yield (
            f"B is faster in {_gain(won['B'])}, A in {_gain(won['A'])}; {n_even} within noise: the 95% "
            "interval by recorded instrumented runs holds 1 (of 20 equal blocks, one is called faster by "
            "chance)"
        )
    n_silent = len(one.blocks) - len(judged)
    if n_silent:
        yield (
            f"?: nobody is called faster in {_n_blocks(n_silent)}: fewer than 4 instrumented runs were "
            "recorded, or a side does not tell"
        )
    for side, kernels in (("A", one.a_kernels), ("B", one.b_kernels)):
        if kernels is not None and kernels.inflated:
            yield (
                f"kernel times of {side} are inflated by the instruments, by {_overhead(kernels)}: that "
                "alone may decide who is called faster"
            )
    if one.end_to_end and one.a_kernels and one.b_kernels:
        change_ns = one.end_to_end.b_ns - one.end_to_end.a_ns
        if change_ns * (one.b_kernels.total_ns - one.a_kernels.total_ns) < 0:
            yield (
                "the kernels in sum go the other way than end to end: the difference lies between kernels, "
                "or in the instruments"
            )


def _gain(won: Sequence[BlockDifference]) -> str:
    return _n_blocks(len(won)) + (f" by {format_ns(abs(sum(map(_change, won))))}" if won else "")


def _n_blocks(n: int) -> str:
    return f"{n} block{'' if n == 1 else 's'}"


def _overhead(kernels: KernelSum) -> str:
    return figures.NOTHING if kernels.overhead is None else f"{kernels.overhead:.0%}"


def _limit(found: Comparison) -> Iterator[RenderableType]:
    if found.limit is None:
        return
    yield line("")
    if not found.too_slow:
        yield line(f"B is nowhere slower than A by more than {100 * found.limit:.3g}%", "bold")
        return
    yield line(f"B is slower than A by more than the {100 * found.limit:.3g}% allowed", "bold red")
    for one in found.slower(found.limit):
        what = _ratio(one.end_to_end) if one.end_to_end is not None else one.reason
        yield indented(f"{one.b}: {what}")
