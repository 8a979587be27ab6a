"""The example plugin, installed as a stranger would install it: a wheel in a folder of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "third_party_plugin"

LIST = """
import json
from importlib.metadata import entry_points
from hal.plugins import installed, open_backend, reference
print(json.dumps({
    "entry": [entry.value for entry in entry_points(group="hal.plugins", name="numpy_example")],
    "plugins": [[p.name, p.distribution, p.version, p.failure] for p in installed()],
    "backend": type(open_backend(reference("numpy_example"))).__name__,
}))
"""


def run(command, folder, path, **settings):
    environment = {key: value for key, value in os.environ.items() if key not in ("HAL_PLUGINS", "HAL_TRACE")}
    environment = {**environment, "PYTHONPATH": os.pathsep.join(map(str, path)), **settings}
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    source, site = folder / "source", folder / "site"
    # A copy, because building leaves files beside the source.
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    run([*pip, "--no-deps", "--no-build-isolation", "--target", str(site), str(source)], folder, [])
    return site


def test_example_plugin_is_found_when_it_is_installed(site, tmp_path):
    found = json.loads(run(["-c", LIST], tmp_path, [site, ROOT], HAL_PLUGINS="numpy_example"))
    assert found == {
        "entry": ["hal_numpy_example.plugin"],
        "plugins": [["numpy_example", "hal-numpy-example", "0.1.0", ""]],
        "backend": "NumpyBackend",
    }


def test_example_plugin_passes_its_own_conformance_test_when_it_is_installed(site, tmp_path):
    test = tmp_path / "test_conformance.py"
    shutil.copy(EXAMPLE / "tests" / "test_conformance.py", test)
    command = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-c", os.devnull, str(test)]
    output = run(command, tmp_path, [site, ROOT])
    assert "failed" not in output
    n_passed = int(output.rpartition(" passed")[0].split()[-1])
    assert n_passed >= 19, output


def test_example_plugin_is_short_when_counted():
    n_lines = len((EXAMPLE / "hal_numpy_example" / "plugin.py").read_text().splitlines())
    assert n_lines < 60


def test_example_plugin_uses_only_the_public_modules_when_it_imports_hal():
    text = (EXAMPLE / "hal_numpy_example" / "plugin.py").read_text()
    used = {line.split()[1] for line in text.splitlines() if line.startswith("from hal")}
    allowed = {"hal.backend", "hal.errors", "hal.graph.model", "hal.hookspecs", "hal.tensor"}
    assert used <= allowed
