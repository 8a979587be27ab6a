"""Shared memory between two processes: a file that both map and that is unlinked at once.

Who maps it takes its name away. Files that nobody came to map lie in folders that go with the child, so that
nothing is left behind however either side dies.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 and float8 by name from it)
import numpy as np

from hal.errors import StorageError
from hal.tensor import Array
from hal.worker import messages

_ALIGN_BYTES = 64  # one cache line: what vector loads of every runtime here want
_FIRST_BYTES = 1 << 20


def make_folders() -> tuple[Path, ...]:
    """Private folders for arenas: in memory where there is some, then where the disk has more room."""
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and os.access(memory, os.W_OK)
    made = [Path(tempfile.mkdtemp(prefix="hal-", dir=memory))] if in_memory else []
    try:
        return (*made, Path(tempfile.mkdtemp(prefix="hal-")))
    except OSError:
        remove(made)
        raise


def remove(folders: Iterable[Path]) -> None:
    """Take folders away with what is in them; those that are gone already are no error."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


class Laid:
    """Where tensors of some types and shapes go in an arena; worked out once, for calls repeat them.

    Attributes:
        sent: The message that refers to them.
        views: Of the arena, for those that lie in it.
        packed: Whole messages that refer to them, by what else is in these.
    """

    __slots__ = ("packed", "sent", "views")

    def __init__(self, sent: messages.Tensors, views: Sequence[Array]) -> None:
        self.sent, self.views = sent, views
        self.packed: dict[int, bytes] = {}


class Writer:
    """The sending side of an arena; grows by making a new file.

    Args:
        folders: Where files are made, the first one that has room.
        prefix: Of their names.
    """

    def __init__(self, folders: Sequence[Path], prefix: str) -> None:
        self._folders, self._prefix = tuple(folders), prefix
        self._path = ""
        self._is_named = False
        self._map: mmap.mmap | None = None
        self._known: dict[tuple[Any, ...], Laid] = {}

    def put(self, arrays: Sequence[Array]) -> Laid:
        """Copy arrays in. Earlier contents are overwritten."""
        key = tuple([(array.dtype, array.shape) for array in arrays])
        laid = self._known.get(key) or self._lay_out(arrays, key)
        for view, array in zip(laid.views, arrays, strict=False):  # no views where there are strings
            view[...] = array
        return laid

    def _lay_out(self, arrays: Sequence[Array], key: tuple[Any, ...]) -> Laid:
        offset, placed, plain = 0, [], []
        for array in arrays:
            if array.dtype.kind in "OUS":
                strings = tuple(str(value) for value in array.ravel())
                placed.append(messages.Tensor("string", array.shape, strings=strings))
                continue
            placed.append(messages.Tensor(array.dtype.name, array.shape, offset, array.nbytes))
            plain.append((array, placed[-1]))
            offset += -(-array.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
        memory = self._reserve(offset) if offset else None
        views = [_view(memory, place) for _, place in plain]
        laid = Laid(messages.Tensors(self._path, len(memory) if memory else 0, tuple(placed)), views)
        if len(plain) == len(arrays):
            keep(self._known, key, laid)
            return laid
        # Strings are in the message itself, which is another one each time.
        for view, (array, _) in zip(views, plain, strict=True):
            view[...] = array
        return Laid(laid.sent, ())

    def delivered(self) -> None:
        """The other side was asked: where it did not take the file's name away, that goes now."""
        if self._is_named:
            self._is_named = False
            Path(self._path).unlink(missing_ok=True)

    def forget(self) -> None:
        """Let go of the memory."""
        self._map = None
        self._known.clear()

    def _reserve(self, n_bytes: int) -> mmap.mmap:
        if self._map is not None and len(self._map) >= n_bytes:
            return self._map
        size = max(n_bytes, 2 * len(self._map) if self._map else _FIRST_BYTES)
        for folder in self._folders:
            try:
                self._map, self._path = self._make(folder, size)
            except OSError as error:  # shared memory is small in many containers: the disk has more room
                reason = error.strerror
            else:
                self._is_named = True
                self._known.clear()
                return self._map
        raise StorageError(
            f"{size} bytes for tensors do not fit into shared memory nor into the temporary "
            f"folder: {reason}; free some space or set TMPDIR"
        )

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
    """The receiving side.

    Attributes:
        known: What was made of messages that came, for those that come again; it keeps their arena.
    """

    def __init__(self) -> None:
        self._path = ""
        self._map: mmap.mmap | None = None
        self.known: dict[bytes, Any] = {}

    def get(self, sent: messages.Tensors) -> list[Array]:
        """The tensors as copies of their own."""
        return [array.copy() for array in self.look(sent)]

    def look(self, sent: messages.Tensors) -> list[Array]:
        """The tensors where they lie, until the sender puts others there."""
        if sent.arena and sent.arena != self._path:
            with open(sent.arena, "r+b") as file:
                self._map = mmap.mmap(file.fileno(), sent.n_arena_bytes)
            self._path = sent.arena
            self.known.clear()
            Path(sent.arena).unlink(missing_ok=True)
        return [self._look(place) for place in sent.tensors]

    def forget(self) -> None:
        """Let go of the memory."""
        self._path, self._map = "", None
        self.known.clear()

    def _look(self, place: messages.Tensor) -> Array:
        if place.strings is not None:
            return np.array(place.strings, dtype=object).reshape(place.shape)
        return _view(self._map, place)


#: Layouts and messages that one side of an arena knows by heart.
#: Source: ours; a plan has seldom more partitions in one child, and more are worked out anew.
_MOST_KNOWN = 16

K = TypeVar("K")


def keep(known: dict[K, Any], key: K, value: Any) -> None:
    """Remember something, and forget all else where that is too much."""
    if len(known) >= _MOST_KNOWN:
        known.clear()
    known[key] = value


def _view(memory: mmap.mmap | None, place: messages.Tensor) -> Array:
    if memory is None or not place.n_bytes:
        return np.empty(place.shape, np.dtype(place.dtype))
    return np.ndarray(place.shape, np.dtype(place.dtype), memory, place.offset)
