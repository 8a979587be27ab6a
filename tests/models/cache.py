"""Exports kept between runs: made once, whole or not at all, by one process at a time.

They lie under HAL_TEST_CACHE, or else under the user's cache directory, which may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import filelock
import platformdirs

# An export takes one to two minutes; a worker that waits longer than this waits for a process that hangs.
LOCK_TIMEOUT_S = 900


def directory() -> Path:
    """Where exports are kept."""
    chosen = os.environ.get("HAL_TEST_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("hal-tests")


def key(name: str, distributions: Sequence[str], sources: Sequence[Path]) -> str:
    """A directory name that changes with what an export depends on: versions and the exporting code."""
    facts = [f"{distribution}=={version(distribution)}" for distribution in distributions]
    digest = hashlib.sha256("\n".join(facts).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return f"{name}-{digest.hexdigest()[:16]}"


def cached(entry: str, make: Callable[[Path], None]) -> Path:
    """The directory `entry` of the cache, filled by `make` if it is not there.

    `make` writes into a directory that gets its final name only when `make` has returned, so that no reader
    ever sees half an export. Processes that ask at once wait for the first one.

    Raises:
        filelock.Timeout: Another process has held the entry for LOCK_TIMEOUT_S.
    """
    root = directory()
    final = root / entry
    if final.is_dir():
        return final
    root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root / f"{entry}.lock", timeout=LOCK_TIMEOUT_S):
        if not final.is_dir():
            with tempfile.TemporaryDirectory(dir=root, prefix=f"{entry}.", suffix=".partial") as scratch:
                inner = Path(scratch) / "made"
                inner.mkdir()
                make(inner)
                inner.replace(final)
    return final
