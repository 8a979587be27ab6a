"""Sessions of one process know what they need of a memory together."""

from __future__ import annotations

import gc

import msgspec
import pytest

from hal.backend import OptionSpec, Target
from hal.errors import NotEnoughMemory
from hal.executor.backend import Spot
from hal.session.sharing import LEDGER, Claim, Ledger, capacities, resting
from tests.unit.surviving import CPU, CUDA1, Rig, check

GIB = 1 << 30


def test_a_claim_is_refused_when_sessions_together_need_more_than_there_is() -> None:
    ledger, bert, resnet = Ledger(), Claim("bert"), Claim("resnet")
    ledger.take(bert, {"cuda:0": 5 * GIB, "host": GIB}, {"cuda:0": 8 * GIB})
    with pytest.raises(NotEnoughMemory) as raised:
        ledger.take(resnet, {"cuda:0": 6 * GIB, "host": GIB}, {"cuda:0": 8 * GIB})
    assert str(raised.value) == (
        "the session of 'resnet' does not fit beside the others: 'resnet' needs 6.00 GiB of cuda:0, which "
        "has 8.00 GiB, and sessions of this process hold 5.00 GiB of it: 'bert' (5.00 GiB); close one of "
        "them, or compile with memory={...} or other targets"
    )
    assert isinstance(raised.value, MemoryError)
    # What was refused is not held, and what is released is free.
    ledger.take(resnet, {"cuda:0": 3 * GIB}, {"cuda:0": 8 * GIB})
    ledger.release(bert)
    ledger.release(bert)
    ledger.take(resnet, {"cuda:0": 8 * GIB}, {"cuda:0": 8 * GIB})


def test_a_claim_is_taken_when_the_session_is_alone_or_the_memory_is_unknown() -> None:
    ledger, one, other = Ledger(), Claim("one"), Claim("other")
    ledger.take(one, {"cuda:0": 9 * GIB}, {"cuda:0": 8 * GIB})
    ledger.take(other, {"cuda:1": 9 * GIB, "cuda:0": 0}, {"cuda:0": 8 * GIB})
    ledger.take(other, {"host": 9 * GIB}, {})


def test_what_is_left_is_told_when_others_hold_some() -> None:
    ledger, one, other = Ledger(), Claim("one"), Claim("other")
    ledger.take(one, {"cuda:0": 5 * GIB, "host": GIB}, {})
    ledger.take(other, {"cuda:0": 2 * GIB, "cuda:1": GIB}, {})
    capacity = {"cuda:0": 6 * GIB, "cuda:1": 4 * GIB}
    assert ledger.left(one, capacity) == {"cuda:0": 4 * GIB, "cuda:1": 3 * GIB}
    assert ledger.left(other, capacity) == {"cuda:0": GIB}


def test_a_claim_ends_when_nobody_has_it() -> None:
    ledger, one = Ledger(), Claim("one")
    other = Claim("other")
    ledger.take(other, {"cuda:0": GIB}, {})
    del other
    gc.collect()
    assert ledger.left(one, {"cuda:0": GIB}) == {}


def test_a_pool_has_what_the_most_cautious_backend_tells() -> None:
    rig = Rig()
    spots = list(rig.spots.values())
    told = [4 * GIB, None, 3 * GIB]
    known = [sized(spot, n_bytes, "host") for spot, n_bytes in zip(spots, told, strict=True)]
    assert capacities(known) == {"host": 3 * GIB}


def sized(spot: Spot, n_bytes: int | None, pool: str) -> Spot:
    device = msgspec.structs.replace(spot.device, memory_bytes=n_bytes, memory_pool=pool)
    return msgspec.structs.replace(spot, device=device)


def limited(rig: Rig, pool: str, n_bytes: int) -> Rig:
    """With so much memory in a pool, as its backends tell."""
    rig.spots = {
        end: sized(spot, n_bytes, pool) if spot.device.memory_pool == pool else spot
        for end, spot in rig.spots.items()
    }
    return rig


def test_a_second_session_is_refused_when_both_need_more_than_there_is() -> None:
    needed = Rig().plan("cpu:0").predicted.memory_bytes["host"]
    assert needed > 0
    first = limited(Rig(), "host", 2 * needed - 1)
    runner = first.runner("cpu:0")
    second = limited(Rig(), "host", 2 * needed - 1)
    with pytest.raises(NotEnoughMemory, match=r"'chain' needs .* of host, which has .*: 'chain' \("):
        second.runner("cpu:0")
    assert not second.backends["cpu:0"].made
    runner.close()
    second.runner("cpu:0").close()


def test_no_more_is_planned_with_than_other_sessions_leave_when_planned_again() -> None:
    needed = Rig().plan("cpu:0").predicted.memory_bytes["host"]
    other = Claim("other")
    LEDGER.take(other, {"host": needed}, {})
    try:
        rig = limited(Rig({"cuda:0": [{"at": "run", "how": "raise"}]}), "host", 2 * needed - 1)
        runner = rig.runner("cuda:0")
        check(runner, 0)
        # The processor would be the next best, but its memory is taken.
        assert CPU not in runner.plan.targets
        assert runner.plan.targets == (CUDA1,)
        runner.close()
    finally:
        LEDGER.release(other)


def test_memory_is_free_again_when_a_session_is_forgotten_and_not_closed() -> None:
    needed = Rig().plan("cpu:0").predicted.memory_bytes["host"]
    runner = limited(Rig(), "host", 2 * needed - 1).runner("cpu:0")
    check(runner, 0)
    del runner
    gc.collect()
    limited(Rig(), "host", 2 * needed - 1).runner("cpu:0").close()


SPINNING = OptionSpec(name="spinning", kind="bool", default=True)
THREADS = OptionSpec(name="threads", kind="int", default=2)


def test_threads_of_one_session_spin_when_several_share_a_silicon() -> None:
    ledger, first, second = Ledger(), Claim("first"), Claim("second")
    assert ledger.may_spin(first, "cpu:0")
    assert not ledger.may_spin(second, "cpu:0")
    assert ledger.may_spin(second, "cpu:1")
    assert ledger.may_spin(first, "cpu:0")
    ledger.release(first)
    assert ledger.may_spin(second, "cpu:0")
    # One that is forgotten without being closed does not spin any more either.
    del second
    gc.collect()
    assert ledger.may_spin(first, "cpu:0")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("cpu:0/one/fp32", "cpu:0/one/fp32+spinning=false"),
        ("cpu:0/one/fp32+threads=2", "cpu:0/one/fp32+spinning=false+threads=2"),
        # One thread has no others, and who says what is wanted gets it.
        ("cpu:0/one/fp32+threads=1", "cpu:0/one/fp32+threads=1"),
        ("cpu:0/one/fp32+spinning=true", "cpu:0/one/fp32+spinning=true"),
    ],
)
def test_a_target_is_compiled_at_rest_when_another_session_spins(target: str, expected: str) -> None:
    options = (SPINNING, THREADS)
    assert str(resting(Target.parse(target), options, lambda: False)) == expected
    assert str(resting(Target.parse(target), options, lambda: True)) == target
    assert str(resting(Target.parse(target), (THREADS,), lambda: False)) == target
