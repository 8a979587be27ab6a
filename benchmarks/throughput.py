"""Requests per second of a session compiled for throughput, against ONNX Runtime and OpenVINO by hand.

By hand is what the runtimes' documentation recommends for throughput, in fp32: ONNX Runtime called by as many
threads as there are processors, each run on one of them; OpenVINO with its throughput hint and an
AsyncInferQueue. Each also with batches of 8 and 32 requests, where the model can be computed so. Every side
has a process of its own, and all take turns, in a new order each round.

Prints the median of each side, and that of hal over the best one by hand, with the spread over rounds. What
hal chose goes to stderr. The machine must be idle. Needs tests/models (make env).

    python -m benchmarks.throughput [MODEL...] [--rounds 9] [--seconds 0.5]
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.subjects import subject_of
from hal import stats
from hal.errors import InputError
from hal.graph.rebatch import rebatched

DEFAULT = ("demo:digits", "silero_vad_openvino", "ppocr_cls", "magika", "minilm", "ppocr_rec")
#: Requests in a run by hand.
BATCHES = (8, 32)
HAL = "hal"


class Side:
    """One process.

    Args:
        name: As :mod:`benchmarks.loads` takes it.
        model: The file.
        inputs: Of one request.
    """

    def __init__(self, name: str, model: Path, inputs: Path) -> None:
        self.name = name
        self.rates: list[float] = []
        command = [sys.executable, "-m", "benchmarks.loads", name, str(model), str(inputs)]
        errors = None if name == HAL else subprocess.DEVNULL
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        self.is_there = self._line() == "ready"

    def burst(self, seconds: float) -> None:
        """One burst more."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"burst {seconds}\n")
        self._child.stdin.flush()
        self.rates.append(float(self._line()))

    def close(self) -> None:
        """End it."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _line(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()


def compare(name: str, rounds: int, seconds: float) -> str:
    """One line of the table."""
    subject = subject_of(name)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        inputs = folder / "inputs.npz"
        np.savez(inputs, **subject.named_inputs)  # type: ignore[arg-type]  # names are the model's
        files = {"": subject.graph.save(folder)}
        for batch in BATCHES:
            (folder / str(batch)).mkdir()
            try:
                files[f":{batch}"] = rebatched(subject.graph, batch).save(folder / str(batch))
            except InputError as error:
                print(error, file=sys.stderr)
        # hal measures before anybody else is there.
        sides = [Side(HAL, files[""], inputs)]
        sides += [
            Side(f"{runtime}{batch}", file, inputs)
            for runtime in ("onnxruntime", "openvino")
            for batch, file in files.items()
        ]
        going = [side for side in sides if side.is_there]
        order = random.Random(0)
        for _ in range(rounds):
            order.shuffle(going)
            for side in going:
                side.burst(seconds)
        for side in sides:
            side.close()
    ours = sides[0].rates
    medians = {side.name: stats.median(side.rates) for side in going if side.name != HAL}
    best = next(side for side in going if side.name == max(medians, key=medians.__getitem__))
    ratios = [a / b for a, b in zip(ours, best.rates, strict=True)]
    told = ", ".join(f"{side} {rate:,.1f}" for side, rate in sorted(medians.items(), key=lambda p: -p[1]))
    return (
        f"| {name} | {stats.median(ours):,.1f} | {best.name} {medians[best.name]:,.1f} | "
        f"{stats.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | {told} |"
    )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5)
    given = parser.parse_args()
    print("| model | hal, requests/s | best by hand | hal over it | all by hand |")
    print("|---|---|---|---|---|")
    for name in given.models:
        print(compare(name, given.rounds, given.seconds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
