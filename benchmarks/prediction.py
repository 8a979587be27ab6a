"""How far predictions are off: each model predicted from the others, and each shape from other shapes.

Reads the profiles of a folder; those of the cases below that are not there are measured first (needs
tests/models). For each target and case it builds a predictor from the other models alone (``model``),
and from everything but this shape (``shape``), and compares with what was measured: kernels by their
median absolute error as a factor, whole models by predicted over measured time; and how many truths lie
within the error bars, which should be 80%. The last lines show what the roofline alone would say, which
is where its constants come from.

    python -m benchmarks.prediction FOLDER [--target 'cpu:0/*/fp32']
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np

import hal
from hal.profiling.predict_kernels import LEAST_NS
from hal.profiling.predict_past import PastRun, past_runs
from hal.profiling.predict_target import LAUNCH_NS, TargetPredictor
from hal.profiling.roofline import ceiling_for
from hal.records import files
from hal.records.machine import Ceiling
from hal.records.profile import Profile
from hal.records.reading import read_profile
from hal.sampling import Policy
from tests.models import MODELS

_TEXT = ("input_ids", "attention_mask", "token_type_ids")
#: Name of the file: model and shapes.
CASES: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "digits-1": ("demo:digits", {"image": (1, 1, 8, 8)}),
    "digits-32": ("demo:digits", {"image": (32, 1, 8, 8)}),
    "ppocr_cls-1": ("ppocr_cls", {"x": (1, 3, 48, 192)}),
    "ppocr_cls-4": ("ppocr_cls", {"x": (4, 3, 48, 192)}),
    "ppocr_rec-320": ("ppocr_rec", {"x": (1, 3, 48, 320)}),
    "ppocr_rec-640": ("ppocr_rec", {"x": (1, 3, 48, 640)}),
    "ppocr_rec-4x320": ("ppocr_rec", {"x": (4, 3, 48, 320)}),
    "ppocr_det-224": ("ppocr_det", {"x": (1, 3, 224, 224)}),
    "ppocr_det-320": ("ppocr_det", {"x": (1, 3, 320, 320)}),
    "minilm-1x32": ("minilm", dict.fromkeys(_TEXT, (1, 32))),
    "minilm-8x32": ("minilm", dict.fromkeys(_TEXT, (8, 32))),
    "minilm-1x128": ("minilm", dict.fromkeys(_TEXT, (1, 128))),
    "magika-1": ("magika", {"bytes": (1, 2048)}),
    "magika-8": ("magika", {"bytes": (8, 2048)}),
    "silero_vad_openvino": ("silero_vad_openvino", {}),
    "silero_vad_sequence-16": (
        "silero_vad_sequence",
        {"input": (16, 576), "h": (1, 1, 128), "c": (1, 1, 128)},
    ),
}
_SHORT = Policy(max_time_ns=1_500_000_000)


class Trial(NamedTuple):
    """One held-out case on one target: log(truth / prediction) and whether the bar holds the truth."""

    case: str
    kernels: list[tuple[float, bool]]
    total: tuple[float, bool]


def read(folder: Path) -> dict[str, Profile]:
    """The cases' profiles; measures what is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for case, (name, shapes) in CASES.items():
        path = folder / f"{case}.json"
        if path.exists():
            continue
        print(f"measuring {case}", file=sys.stderr, flush=True)
        model = name if name.startswith("demo:") else MODELS[name].path()
        files.write(
            path, files.to_json(hal.profile(model, shapes=shapes or None, policy=_SHORT)), force=False
        )
    return {path.stem: read_profile(path.read_bytes(), path.name) for path in sorted(folder.glob("*.json"))}


