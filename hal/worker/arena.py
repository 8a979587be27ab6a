"""Shared memory between two processes: a file that both map and that is unlinked at once.

No name outlives the exchange of it, so nothing is left behind however either side dies.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 and float8 by name from it)
import numpy as np

from hal.errors import StorageError
from hal.tensor import Array
from hal.worker import messages

_ALIGN_BYTES = 64  # one cache line: what vector loads of every runtime here want
_FIRST_BYTES = 1 << 20


def make_folder() -> Path:
    """A private folder in memory where there is one, else in the temporary directory."""
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and os.access(memory, os.W_OK)
    return Path(tempfile.mkdtemp(prefix="hal-", dir=memory if in_memory else None))


class Writer:
    """The sending side of an arena; grows by making a new file."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix = folder, prefix
        self._path = ""
        self._map: mmap.mmap | None = None

    def put(self, arrays: Sequence[Array]) -> messages.Tensors:
        """Copy arrays in; the message that refers to them. Earlier contents are overwritten."""
        offset, placed = 0, []
        for array in arrays:
            if array.dtype.kind in "OUS":
                strings = tuple(str(value) for value in array.ravel())
                placed.append(messages.Tensor("string", array.shape, strings=strings))
                continue
            placed.append(messages.Tensor(array.dtype.name, array.shape, offset, array.nbytes))
            offset += -(-array.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
        memory = self._reserve(offset) if offset else None
        for array, place in zip(arrays, placed, strict=True):
            if memory is not None and place.strings is None:
                _view(memory, place)[...] = array
        return messages.Tensors(self._path, len(memory) if memory else 0, tuple(placed))

    def delivered(self) -> None:
        """The other side has the file open: its name can go."""
        if self._path:
            Path(self._path).unlink(missing_ok=True)

    def _reserve(self, n_bytes: int) -> mmap.mmap:
        if self._map is None or len(self._map) < n_bytes:
            size = max(n_bytes, 2 * len(self._map) if self._map else _FIRST_BYTES)
            try:
                self._map, self._path = self._make(self._folder, size)
            except OSError:  # shared memory is small in many containers: the disk has more room
                try:
                    self._map, self._path = self._make(Path(tempfile.gettempdir()), size)
                except OSError as error:
                    raise StorageError(
                        f"{size} bytes for tensors do not fit into shared memory nor into the temporary "
                        f"folder: {error.strerror}; free some space or set TMPDIR"
                    ) from error
        return self._map

    def _make(self, folder: Path, size: int) -> tuple[mmap.mmap, str]:
        handle, path = tempfile.mkstemp(prefix=f"hal-{self._prefix}-", dir=folder)
        with os.fdopen(handle, "r+b") as file:
            try:
                # posix_fallocate fails now, with an error, where a sparse file would kill the
                # process by SIGBUS at first touch when the memory is used up.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle, 0, size)
                else:
                    file.truncate(size)
                return mmap.mmap(handle, size), path
            except OSError:
                os.unlink(path)
                raise


class Reader:
    """The receiving side."""

    def __init__(self) -> None:
        self._path = ""
        self._map: mmap.mmap | None = None

    def get(self, sent: messages.Tensors) -> list[Array]:
        """The tensors as copies of their own."""
        if sent.arena and sent.arena != self._path:
            with open(sent.arena, "r+b") as file:
                self._map = mmap.mmap(file.fileno(), sent.n_arena_bytes)
            self._path = sent.arena
        return [self._read(place) for place in sent.tensors]

    def _read(self, place: messages.Tensor) -> Array:
        if place.strings is not None:
            return np.array(place.strings, dtype=object).reshape(place.shape)
        if place.n_bytes == 0 or self._map is None:
            return np.empty(place.shape, np.dtype(place.dtype))
        return _view(self._map, place).copy()


def _view(memory: mmap.mmap, place: messages.Tensor) -> Array:
    count = int(np.prod(place.shape, dtype=np.int64))
    flat = np.frombuffer(memory, np.dtype(place.dtype), count=count, offset=place.offset)
    return flat.reshape(place.shape)
