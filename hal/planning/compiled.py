"""Functions over flat arrays, compiled to machine code on first use and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from numba import config, njit
from numba.core import event

from hal.records.places import cache_folder

F = TypeVar("F", bound=Callable[..., object])

#: Time that compiling took in this process so far.
_compiling = event.TimingListener()
event.register("numba:compile", _compiling)

_HERE = Path(__file__).parent
_IMPORTS = re.compile(
    r"^from hal\.planning(?:\.(\w+) import| import ([\w, ]+)| import \(([\w,\s]+)\))", re.MULTILINE
)


def compiled(function: F) -> F:
    """Compile a function of numbers, numpy arrays and named tuples of them.

    What was compiled is kept beside the source file, in hal's cache folder where that cannot be written, or
    in the folder that ``NUMBA_CACHE_DIR`` names, so that only the first process of a version waits.

    numba takes code from its cache as long as the file of the function itself is the same, although code of
    the functions it calls is in there too. So each state of the file and all modules of this package that it
    imports has a folder of its own.
    """
    before = config.CACHE_DIR
    config.CACHE_DIR = str(_folder(Path(function.__code__.co_filename), before))
    try:
        return cast(F, njit(cache=True)(function))
    finally:
        config.CACHE_DIR = before


def is_new() -> bool:
    """Whether the planner's code has yet to be compiled here: then the first search takes longer."""
    folder = _folder(_HERE / "evaluate.py", config.CACHE_DIR)
    return not any(folder.glob("**/*.nbc"))


def compiling_s() -> float:
    """Seconds that this process has spent on compiling so far; with a warm cache that stays 0."""
    return float(_compiling.duration) if _compiling.done else 0.0


@functools.cache
def _folder(file: Path, asked: str) -> Path:
    """Where compiled functions of a file are kept; beside the source, those of its earlier states go."""
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in _sources(file)))
    name = f"{file.stem}-{digest.hexdigest()[:16]}"
    if asked:
        return Path(asked) / name
    beside = file.parent / "__pycache__" / name
    try:
        beside.mkdir(parents=True, exist_ok=True)
    except OSError:
        return cache_folder() / "compiled" / name
    if not os.access(beside, os.W_OK):
        return cache_folder() / "compiled" / name
    for old in beside.parent.glob(f"{file.stem}-*"):
        if old != beside:
            shutil.rmtree(old, ignore_errors=True)
    return beside


def _sources(file: Path) -> list[Path]:
    """The file and all modules of this package that it imports, directly or not, by name."""
    found, waiting = set[Path](), [file]
    while waiting:
        path = waiting.pop()
        if path in found or not path.exists():
            continue
        found.add(path)
        for names in _IMPORTS.findall(path.read_text("utf-8")):
            waiting += [_HERE / f"{name.strip()}.py" for name in "".join(names).split(",")]
    return sorted(found)
