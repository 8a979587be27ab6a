"""A profile as tables and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hal.cli import figures
from hal.cli.kernels_text import kernels_text
from hal.cli.output import cell, indented, line, one_line, table
from hal.cli.verdict import verdict
from hal.records.profile import Profile, TargetProfile
from hal.units import format_bytes, format_ns, format_rate

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: Names listed before "and N more".
_NAMES_LISTED = 6

_STYLES = {"ok": "green", "wrong": "bold red", "failed": "red", "refused": "yellow"}


def profile_text(profile: Profile, n_top: int) -> Iterator[RenderableType]:
    """Everything ``hal profile`` prints.

    Args:
        profile: What was measured.
        n_top: Kernels listed per target.
    """
    yield from header(profile)
    yield line("")
    yield line(_caption(profile), "bold")
    yield _targets(profile)
    yield from _costs_of_starting(profile)
    yield from _ceilings(profile)
    yield from remarks(profile)
    for target in ordered(profile):
        if target.kernels is not None:
            yield line("")
            yield from kernels_text(target, target.kernels, n_top)
    yield line("")
    yield from _verdict(profile)


def bench_text(profile: Profile) -> Iterator[RenderableType]:
    """Everything ``hal bench`` prints."""
    yield from header(profile)
    yield line("")
    yield line(f"Targets in turn, end to end per run{_against(profile)}", "bold")
    yield _ratios(profile)
    yield from remarks(profile)
    yield line("")
    yield from _verdict(profile)


def _verdict(profile: Profile) -> Iterator[RenderableType]:
    title, *lines = verdict(profile)
    yield line(title, "bold")
    for text in lines:
        yield indented(text)


def header(profile: Profile) -> Iterator[RenderableType]:
    """The model and the environment."""
    model, here = profile.model, profile.environment
    yield line(
        f"{one_line(model.name, 60)}: {model.n_nodes} nodes, opset {model.opset}, "
        f"{format_bytes(model.weight_bytes)} of weights, digest {model.digest[:12]}",
        "bold",
    )
    for kind, specs in (("input", model.inputs), ("output", model.outputs)):
        for spec in specs[:_NAMES_LISTED]:
            yield indented(f"{kind:<8}{one_line(str(spec), 88)}")
        if len(specs) > _NAMES_LISTED:
            yield indented(f"        and {len(specs) - _NAMES_LISTED} more {kind}s")
    yield indented(f"values  {one_line(model.inputs_from)}")
    yield line(
        f"{here.system} {here.machine}, {here.cpu}, {here.n_usable_cpus} of {here.n_cpus} CPUs usable, "
        f"{format_bytes(here.memory_bytes)} of memory"
    )
    packages = ", ".join(f"{name} {version}" for name, version in sorted(here.packages.items()))
    yield line(f"hal {profile.hal_version}, Python {here.python}{', ' if packages else ''}{packages}")
    if here.settings:
        yield line(", ".join(f"{name}={value}" for name, value in sorted(here.settings.items())))


def remarks(profile: Profile) -> Iterator[RenderableType]:
    """Why targets are missing, wrong or unstable, what ran elsewhere, what is not here."""
    yield from _group("Not usable", _unusable(profile.targets))
    yield from _group(
        "Unstable figures (marked !)",
        [
            f"{target.target}: {target.timing.reason or 'no reason told'}"
            for target in profile.targets
            if target.timing is not None and not target.timing.stable
        ],
    )
    yield from _group("Ran elsewhere than asked", _fallbacks(profile.targets))
    yield from _group(
        "No kernel times",
        [
            f"{target.target}: {target.kernels_missing}"
            for target in profile.targets
            if target.kernels_missing
        ],
    )
    yield from _group(
        "Telemetry",
        [
            f"{target.target}: "
            + ", ".join(f"{name} {value}" for name, value in sorted(target.telemetry.items()))
            for target in profile.targets
            if target.telemetry
        ],
    )
    yield from _group(
        "Energy",
        [
            f"{target.target}: {target.energy.per_run_mj:.3g} mJ a run, idle power included "
            f"({target.energy.source})"
            for target in profile.targets
            if target.energy is not None
        ],
    )
    yield from _group(
        "Plugins that failed",
        [f"{plugin.name}: {plugin.failure}" for plugin in profile.plugins if plugin.failure],
    )
    yield from _group("Notes", profile.notes)


def ordered(profile: Profile) -> list[TargetProfile]:
    """Right answers first, fastest first; then the others as they came."""
    ranking = list(profile.ranking)
    return ranking + [target for target in profile.targets if target not in ranking]


def _caption(profile: Profile) -> str:
    reference = f"; error: relative L2 against {profile.reference}" if profile.reference else ""
    return f"Targets, end to end per run, fastest first{_against(profile)}{reference}"


def _against(profile: Profile) -> str:
    baselines = sorted({ratio.baseline for ratio in profile.ratios})
    return f"; ratio: time over that of {', '.join(baselines)}, side by side" if baselines else ""


def _targets(profile: Profile) -> Table:
    with_accuracy = any(target.accuracy is not None for target in profile.targets)
    columns = [
        ("target", "text"),
        ("median", "number"),
        ("p10-p90", "number"),
        ("n", "number"),
        ("ratio", "number"),
        ("error", "number"),
        *([("accuracy", "number")] if with_accuracy else []),
        ("status", "name"),
    ]
    made = table(*columns)
    ratios = {ratio.target: ratio.median for ratio in profile.ratios}
    for target in ordered(profile):
        texts = [
            figures.median_text(target.timing),
            figures.spread_text(target.timing),
            figures.count_text(target.timing),
            figures.ratio_text(ratios[target.target]) if target.target in ratios else figures.NOTHING,
            figures.error_of(target),
            *([figures.accuracy_text(target)] if with_accuracy else []),
        ]
        made.add_row(cell(target.target), *map(cell, texts), _status(target))
    return made


def _costs_of_starting(profile: Profile) -> Iterator[RenderableType]:
    started = [(target, target.cold_start) for target in ordered(profile) if target.cold_start is not None]
    if not started:
        return
    yield line("")
    yield line(
        "Before the first steady run; memory: what the model adds to its own process or device", "bold"
    )
    made = table(
        ("target", "text"),
        ("memory", "number"),
        ("start", "number"),
        ("compile", "number"),
        ("first run", "number"),
        ("compiled form", "number"),
    )
    for target, cold in started:
        texts = (
            figures.memory_text(target),
            format_ns(cold.start_ns),
            format_ns(cold.compile_ns),
            format_ns(cold.first_run_ns),
            figures.NOTHING if cold.blob_bytes is None else format_bytes(cold.blob_bytes),
        )
        made.add_row(cell(target.target), *map(cell, texts))
    yield made


def _ceilings(profile: Profile) -> Iterator[RenderableType]:
    """The roofline that kernels are held against."""
    yield from _group(
        "The most this machine was seen to do: a large matrix product, a large copy or reduction",
        [
            f"{one.device} in {one.precision}: {format_rate(one.flops_per_s, 'FLOP/s')} "
            f"({one.compute_target}), {format_rate(one.bytes_per_s, 'B/s')} ({one.copy_target})"
            for one in profile.ceilings
        ],
    )


def _ratios(profile: Profile) -> Table:
    made = table(
        ("target", "text"),
        ("ratio", "number"),
        ("p10-p90", "number"),
        ("rounds", "number"),
        ("median", "number"),
        ("p10-p90", "number"),
        ("n", "number"),
        ("error", "number"),
        ("status", "name"),
    )
    ratios = {ratio.target: ratio for ratio in profile.ratios}
    for target in ordered(profile):
        ratio = ratios.get(target.target)
        compared = (
            ("-", "-", "-")
            if ratio is None or target.status != "ok"
            else (
                figures.ratio_text(ratio.median),
                f"{figures.ratio_text(ratio.p10)}-{figures.ratio_text(ratio.p90)}",
                str(ratio.n_rounds),
            )
        )
        made.add_row(
            cell(target.target),
            *map(cell, compared),
            cell(figures.median_text(target.timing)),
            cell(figures.spread_text(target.timing)),
            cell(figures.count_text(target.timing)),
            cell(figures.error_of(target)),
            _status(target),
        )
    return made


def _status(target: TargetProfile) -> RenderableType:
    return cell(target.status, 12, _STYLES.get(target.status, ""))


def _unusable(targets: Sequence[TargetProfile]) -> list[str]:
    found = []
    for target in targets:
        if target.status == "ok":
            continue
        found.append(f"{target.target} {target.status}: {target.reason or 'no reason told'}")
        # The reason of a refusal often names its nodes; list those it leaves out.
        rest = [node for node in target.refused if node.node not in target.reason]
        found.extend(
            f"  {one_line(node.node, 50)} ({one_line(node.op, 30)}): {node.reason}"
            for node in rest[:_NAMES_LISTED]
        )
        if len(rest) > _NAMES_LISTED:
            found.append(f"  and {len(rest) - _NAMES_LISTED} more nodes; the profile's JSON lists them")
    return found


def _fallbacks(targets: Sequence[TargetProfile]) -> list[str]:
    found = []
    for target in targets:
        for fallback in target.fallbacks[:_NAMES_LISTED]:
            reason = f" ({fallback.reason})" if fallback.reason else ""
            found.append(
                f"{target.target}: {one_line(fallback.node, 50)} asked {fallback.asked}, "
                f"got {fallback.got}{reason}"
            )
        if len(target.fallbacks) > _NAMES_LISTED:
            n_more = len(target.fallbacks) - _NAMES_LISTED
            found.append(f"{target.target}: and {n_more} more; the profile's JSON lists them")
    return found


def _group(title: str, texts: Sequence[str]) -> Iterator[RenderableType]:
    if texts:
        yield line("")
        yield line(title, "bold")
        for text in texts:
            yield indented(text)
