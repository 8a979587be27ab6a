"""The parts of the page that are words and tables: ready for the template, which only places them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hal.profiling.roofline import ceiling_for
from hal.records.machine import Link
from hal.records.profile import Profile, TargetProfile, Timing
from hal.report.data import shown_order
from hal.report.text import visible
from hal.units import format_bytes, format_ns

#: Stands where nothing was measured.
NOTHING = "–"
#: Names listed before "and N more".
_NAMES_LISTED = 20


@dataclass(frozen=True)
class Card:
    """One answer on top of the page.

    Attributes:
        label: The question, in two words.
        value: The answer.
        lines: What makes it precise.
        tone: ``good``, ``bad``, ``warn`` or empty.
    """

    label: str
    value: str
    lines: tuple[str, ...]
    tone: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar of the width of its cell, in percent of that width."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Row:
    """A target in the table on top: its figures as texts, by column."""

    name: str
    status: str
    best: bool
    stable: bool
    bar: Bar | None
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """A target's cold start: widths in percent of the longest, and figures as texts."""

    name: str
    widths: tuple[float, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """Everything that the template shows without the help of a script.

    Attributes:
        columns: Headings of ``rows``' cells.
        remarks: Title, tone and lines of each group of things to know.
        definitions: Title and (name, value) pairs of each table of the environment.
        missing: What the profile does not hold, by section: one line each.
    """

    title: str
    subtitle: str
    machine: str
    cards: tuple[Card, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    remarks: tuple[tuple[str, str, tuple[str, ...]], ...]
    starts: tuple[Start, ...]
    links: tuple[tuple[str, ...], ...]
    definitions: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    missing: dict[str, str]
    version: str
    created: str


def overview(profile: Profile) -> Overview:
    """Words and tables of the page; every text in it is :func:`hal.report.text.visible`."""
    targets = shown_order(profile)
    model, here = profile.model, profile.environment
    columns, rows = _rows(profile, targets)
    return Overview(
        title=visible(model.name) or "model",
        subtitle=visible(
            f"{model.n_nodes:,} nodes · opset {model.opset} · {format_bytes(model.weight_bytes)} of weights "
            f"· digest {model.digest[:12]}"
        ),
        machine=visible(
            f"{here.cpu} · {here.n_usable_cpus} of {here.n_cpus} CPUs · "
            f"{format_bytes(here.memory_bytes)} · {here.system} · Python {here.python}"
        ),
        cards=tuple(_cards(profile)),
        columns=columns,
        rows=rows,
        remarks=tuple(_remarks(profile)),
        starts=_starts(targets),
        links=tuple(_link(link) for link in profile.links),
        definitions=tuple(_definitions(profile)),
        missing=_missing(profile),
        version=visible(profile.hal_version),
        created=visible(profile.created),
    )


def _cards(profile: Profile) -> list[Card]:
    ranking = profile.ranking
    timed = [target for target in profile.targets if target.timing is not None]
    shaky = [target for target in timed if target.timing is not None and not target.timing.stable]
    wrong = [target for target in profile.targets if target.status != "ok"]
    cards = [_fastest(profile)]
    exact = next((target for target in ranking if _precision(target) == "fp32"), None)
    if exact is not None and exact is not ranking[0]:
        cards.append(_time_card("Fastest in fp32", exact, ranking[0]))
    cards.append(
        Card(
            "Stability",
            f"{len(timed) - len(shaky)} of {len(timed)} stable",
            tuple(f"{visible(target.target)} is not" for target in shaky[:2])
            or ("every figure settled within its time",),
            "warn" if shaky else "good",
        )
        if timed
        else Card("Stability", "nothing was timed", (), "warn")
    )
    checked = [target for target in ranking if target.relative_l2 is not None]
    worst = max((target.relative_l2 or 0.0 for target in checked), default=None)
    lines = [f"worst error of them {worst:.1e}" if worst is not None else "answers were not checked"]
    if wrong:
        lines.append(", ".join(_counted(wrong)))
    cards.append(
        Card(
            "Right answers",
            f"{len(ranking)} of {len(profile.targets)} targets",
            tuple(lines),
            "good" if checked and not wrong else "warn" if ranking else "bad",
        )
    )
    return cards


def _fastest(profile: Profile) -> Card:
    ranking = profile.ranking
    if not ranking:
        return Card("Fastest", "none", ("no target answered rightly",), "bad")
    return _time_card("Fastest", ranking[0], *ranking[1:2])


def _time_card(label: str, target: TargetProfile, *rival: TargetProfile) -> Card:
    timing = target.timing
    if timing is None:  # not in a ranking
        return Card(label, visible(target.target), (), "warn")
    lines = [f"{_ns(timing.median_ns)} per run, p10–p90 {_spread(timing)}"]
    for other in rival:
        if other.timing is None:
            continue
        ratio = other.timing.median_ns / max(timing.median_ns, 1)
        tied = (
            timing.interval_low_ns <= other.timing.interval_high_ns
            and other.timing.interval_low_ns <= timing.interval_high_ns
        )
        words = f"{ratio:.2f}× as fast as" if ratio >= 1 else f"{1 / max(ratio, 1e-9):.2f}× the time of"
        lines.append(f"{words} {visible(other.target)}{', within the noise' if tied else ''}")
    return Card(label, visible(target.target), tuple(lines), "" if timing.stable else "warn")


def _rows(profile: Profile, targets: Sequence[TargetProfile]) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    ratios = {ratio.target: ratio for ratio in profile.ratios}
    longest = max((target.timing.p90_ns for target in targets if target.timing), default=0) or 1
    with_accuracy = any(target.accuracy is not None for target in targets)
    with_energy = any(target.energy is not None for target in targets)
    columns = ["Median", "p10–p90", "Runs", "Ratio", "Error", "Memory"]
    columns += ["Accuracy"] if with_accuracy else []
    columns += ["Energy"] if with_energy else []
    rows = []
    for target in targets:
        timing, ratio = target.timing, ratios.get(target.target)
        cells = [
            NOTHING if timing is None else _ns(timing.median_ns),
            NOTHING if timing is None else _spread(timing),
            NOTHING if timing is None else f"{timing.n:,}",
            NOTHING if ratio is None else f"{ratio.median:.2f}×",
            _error(target),
            _memory(target),
        ]
        if with_accuracy:
            cells.append(NOTHING if target.accuracy is None else f"{target.accuracy:.4f}")
        if with_energy:
            cells.append(NOTHING if target.energy is None else f"{target.energy.per_run_mj:.3g} mJ")
        bar = None
        if timing is not None:
            ends = (timing.p10_ns, timing.median_ns, timing.p90_ns)
            bar = Bar(*(100 * end / longest for end in ends))
        rows.append(
            Row(
                visible(target.target),
                visible(target.status),
                target in profile.ranking[:1],
                timing is None or timing.stable,
                bar,
                tuple(cells),
            )
        )
    return tuple(columns), tuple(rows)


def _remarks(profile: Profile) -> list[tuple[str, str, tuple[str, ...]]]:
    unusable, unstable, elsewhere, silent = [], [], [], []
    for target in profile.targets:
        if target.status != "ok":
            unusable.append(f"{target.target} {target.status}: {target.reason or 'no reason told'}")
            unusable += _listed([f"{n.node} ({n.op}): {n.reason}" for n in target.refused])
        if target.timing is not None and not target.timing.stable:
            unstable.append(f"{target.target}: {target.timing.reason or 'no reason told'}")
        elsewhere += _listed(
            [
                f"{target.target}: {f.node} asked {f.asked}, got {f.got}"
                + (f" ({f.reason})" if f.reason else "")
                for f in target.fallbacks
            ]
        )
        if target.kernels_missing:
            silent.append(f"{target.target}: {target.kernels_missing}")
        elif target.kernels is not None and target.kernels.inflated:
            silent.append(
                f"{target.target}: inflated, its instruments slowed the run by "
                f"{100 * (target.kernels.overhead or 0):.0f}%"
            )
    broken = [f"{plugin.name}: {plugin.failure}" for plugin in profile.plugins if plugin.failure]
    groups = (
        ("Not usable", "bad", unusable),
        ("Unstable figures", "warn", unstable),
        ("Ran elsewhere than asked", "warn", elsewhere),
        ("Kernel times that are missing or inflated", "warn", silent),
        ("Plugins that failed", "bad", broken),
        ("Notes", "", list(profile.notes)),
    )
    return [(title, tone, tuple(map(visible, lines))) for title, tone, lines in groups if lines]


def _starts(targets: Sequence[TargetProfile]) -> tuple[Start, ...]:
    found = [target for target in targets if target.cold_start is not None or target.memory is not None]
    longest = max(
        (c.start_ns + c.compile_ns + c.first_run_ns for target in found if (c := target.cold_start)),
        default=1,
    )
    rows = []
    for target in found:
        cold, memory = target.cold_start, target.memory
        parts = (cold.start_ns, cold.compile_ns, cold.first_run_ns) if cold else ()
        sizes = (
            cold.blob_bytes if cold else None,
            memory.loaded_bytes if memory else None,
            memory.peak_bytes if memory else None,
            memory.device_bytes if memory else None,
        )
        rows.append(
            Start(
                visible(target.target),
                tuple(100 * part / max(longest, 1) for part in parts),
                (
                    *(map(_ns, parts) if parts else (NOTHING,) * 3),
                    *(NOTHING if size is None else format_bytes(size) for size in sizes),
                ),
            )
        )
    return tuple(rows)


def _link(link: Link) -> tuple[str, ...]:
    names = (visible(link.source), visible(link.destination), "same" if link.same_silicon else "other")
    if not link.points:
        return (*names, NOTHING, NOTHING, NOTHING, visible(link.reason) or "not measured")
    first, last = link.points[0], link.points[-1]
    return (
        *names,
        f"{_ns(first.median_ns)} at {format_bytes(first.n_bytes)}",
        f"{_ns(last.median_ns)} at {format_bytes(last.n_bytes)}",
        f"{last.n_bytes / last.median_ns:.1f} GB/s" if last.median_ns else NOTHING,
        visible(link.reason),
    )


def _definitions(profile: Profile) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    here, model = profile.environment, profile.model
    tables: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "Machine",
            [
                ("System", f"{here.system} {here.machine}"),
                ("Processor", here.cpu),
                ("CPUs", f"{here.n_usable_cpus} of {here.n_cpus} usable"),
                ("Memory", format_bytes(here.memory_bytes)),
                ("Python", here.python),
                *sorted(here.settings.items()),
                ("CPU features", " ".join(here.cpu_features)),
            ],
        ),
        ("Packages", sorted(here.packages.items())),
        (
            "Plugins",
            [(p.name, p.failure or f"{p.distribution} {p.version}") for p in profile.plugins],
        ),
        (
            "Devices",
            # Several backends may name one device alike.
            list(dict.fromkeys((d.id, f"{d.name}: {d.unavailable}".rstrip(": ")) for d in profile.devices)),
        ),
        (
            "Ceilings",
            [
                (
                    f"{c.device} {c.precision}",
                    f"{c.flops_per_s / 1e9:,.0f} GFLOP/s by {c.compute_target}, "
                    f"{c.bytes_per_s / 1e9:,.1f} GB/s by {c.copy_target}",
                )
                for c in profile.ceilings
            ],
        ),
        (
            "Model",
            [
                *((f"Input {spec.name}", str(spec)) for spec in model.inputs),
                *((f"Output {spec.name}", str(spec)) for spec in model.outputs),
                ("Values", model.inputs_from),
                ("Digest", model.digest),
                ("Reference", profile.reference or "none"),
            ],
        ),
        (
            "Telemetry",
            [
                (target.target, ", ".join(f"{name} {value}" for name, value in target.telemetry.items()))
                for target in profile.targets
                if target.telemetry
            ],
        ),
    ]
    return [
        (title, tuple((visible(name), visible(value)) for name, value in pairs))
        for title, pairs in tables
        if pairs
    ]


