"""hal.compile against ONNX Runtime and OpenVINO called by hand, in child processes that take turns.

Table a: ``hal.compile`` with ``max_error=0`` against the faster of ONNX Runtime and OpenVINO in fp32, each at
its own best number of threads. Table b: with the error that OpenVINO's bf16 has on the model, against
OpenVINO as it comes (bf16 on processors that have it). The runtimes are called as direct.py says, without
their Python wrappers' extras; hal by ``session(*inputs)``, numpy in and out. Ratios are of medians of one
round; several sets of fresh processes, because two of one program differ by where their memory lies.

Goal (issue 5): at least as fast within 2% of noise. The machine must be idle. Needs tests/models (make env).

    python -m benchmarks.versus [--models demo:digits,ppocr_cls] [--sets 3] [--rounds 5] [--table a]
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import hal
from benchmarks.direct import rest
from benchmarks.subjects import subject_of
from hal import host, stats
from hal.choosing.choose import profiled
from hal.choosing.planner import asked
from hal.errors import BackendError, HalError
from hal.profiling.sources import Subject
from hal.units import format_ns
from tests.models import MODELS

NOISE = 1.02
#: Of one burst.
BURST_NS = 200_000_000
BF16 = "cpu:0/openvino/bf16"


class Side(NamedTuple):
    """One contestant: how it is shown, and the command that serves bursts of it."""

    name: str
    command: tuple[str, ...]


class Child:
    """A contestant's process."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.process = subprocess.Popen(
            side.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.n_runs = 3
        self.told = ""

    def ready(self) -> bool:
        """Wait for its first answer, which may say more after the word."""
        assert self.process.stdout is not None
        word, _, self.told = self.process.stdout.readline().strip().partition(" ")
        return word == "ready"

    def burst(self) -> float:
        """Median (ns) of a burst."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"burst {self.n_runs}\n")
        self.process.stdin.flush()
        durations: list[int] = json.loads(self.process.stdout.readline())
        median = stats.median(durations)
        self.n_runs = max(3, min(5_000, round(BURST_NS / median)))
        return median

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(name: str, max_error: float) -> None:
    """Bursts of hal's session until stdin closes; the protocol is direct.py's."""
    subject = subject_of(name)
    with hal.compile(subject, max_error=max_error) as session:
        inputs = list(subject.inputs)
        session(*inputs)
        print(f"ready {', '.join(session.plan.targets)}", flush=True)
        for line in sys.stdin:
            durations = []
            gc.collect()
            gc.disable()
            session(*inputs)
            for _ in range(int(line.split()[1])):
                started_ns = time.perf_counter_ns()
                session(*inputs)
                durations.append(time.perf_counter_ns() - started_ns)
            gc.enable()
            rest()
            print(json.dumps(durations), flush=True)


def by_hand(runtime: str, threads: int, precision: str, model: Path, inputs: Path) -> Side:
    """A runtime at one setting."""
    script = str(Path(__file__).with_name("direct.py"))
    return Side(
        f"{runtime} {precision}, {threads} thread{'s' * (threads > 1)}",
        (sys.executable, script, runtime, str(model), str(inputs), str(threads), precision),
    )


def by_hal(name: str, max_error: float) -> Side:
    """A session of hal's."""
    command = (sys.executable, "-m", "benchmarks.versus", "--serve", name, "--max-error", repr(max_error))
    return Side("hal", command)


def rounds_of(sides: list[Side], n_sets: int, n_rounds: int) -> tuple[dict[str, list[float]], str]:
    """Medians (ns) of each side by round, in all sets, and what hal says of its plan.

    Raises:
        BackendError: hal's session does not run.
    """
    found: dict[str, list[float]] = {side.name: [] for side in sides}
    told = ""
    for _ in range(n_sets):
        with ExitStack() as stack:
            children = [Child(side) for side in sides]
            for child in children:
                stack.callback(child.close)
            able = [child for child in children if child.ready()]
            told = next((child.told for child in able if child.side.name == "hal"), "")
            if not told:
                raise BackendError("hal's session does not run")
            for number in range(n_rounds + 1):
                for child in able:
                    median = child.burst()
                    if number:  # the first says how many runs make a burst
                        found[child.side.name].append(median)
    return {name: values for name, values in found.items() if values}, told


def line(name: str, sides: list[Side], n_sets: int, n_rounds: int) -> str:
    """A row: hal against the best of the others."""
    found, told = rounds_of(sides, n_sets, n_rounds)
    ours = found.pop("hal")
    if not found:
        raise BackendError("no runtime takes the model")
    best = min(found, key=lambda one: stats.median(found[one]))
    ratios = [mine / other for mine, other in zip(ours, found[best], strict=True)]
    middle = stats.median(ratios)
    cells = (
        name,
        told,
        format_ns(round(stats.median(ours))),
        best,
        format_ns(round(stats.median(found[best]))),
        f"{middle:.3f} ({stats.percentile(ratios, 10):.3f} to {stats.percentile(ratios, 90):.3f})",
        "yes" if middle <= NOISE else "NO",
    )
    return f"| {' | '.join(cells)} |"


def error_of(subject: Subject) -> float:
    """The relative L2 error of OpenVINO's bf16 on the model, a little up; 0 where it has none."""
    _, profile = profiled(subject, constraints=asked(max_error=1.0, targets=["cpu:0/*"]))
    target = next((one for one in profile.targets if one.target == BF16 and one.status == "ok"), None)
    errors = [one.relative_l2 for one in target.errors if one.relative_l2 is not None] if target else []
    return float(f"{1.05 * max(errors):.2g}") if errors and math.isfinite(max(errors)) else 0.0


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="")
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", choices=("a", "b", ""), default="")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--max-error", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.max_error)
        return
    names = options.models.split(",") if options.models else ["demo:digits", *MODELS]
    cores = host.n_usable_cpus()
    for table in options.table or "ab":
        print(
            "| model | hal's plan | hal | best by hand | takes | ratio (p10 to p90) | within 2% |", flush=True
        )
        print("|---|---|---|---|---|---|---|", flush=True)
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    print(_row(table, name, cores, Path(folder), options), flush=True)
                except HalError as error:
                    print(f"| {name} | {error.message.splitlines()[0][:90]} | | | | | |", flush=True)
        print()


def _row(table: str, name: str, cores: int, folder: Path, options: Any) -> str:
    subject = subject_of(name)
    inputs = folder / "inputs.npz"
    np.savez(inputs, **subject.named_inputs)  # type: ignore[arg-type]  # names are the model's
    model = subject.graph.save(folder)
    if table == "a":
        threads = sorted({1, cores})
        others = [
            by_hand(one, n, "fp32", model, inputs) for one in ("onnxruntime", "openvino") for n in threads
        ]
        max_error = 0.0
    else:
        others = [by_hand("openvino", cores, "bf16", model, inputs)]
        max_error = error_of(subject)
    hal.compile(subject, max_error=max_error).close()  # so that all children find the plan
    return line(name, [by_hal(name, max_error), *others], options.sets, options.rounds)


if __name__ == "__main__":
    main()
