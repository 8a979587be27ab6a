"""The process's environment, which PyTorch's compiler writes to when it is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

#: Set by ``torch._inductor.runtime.cache_dir_utils.cache_dir`` to its default where it is not set.
_WRITTEN = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def environment_kept() -> Iterator[None]:
    """Undo what PyTorch sets, which holds a path of this machine and would reach child processes."""
    was_set = _WRITTEN in os.environ
    try:
        yield
    finally:
        if not was_set:
            os.environ.pop(_WRITTEN, None)
