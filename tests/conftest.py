from __future__ import annotations

from pathlib import Path

import pytest

from tests.throwaway import Plugins


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """An empty set of plugins to install throwaway ones into."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    return Plugins(folder, monkeypatch)
