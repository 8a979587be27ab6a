from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from hal.errors import BackendError
from hal.executor.gathering import Line
from hal.session.stream import Stream


def double(request: int) -> int:
    if request < 0:
        raise ValueError(f"request {request}")
    return 2 * request


def streamed(call: Callable[[int], int], requests: Iterable[int], n_in_flight: int) -> Stream:
    """A stream over a line of its own with as many threads."""
    line: Line[int, int] = Line(call, n_in_flight)
    return Stream(line.submit, requests, n_in_flight, line.close)


def outcomes(stream: Stream) -> list[object]:
    """Results, and what was raised in the place of others."""
    found: list[object] = []
    while True:
        try:
            found.append(next(stream))
        except StopIteration:
            return found
        except (ValueError, OSError) as error:
            found.append(str(error))


@pytest.mark.parametrize("n_in_flight", [1, 2, 7, 100])
def test_results_come_in_order_when_several_are_in_flight(n_in_flight: int) -> None:
    assert list(streamed(double, range(50), n_in_flight)) == [2 * request for request in range(50)]


def test_order_is_kept_when_later_requests_are_done_first() -> None:
    done = [threading.Event() for _ in range(4)]

    def backwards(request: int) -> int:
        if request < 3:
            assert done[request + 1].wait(60)
        done[request].set()
        return request

    assert list(streamed(backwards, range(4), 4)) == [0, 1, 2, 3]


def test_an_exception_is_raised_in_its_place_and_nothing_is_lost_when_a_request_fails() -> None:
    requests = [1, -2, 3, 4, -5, -6, 7]
    expected = [2, "request -2", 6, 8, "request -5", "request -6", 14]
    assert outcomes(streamed(double, requests, 3)) == expected


def test_an_exception_is_raised_in_its_place_when_the_source_fails() -> None:
    class Faulty(Iterator[int]):
        """Fails once in the middle and goes on."""

        def __init__(self) -> None:
            self.count = itertools.count()

        def __next__(self) -> int:
            number = next(self.count)
            if number == 2:
                raise OSError("the camera is gone")
            if number == 5:
                raise StopIteration
            return number

    assert outcomes(streamed(double, Faulty(), 2)) == [0, 2, "the camera is gone", 6, 8]


def test_a_source_that_always_fails_is_asked_again_only_when_its_failure_was_told() -> None:
    asked = []

    class Broken(Iterator[int]):
        def __next__(self) -> int:
            asked.append(1)
            raise OSError("gone")

    stream = streamed(double, Broken(), 8)
    with pytest.raises(OSError, match="gone"):
        next(stream)
    assert len(asked) == 2  # the one that was told, and the one read ahead


def test_the_source_is_read_no_further_than_asked_when_it_is_endless() -> None:
    read = []

    def source() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    stream = streamed(double, source(), 3)
    assert not read
    assert [next(stream) for _ in range(5)] == [0, 2, 4, 6, 8]
    assert len(read) == 5 + 3


def test_no_more_requests_are_under_way_than_asked_when_the_source_has_more() -> None:
    lock, under_way, most = threading.Lock(), 0, 0
    together = threading.Barrier(3)

    def count(request: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        if request < 3:
            together.wait(60)  # three are under way at once
        with lock:
            under_way -= 1
        return request

    assert list(streamed(count, range(40), 3)) == list(range(40))
    assert most == 3


def test_it_stays_over_when_it_is_over() -> None:
    stream = streamed(double, [1], 2)
    assert list(stream) == [2]
    assert list(stream) == []
    assert iter(stream) is stream


def test_it_goes_on_where_the_line_is_closed_when_it_is_read() -> None:
    line: Line[int, int] = Line(double, 2)
    stream = Stream(line.submit, range(4), 2)
    assert next(stream) == 0
    line.close()
    found = []
    while True:
        try:
            found.append(next(stream))
        except StopIteration:
            break
        except BackendError as error:
            found.append(error.message)
    # Two were in line when it was closed.
    assert found == [2, 4, "this line of requests is closed"]
