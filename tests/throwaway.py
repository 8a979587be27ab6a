"""Throwaway plugins: real metadata and modules in a folder, seen by this process and its children."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

FAKE_MODULE = """
import json
from hal.hookspecs import hookimpl
from hal.testing.fake import FakeBackend

@hookimpl
def hal_backend():
    return FakeBackend(**json.loads({configuration!r}))
"""


class Plugins:
    """A folder of installed plugins; only those named here are active."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch, self._names = folder, monkeypatch, []
        monkeypatch.syspath_prepend(str(folder))
        path = [str(folder), *[entry for entry in sys.path if entry]]
        monkeypatch.setenv("PYTHONPATH", ":".join(path))
        monkeypatch.setenv("HAL_HOME", str(folder / "home"))
        self._restrict()

    def add(self, name: str, source: str, *, distribution: str = "") -> None:
        """Install a plugin whose module has this source."""
        distribution = distribution or f"hal-{name}"
        module = f"{distribution.replace('-', '_')}_module"
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{distribution.replace('-', '_')}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2.3\n")
        (info / "entry_points.txt").write_text(f"[hal.plugins]\n{name} = {module}\n")
        self._names.append(name)
        self._restrict()

    def replace(self, name: str, source: str) -> None:
        """Give an installed plugin another source, as an upgrade that keeps its version would."""
        (self.folder / f"hal_{name}_module.py").write_text(source)

    def upgrade(self, name: str, version: str) -> None:
        """Another version of an installed plugin's distribution, with the same source."""
        (info,) = self.folder.glob(f"hal_{name}-*.dist-info")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: hal-{name}\nVersion: {version}\n")
        info.rename(self.folder / f"hal_{name}-{version}.dist-info")

    def add_fake(self, name: str, **configuration: Any) -> None:
        """Install a plugin that is a FakeBackend."""
        configuration = {"name": name, **configuration}
        self.add(name, FAKE_MODULE.format(configuration=json.dumps(configuration)))

    def _restrict(self) -> None:
        self._monkeypatch.setenv("HAL_PLUGINS", ",".join(self._names))


def failing(at: str, how: str) -> Mapping[str, Any]:
    """A FakeBackend's configuration that fails at one place."""
    return {"fail": [{"at": at, "how": how}]}
