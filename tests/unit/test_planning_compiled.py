"""Machine code on disk is never older than what it was made from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hal

INNER = """
from hal.planning.compiled import compiled


@compiled
def inner(x):
    return x + {added}
"""
OUTER = """
{imports}
from hal.planning.compiled import compiled


@compiled
def outer(x):
    return inner(x)
"""


def answer(root: Path, **environment: str) -> int:
    """What a new process gets of outer(1)."""
    made = subprocess.run(
        [sys.executable, "-c", "from hal.planning.outer import outer; print(outer(1))"],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(made.stdout)


def test_compiled_code_is_new_when_only_the_function_it_calls_changed(tmp_path: Path) -> None:
    ours = Path(str(hal.__file__)).parent
    shutil.copytree(ours, tmp_path / "hal", ignore=shutil.ignore_patterns("__pycache__"))
    planning = tmp_path / "hal" / "planning"
    inner, outer = planning / "inner.py", planning / "outer.py"
    inner.write_text(INNER.format(added=1))
    outer.write_text(OUTER.format(imports="from hal.planning.inner import inner"))
    assert answer(tmp_path) == 2
    kept = {path.name for path in (planning / "__pycache__").glob("outer-*")}
    assert len(kept) == 1
    inner.write_text(INNER.format(added=10))
    assert answer(tmp_path) == 11
    now = {path.name for path in (planning / "__pycache__").glob("outer-*")}
    assert len(now) == 1
    assert now != kept

    elsewhere = tmp_path / "elsewhere"
    assert answer(tmp_path, NUMBA_CACHE_DIR=str(elsewhere)) == 11
    assert [path.name for path in elsewhere.glob("outer-*")] == list(now)


def test_compiled_code_is_kept_in_the_cache_folder_when_the_source_folder_cannot_be_written(
    tmp_path: Path,
) -> None:
    ours = Path(str(hal.__file__)).parent
    shutil.copytree(ours, tmp_path / "hal", ignore=shutil.ignore_patterns("__pycache__"))
    planning, home = tmp_path / "hal" / "planning", tmp_path / "home"
    (planning / "inner.py").write_text(INNER.format(added=1))
    # A file where the folder would be: it cannot be written to by anybody, not even by root.
    (planning / "outer.py").write_text(OUTER.format(imports="from hal.planning.inner import inner"))
    (planning / "__pycache__").write_text("")
    assert answer(tmp_path, HAL_HOME=str(home), PYTHONDONTWRITEBYTECODE="1") == 2
    assert list((home / "cache" / "compiled").glob("outer-*"))
