from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from hal.errors import BackendError
from hal.session.variants import Variants


class One:
    """Something that must not be used once it is closed."""

    def __init__(self, key: int) -> None:
        self.key, self.n_closed = key, 0

    def close(self) -> None:
        self.n_closed += 1


def made_by(variants: Variants[One], key: int, log: list[One]) -> One:
    def make() -> One:
        log.append(One(key))
        return log[-1]

    with variants.lease(key, make) as one:
        assert one.key == key
        assert not one.n_closed
        return one


def test_each_key_is_made_once() -> None:
    variants, log = Variants[One](), list[One]()
    assert made_by(variants, 1, log) is made_by(variants, 1, log)
    assert made_by(variants, 2, log) is not made_by(variants, 1, log)
    assert [one.key for one in log] == [1, 2]


def test_the_least_recently_used_is_closed_when_there_are_too_many() -> None:
    variants, log = Variants[One](n_most=2), list[One]()
    for key in (1, 2, 1, 3):
        made_by(variants, key, log)
    assert [(one.key, one.n_closed) for one in log] == [(1, 0), (2, 1), (3, 0)]
    assert [one.key for one in variants.kept] == [1, 3]


def test_what_is_in_use_is_closed_when_its_last_user_leaves() -> None:
    variants, log = Variants[One](n_most=1), list[One]()
    with variants.lease(1, partial(One, 1)) as outer, variants.lease(1, partial(One, 1)) as inner:
        assert inner is outer
        made_by(variants, 2, log)
        assert not outer.n_closed
    assert outer.n_closed == 1


def test_all_are_closed_once_when_closed_twice() -> None:
    variants, log = Variants[One](), list[One]()
    for key in (1, 2):
        made_by(variants, key, log)
    with variants.lease(3, partial(One, 3)) as used:
        variants.close()
        variants.close()
        assert not used.n_closed
    assert [one.n_closed for one in (*log, used)] == [1, 1, 1]
    with pytest.raises(BackendError, match=r"this session is closed; compile the model again"):
        made_by(variants, 1, log)


def test_making_is_tried_again_when_it_failed() -> None:
    variants, log = Variants[One](), list[One]()

    def fail() -> One:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"), variants.lease(1, fail):
            pass
    assert variants.kept == []
    assert made_by(variants, 1, log).key == 1


def test_threads_wait_for_one_making_when_they_ask_at_once() -> None:
    variants, log, ready = Variants[One](), list[One](), threading.Barrier(16)

    def ask(_: int) -> One:
        ready.wait(60)
        return made_by(variants, 1, log)

    with ThreadPoolExecutor(16) as pool:
        assert len(set(map(id, pool.map(ask, range(16))))) == 1
    assert len(log) == 1


def test_nothing_is_used_when_closed_under_many_threads() -> None:
    variants, log = Variants[One](n_most=2), list[One]()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda seed: made_by(variants, seed % 5, log), range(400)))
    variants.close()
    assert all(one.n_closed == 1 for one in log)
