"""What is rendered, by the name of the file that holds the exact text. Renew: ``python -m tests.golden``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hal.cli.devices_text import Listing, devices_text
from hal.cli.doctor_text import doctor_text
from hal.cli.output import plain
from hal.cli.plugins_text import checks_text, plugins_text
from hal.cli.profile_text import bench_text, profile_text
from hal.cli.run_text import run_text
from hal.profiling import Proof
from tests.golden import records

HERE = Path(__file__).parent
WIDTH = 100

_PROOFS = {
    ("cpu", "cpu:0", ""): Proof(ok=True, message="computed a 2x2 matrix product", duration_ns=12_300_000),
    ("openvino", "cpu:0", "hetero"): Proof(
        ok=False, message="got 3.0 where 4.0 is right", duration_ns=9_000_000
    ),
}

RENDERINGS: dict[str, Callable[[], str]] = {
    "profile.txt": lambda: plain(profile_text(records.FULL, 3), WIDTH),
    "bench.txt": lambda: plain(bench_text(records.FULL), WIDTH),
    "devices.txt": lambda: plain(devices_text(Listing(records.DISCOVERY, _PROOFS)), WIDTH),
    "doctor.txt": lambda: plain(doctor_text(records.FINDINGS), WIDTH),
    "plugins.txt": lambda: plain(plugins_text(records.PLUGINS), WIDTH),
    "run.txt": lambda: plain(run_text(records.RUN), WIDTH),
    "checks.txt": lambda: plain(checks_text("cpu", records.CHECKS), WIDTH),
}
