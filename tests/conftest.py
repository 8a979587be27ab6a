from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from tests.throwaway import Plugins


@pytest.fixture(autouse=True, scope="session")
def _a_home_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is taken from the user's store, and nothing is left in it."""
    with mock.patch.dict(os.environ, HAL_HOME=str(tmp_path_factory.mktemp("home"))):
        yield


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """An empty set of plugins to install throwaway ones into."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    return Plugins(folder, monkeypatch)