def trial(case: str, run: PastRun, others: Sequence[PastRun], ceiling: Ceiling | None) -> Trial:
    """Predict a run from others."""
    predictor = TargetPredictor("", others, ceiling=ceiling)
    kernels = []
    for truth in run.kernels:
        if truth.median_ns < LEAST_NS:  # a view: no clock can tell
            continue
        cost = predictor.kernel(truth)
        error = math.log(truth.median_ns / cost.median_ns)
        kernels.append((error, cost.low_ns <= truth.median_ns <= cost.high_ns))
    total = predictor.model(run.facts, "", "").total
    held = total.low_ns <= run.end_to_end_ns <= total.high_ns
    return Trial(case, kernels, (math.log(run.end_to_end_ns / total.median_ns), held))


def line(target: str, mode: str, trials: Sequence[Trial]) -> str:
    """One row of the table."""
    kernels = [each for one in trials for each in one.kernels]
    off = [abs(one.total[0]) for one in trials]
    each = ", ".join(
        f"{one.case} {math.exp(-one.total[0]):.2f}{'' if one.total[1] else '!'}" for one in trials
    )
    cells = (
        target,
        mode,
        f"x{math.exp(float(np.median([abs(error) for error, _ in kernels]))):.2f}",
        f"{np.mean([held for _, held in kernels]):.0%} of {len(kernels)}",
        f"{math.exp(float(np.median(off))) - 1:.0%}",
        f"{np.mean([one.total[1] for one in trials]):.0%} of {len(trials)}",
        each,
    )
    return f"| {' | '.join(cells)} |"


def roofline_alone(runs: Sequence[PastRun], ceiling: Ceiling) -> list[float]:
    """Kernel times over launch and roofline."""
    return [
        one.median_ns
        / (LAUNCH_NS + 1e9 * max(one.flops / ceiling.flops_per_s, one.moved_bytes / ceiling.bytes_per_s))
        for run in runs
        for one in run.kernels
        if one.flops is not None and one.moved_bytes is not None and one.median_ns >= LEAST_NS
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="*")
    options = parser.parse_args()
    profiles = read(options.folder)
    report(profiles, options.target)


def report(profiles: dict[str, Profile], pattern: str) -> None:
    """Print the table for profiles by case."""
    cases = {profile.model.digest: case for case, profile in profiles.items()}
    targets = dict.fromkeys(part.target for profile in profiles.values() for part in profile.targets)
    headings = ("target", "from", "kernel error", "in bar", "end-to-end error", "in bar")
    print(f"| {' | '.join(headings)} | predicted over measured (! out of bar) |")
    print("|---|---|---|---|---|---|---|")
    factors: list[float] = []
    everything: dict[str, list[Trial]] = {"other models": [], "other shapes": []}
    for target in targets:
        if not fnmatch(target, pattern):
            continue
        runs = past_runs(profiles.values(), target)
        ceilings = [ceiling for profile in profiles.values() for ceiling in profile.ceilings]
        ceiling = ceiling_for(ceilings, target)
        for mode, found in everything.items():
            trials = []
            for run in runs:
                if mode == "other models":
                    others = [other for other in runs if other.family != run.family]
                else:
                    others = [other for other in runs if other.digest != run.digest]
                    if not any(other.family == run.family for other in others):
                        continue
                if others:
                    trials.append(trial(cases[run.digest], run, others, ceiling))
            if trials:
                print(line(target, mode, trials), flush=True)
                found.extend(trials)
        if ceiling is not None:
            factors += roofline_alone(runs, ceiling)
    if not everything["other models"]:
        raise SystemExit("nothing to compare; expected profiles of two models or more, with kernel times")
    for mode, trials in everything.items():
        if trials:
            print(line("all", mode, trials).rsplit("|", 2)[0] + "| |")
    if factors:
        low, middle, high = np.percentile(factors, [10, 50, 90])
        print(
            f"\ntime over launch ({LAUNCH_NS:.0f} ns) and roofline, {len(factors)} kernels: "
            f"p10 {low:.2f}, median {middle:.2f}, p90 {high:.2f}"
        )


if __name__ == "__main__":
    main()
