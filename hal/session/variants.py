"""Sessions of one model for inputs of different shapes: made when they are first needed, a few kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from hal.errors import BackendError

#: Shapes that are kept compiled. Source: the brief of issue 5; each holds the weights once more.
MOST = 8


class Closable(Protocol):
    """What is kept."""

    def close(self) -> None:
        """Let go of it."""
        ...


S = TypeVar("S", bound=Closable)


class Variants(Generic[S]):
    """What was made for each of the last keys. Any thread may ask.

    What is made is made once, whoever asks meanwhile waits for it. The least recently used is closed where
    there are too many, as soon as nobody uses it.

    Args:
        n_most: How many are kept.
    """

    def __init__(self, n_most: int = MOST) -> None:
        self._n_most = n_most
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, _Variant[S]] = OrderedDict()
        self._is_closed = False

    @contextmanager
    def lease(self, key: Hashable, make: Callable[[], S]) -> Iterator[S]:
        """What belongs to a key; it stays open within the block.

        Args:
            key: Of what is wanted.
            make: Makes it where it is not there. What it raises is raised here, and tried again next time.

        Raises:
            BackendError: This was closed.
        """
        variant, is_new, ends = self._join(key)
        try:
            for end in ends:
                end.close()
            if is_new:
                try:
                    variant.made.set_result(make())
                except BaseException as error:
                    self._forget(key, variant)
                    variant.made.set_exception(error)
                    raise
            yield variant.made.result()
        finally:
            self._leave(variant)

    @property
    def kept(self) -> list[S]:
        """What is there now, the least recently used first."""
        with self._lock:
            return [v.made.result() for v in self._known.values() if v.is_made]

    def close(self) -> None:
        """Close all: those in use when they are no longer. A second call does nothing."""
        with self._lock:
            self._is_closed = True
            gone = list(self._known.values())
            self._known.clear()
            ends = [one for variant in gone for one in variant.retire()]
        for end in ends:
            end.close()

    def _join(self, key: Hashable) -> tuple[_Variant[S], bool, list[S]]:
        with self._lock:
            if self._is_closed:
                raise BackendError("this session is closed; compile the model again")
            variant = self._known.get(key)
            is_new = variant is None
            if variant is None:
                variant = self._known[key] = _Variant()
            self._known.move_to_end(key)
            variant.n_users += 1
            ends: list[S] = []
            while len(self._known) > self._n_most:
                _, oldest = self._known.popitem(last=False)
                ends += oldest.retire()
            return variant, is_new, ends

    def _forget(self, key: Hashable, variant: _Variant[S]) -> None:
        with self._lock:
            if self._known.get(key) is variant:
                del self._known[key]

    def _leave(self, variant: _Variant[S]) -> None:
        with self._lock:
            variant.n_users -= 1
            ends = variant.retire() if variant.is_retired else []
        for end in ends:
            end.close()


class _Variant(Generic[S]):
    """One of them. Its methods are called with the lock held."""

    def __init__(self) -> None:
        self.made: Future[S] = Future()
        self.n_users = 0
        self.is_retired = False

    @property
    def is_made(self) -> bool:
        return self.made.done() and self.made.exception() is None

    def retire(self) -> list[S]:
        """What is to be closed now: itself, where nobody uses it."""
        self.is_retired = True
        return [self.made.result()] if not self.n_users and self.is_made else []
