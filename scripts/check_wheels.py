"""Builds every distribution and uses it as a stranger would: from wheels, in fresh environments.

1. hal-runtime alone: the command answers, says that no plugin is installed, and loads no framework.
2. hal-runtime with hal-onnxruntime and hal-openvino: profiles demo:digits.
Then every plugin's wheel is installed alone with hal-runtime (--no-deps, so that torch is not fetched five
times): its entry point is found, and what is missing is said in one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ("torch", "cpu", "cuda", "openvino", "onnxruntime", "emulator")


def run(*command: str | Path, fine: tuple[int, ...] = (0,)) -> str:
    """Run a command, show it and return its stdout; a failure ends the script."""
    print(
        "+",
        " ".join(Path(str(part)).name if str(part).startswith("/") else str(part) for part in command),
        flush=True,
    )
    result = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
    )
    if result.returncode not in fine:
        print(result.stdout, result.stderr, sep="\n", file=sys.stderr)
        raise SystemExit(f"failed with status {result.returncode}")
    return result.stdout


def build(folder: Path) -> dict[str, Path]:
    """Wheels by plugin name; hal-runtime under an empty name."""
    wheels = {}
    for name in ("", *PLUGINS):
        source = ROOT / "plugins" / name if name else ROOT
        target = folder / (name or "runtime")
        run(
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            target,
            source,
        )
        (wheels[name],) = target.glob("*.whl")
    return wheels


def environment(folder: Path, *wheels: str | Path) -> Path:
    """A fresh environment with these packages; its folder of commands."""
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *wheels)
    return folder / "bin"


def expect(condition: bool, what: str) -> None:
    """End the script unless a fact holds."""
    if not condition:
        raise SystemExit(f"not so: {what}")


def main() -> None:
    """Build, install, use."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheels = build(folder / "wheels")
        bare = environment(folder / "bare", wheels[""])
        expect(run(bare / "hal", "--version").startswith("hal "), "hal --version answers")
        expect(json.loads(run(bare / "hal", "plugins", "--json"))["plugins"] == [], "no plugin is installed")
        expect("demo:digits" in run(bare / "hal", "--help"), "hal --help answers")
        for name in PLUGINS:
            run(bare / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheels[name])
            found = json.loads(run(bare / "hal", "plugins", "--json"))["plugins"]
            expect([plugin["name"] for plugin in found] == [name], f"{name} is found alone")
            # Status 1 is the documented answer where no device can be used.
            devices = json.loads(run(bare / "hal", "devices", "--json", fine=(1,)))
            missing = {"cpu": "hal_torch", "cuda": "hal_torch"}.get(name, name)
            reasons = [plugin["failure"] for plugin in devices["plugins"]]
            reasons += [device["unavailable"] for device in devices["devices"]]
            told = any(missing in reason for reason in reasons)
            # The one is no backend, the other needs nothing.
            expect(name in ("torch", "emulator") or told, f"{name} says what is missing: {reasons}")
            run(bare / "python", "-m", "pip", "uninstall", "--quiet", "--yes", f"hal-{name}")
        real = environment(
            folder / "real", wheels[""], wheels["openvino"], wheels["onnxruntime"], "onnxruntime>=1.24"
        )
        output = folder / "digits.json"
        run(real / "hal", "profile", "demo:digits", "--output", output)
        statuses = {
            target["target"]: target["status"] for target in json.loads(output.read_text())["targets"]
        }
        for target in ("cpu:0/openvino/fp32", "cpu:0/onnxruntime/fp32"):
            expect(statuses[target] == "ok", f"{target} runs from wheels")
    print("wheels: built, installed and used in fresh environments")


if __name__ == "__main__":
    main()
