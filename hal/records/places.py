"""Where hal keeps files of its own."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Files that can be made again: below ``HAL_HOME`` where it is set, else the user's cache."""
    home = os.environ.get("HAL_HOME")
    return Path(home) / "cache" if home else Path(platformdirs.user_cache_dir("hal"))


def data_folder() -> Path:
    """Files that are worth keeping: below ``HAL_HOME`` where it is set, else the user's data."""
    home = os.environ.get("HAL_HOME")
    return Path(home) / "data" if home else Path(platformdirs.user_data_dir("hal"))
