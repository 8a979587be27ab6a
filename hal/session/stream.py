"""Requests that follow each other through a session, several in flight, in order."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, Self


class Stream(Iterator[Any]):
    """Results in the order of the requests. One thread reads it.

    At most ``window`` requests are under way or wait to be taken, so that memory is bounded however long the
    source is; the source is read that far ahead. Where a request fails, or the source does, the exception is
    raised in its place; the next call of ``next`` goes on with the request after it.

    Args:
        submit: Puts one request in line.
        requests: Where they come from.
        window: At least 1.
        end: Called once when it is over.
    """

    def __init__(
        self,
        submit: Callable[[Any], Future[Any]],
        requests: Iterable[Any],
        window: int,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self._submit, self._end = submit, end
        self._requests = iter(requests)
        self._window = window
        self._waiting: deque[Future[Any]] = deque()
        self._broken: Future[Any] | None = None
        self._is_over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if not self._waiting:
            self._fill()
        if not self._waiting:
            self._end()
            raise StopIteration
        # Taken only once it is there: who interrupts the waiting finds it again. This raises nothing of the
        # request's; concurrent.futures.wait would do the same in ten times the time.
        with contextlib.suppress(CancelledError):
            self._waiting[0].exception()
        future = self._waiting.popleft()
        self._fill()
        return future.result()

    def _fill(self) -> None:
        # What fails in the source is told before it is asked again.
        while len(self._waiting) < self._window and not self._is_over and not self._is_broken():
            try:
                request = next(self._requests)
            except StopIteration:
                self._is_over = True
            except Exception as error:  # noqa: BLE001  raised in its place, when the requests before it are told
                self._broken = _failed(error)
                self._waiting.append(self._broken)
            else:
                try:
                    self._waiting.append(self._submit(request))
                except Exception as error:  # noqa: BLE001  likewise: the session is closed
                    self._waiting.append(_failed(error))

    def _is_broken(self) -> bool:
        return self._broken is not None and self._broken in self._waiting


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