def _missing(profile: Profile) -> dict[str, str]:
    targets = profile.targets
    found = {}
    if not any(target.kernels for target in targets):
        found["kernels"] = "No target has kernel times in this profile."
    if profile.facts is None:
        found["facts"] = (
            "This profile has no facts about the nodes (work, modules, source lines), so kernels are grouped "
            "by operator and their limits are not known."
        )
    elif not any(node.module for node in profile.facts.nodes):
        found["facts"] = "The model file does not tell modules, so kernels are grouped by operator."
    if not profile.ceilings:
        found["ceilings"] = "No ceilings were measured, so what limits each kernel cannot be told."
    elif not any(ceiling_for(profile.ceilings, target.target) for target in targets):
        found["ceilings"] = "The ceilings in this profile are of other devices or precisions."
    if not profile.units:
        found["units"] = "This profile has no units; targets cannot be compared layer by layer."
    if not any(target.memory and target.memory.samples for target in targets):
        found["memory"] = "No memory samples were taken; the table below has the peaks."
    if not any(link.points for link in profile.links):
        found["links"] = "No handoffs between backends were measured."
    return found


def _spread(timing: Timing) -> str:
    low, low_unit = _ns(timing.p10_ns).split(" ")
    high, high_unit = _ns(timing.p90_ns).split(" ")
    return f"{low}–{high} {high_unit}" if low_unit == high_unit else f"{low} {low_unit}–{high} {high_unit}"


def _ns(duration_ns: float) -> str:
    # A terminal may lack the sign, a page does not.
    return format_ns(duration_ns).replace(" us", " µs")


def _error(target: TargetProfile) -> str:
    error = target.relative_l2
    if error is None:
        return NOTHING
    return "∞" if math.isinf(error) else "0" if error == 0 else f"{error:.1e}"


def _memory(target: TargetProfile) -> str:
    if target.memory is None:
        return NOTHING
    on_device = target.memory.device_bytes
    return format_bytes(target.memory.model_bytes if on_device is None else on_device)


def _listed(lines: list[str]) -> list[str]:
    more = [f"and {len(lines) - _NAMES_LISTED} more"] if len(lines) > _NAMES_LISTED else []
    return lines[:_NAMES_LISTED] + more


def _counted(targets: Sequence[TargetProfile]) -> list[str]:
    counts = Counter(target.status for target in targets)
    return [f"{n} {status}" for status, n in counts.items()]


def _precision(target: TargetProfile) -> str:
    # Not Target.parse: a profile written elsewhere may name targets in ways that this version cannot read.
    return target.target.split("+")[0].rsplit("/", 1)[-1]
