"""hal's end-to-end figure against the runtime called directly, in alternating child processes.

For each model and target: bursts of hal's measuring loop (in a worker) and of the same runtime called by
direct.py take turns, in several pairs of fresh processes, because two processes of one program differ by
more than hal adds (where their memory happens to lie). Prints medians over pairs, their difference, the
ratio with its spread, and whether the difference is within 3% or 20 us, whichever is larger. Needs
tests/models (make env).

    python -m benchmarks.end_to_end [MODEL...] [--pairs 5] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.subjects import subject_of
from hal import host, plugins, stats
from hal.backend import Device, Target
from hal.errors import BackendError, HalError
from hal.profiling import discover
from hal.profiling.sources import Subject
from hal.sampling import Policy
from hal.units import format_ns
from hal.worker import WorkerBackend

RUNTIMES = ("cpu", "openvino", "onnxruntime")
POLICY = Policy()
#: Where none is named: models that run everywhere, from tens of microseconds to tens of milliseconds.
DEFAULT = ("demo:digits", "silero_vad_openvino", "ppocr_cls", "magika", "minilm", "ppocr_rec")


def compare(
    name: str, subject: Subject, target: Target, device: Device, pairs: int, rounds: int, folder: Path
) -> str:
    """One line of the table."""
    inputs = folder / "inputs.npz"
    np.savez(inputs, **subject.named_inputs)  # type: ignore[arg-type]  # names are the model's
    command = [
        sys.executable,
        str(Path(__file__).with_name("direct.py")),
        target.backend,
        str(subject.graph.save(folder)),
        str(inputs),
        str(host.n_usable_cpus()),
        target.configuration.precision,
    ]
    found = [compare_once(subject, target, device, rounds, command) for _ in range(pairs)]
    ours_ns = stats.median([ours for ours, _ in found])
    theirs_ns = stats.median([theirs for _, theirs in found])
    difference_ns = stats.median([ours - theirs for ours, theirs in found])
    ratios = [ours / theirs for ours, theirs in found]
    within = abs(difference_ns) <= max(0.03 * theirs_ns, 20_000)
    cells = (
        name,
        str(target),
        format_ns(ours_ns),
        format_ns(theirs_ns),
        f"{difference_ns / 1e3:+.1f} us",
        f"{stats.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        "yes" if within else "NO",
    )
    return f"| {' | '.join(cells)} |"


def compare_once(
    subject: Subject, target: Target, device: Device, rounds: int, command: list[str]
) -> tuple[float, float]:
    """Medians (ns) of hal's runs and of the direct ones, in one pair of fresh processes."""
    with (
        WorkerBackend(plugins.reference(target.backend)) as backend,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as direct,
    ):
        executable = backend.compile(device, subject.graph, target.configuration)
        executable.prepare(subject.inputs)
        executable.warm_up(POLICY)
        assert direct.stdin is not None
        assert direct.stdout is not None
        if direct.stdout.readline() != "ready\n":
            raise BackendError("the direct call failed")
        ours: list[float] = []
        theirs: list[float] = []
        n_runs = len(executable.burst(POLICY))
        for index in range(rounds + 1):
            mine = executable.burst(POLICY)
            direct.stdin.write(f"burst {n_runs}\n")
            direct.stdin.flush()
            other = json.loads(direct.stdout.readline())
            if index:  # the first round warms the direct side up
                ours.append(stats.median(mine))
                theirs.append(stats.median(other))
        direct.stdin.close()
    return stats.median(ours), stats.median(theirs)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=DEFAULT)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    discovery = discover(RUNTIMES)
    print("| model | target | hal | direct | difference | ratio (least to most) | within 3% or 20 us |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        subject = subject_of(name)
        for target in discovery.targets():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    line = compare(
                        name,
                        subject,
                        target,
                        discovery.device(target),
                        options.pairs,
                        options.rounds,
                        Path(folder),
                    )
                except HalError as error:
                    line = f"| {name} | {target} | {error.message.splitlines()[0][:80]} | | | | |"
                print(line, flush=True)


if __name__ == "__main__":
    main()
