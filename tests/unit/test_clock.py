import pytest

from hal.clock import MonotonicClock, VirtualClock


def test_virtual_clock_stands_still_when_nobody_moves_it():
    clock = VirtualClock(5)
    assert (clock.now_ns(), clock.now_ns()) == (5, 5)


def test_virtual_clock_moves_by_what_it_is_told_when_advanced():
    clock = VirtualClock()
    clock.advance(3)
    clock.advance(0)
    clock.advance(4)
    assert clock.now_ns() == 7


def test_virtual_clock_refuses_when_told_to_go_back():
    clock = VirtualClock(10)
    with pytest.raises(ValueError, match=r"a clock cannot go back: advance\(-1\) ns; expected 0 or more"):
        clock.advance(-1)
    assert clock.now_ns() == 10


def test_monotonic_clock_never_goes_back_when_read_often():
    clock = MonotonicClock()
    readings = [clock.now_ns() for _ in range(100)]
    assert readings == sorted(readings)
    assert all(isinstance(reading, int) for reading in readings)
