"""Requests that follow each other through a session, several in flight, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Self


class Stream(Iterator[Any]):
    """Results in the order of the requests. One thread reads it.

    At most ``n_in_flight`` requests are under way or wait to be taken, so that memory is bounded however long
    the source is; the source is read that far ahead. Where a request fails, or the source does, the exception
    is raised in its place; the next call of ``next`` goes on with the request after it.

    Args:
        call: Carries out one request.
        requests: Where they come from.
        n_in_flight: At least 1.
    """

    def __init__(self, call: Callable[[Any], Any], requests: Iterable[Any], n_in_flight: int) -> None:
        self._call = call
        self._requests = iter(requests)
        self._n_in_flight = n_in_flight
        self._pool = ThreadPoolExecutor(n_in_flight, thread_name_prefix="hal-stream")
        self._waiting: deque[Future[Any]] = deque()
        self._broken: Future[Any] | None = None
        self._is_over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        self._fill()
        if not self._waiting:
            self._pool.shutdown(wait=False)
            raise StopIteration
        # Taken only once it is there: who interrupts the waiting finds it again.
        wait([self._waiting[0]])
        future = self._waiting.popleft()
        self._fill()
        return future.result()

    def _fill(self) -> None:
        # What fails in the source is told before it is asked again.
        while (
            len(self._waiting) < self._n_in_flight and not self._is_over and self._broken not in self._waiting
        ):
            try:
                request = next(self._requests)
            except StopIteration:
                self._is_over = True
            except Exception as error:  # noqa: BLE001  raised in its place, when the requests before it are told
                self._broken = Future()
                self._broken.set_exception(error)
                self._waiting.append(self._broken)
            else:
                self._waiting.append(self._pool.submit(self._call, request))
