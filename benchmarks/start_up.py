"""Time of ``import hal`` (goal: 60 ms) and ``hal --version`` (goal: 0.25 s), in fresh processes.

python -m benchmarks.start_up
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from hal import stats
from hal.units import format_ns

REPEATS = 21


def time_command(command: list[str]) -> list[float]:
    """Wall time of fresh processes, in nanoseconds."""
    durations = []
    for _ in range(REPEATS):
        started_ns = time.perf_counter_ns()
        subprocess.run(command, check=True, capture_output=True)
        durations.append(float(time.perf_counter_ns() - started_ns))
    return durations


def main() -> None:
    """Print medians with their spread."""
    hal_command = str(Path(sys.executable).with_name("hal"))
    script = "import time; t = time.perf_counter_ns(); import hal; print(time.perf_counter_ns() - t)"
    imports = [
        float(
            subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
        )
        for _ in range(REPEATS)
    ]
    rows = {
        "import hal": imports,
        "hal --version": time_command([hal_command, "--version"]),
        "hal --help": time_command([hal_command, "--help"]),
        "python -c pass": time_command([sys.executable, "-c", "pass"]),
    }
    for name, durations in rows.items():
        low, high = stats.percentile(durations, 10), stats.percentile(durations, 90)
        print(f"{name:16} {format_ns(stats.median(durations)):>8} ({format_ns(low)} to {format_ns(high)})")


if __name__ == "__main__":
    main()
