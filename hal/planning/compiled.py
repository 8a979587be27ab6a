"""Functions over flat arrays, compiled to machine code on first use and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function of numbers, numpy arrays and named tuples of them.

    numba keeps what it compiled beside the source file, or in the user's cache folder where that cannot be
    written (``NUMBA_CACHE_DIR`` names another), so that only the first process of a version waits.
    """
    return cast(F, njit(cache=True)(function))
