import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.clock import VirtualClock
from hal.sampling import Policy, WarmUp, burst, is_enough, verdict, warm_up

MS = 1_000_000
SETTLED = WarmUp(first_run_ns=MS, n_runs=11, total_ns=11 * MS, settled=True)


def runs(durations_ns, then_ns):
    """A timed run that gives these durations, then one for ever, and counts."""
    clock, given_ns = VirtualClock(), list(durations_ns)

    def run():
        duration_ns = given_ns.pop(0) if given_ns else then_ns
        clock.advance(duration_ns)
        run.n += 1
        return duration_ns

    run.n, run.clock = 0, clock
    return run


def test_warm_up_stops_at_two_equal_windows_when_the_minimum_is_over():
    run = runs([500 * MS], then_ns=10 * MS)
    warm = warm_up(run, Policy())
    # The first run is slow, so the windows agree once it is in neither: 1 + 2 * 5 runs.
    assert warm == WarmUp(first_run_ns=500 * MS, n_runs=11, total_ns=600 * MS, settled=True)
    assert run.n == 11


def test_warm_up_goes_on_to_the_minimum_time_when_runs_are_short():
    warm = warm_up(runs([], then_ns=MS), Policy())
    assert warm.settled
    assert warm.total_ns == 100 * MS


def test_warm_up_gives_up_at_the_maximum_when_times_keep_falling():
    falling = [int(1000 * MS * 0.8**i) for i in range(40)]
    warm = warm_up(runs(falling, then_ns=1), Policy(warm_up_max_ns=4000 * MS))
    assert not warm.settled
    assert 4000 * MS <= warm.total_ns < 5000 * MS


def test_warm_up_ends_when_the_clock_stands_still():
    warm = warm_up(runs([], then_ns=0), Policy())
    assert warm.settled
    assert warm.n_runs <= Policy().warm_up_max_ns // 1_000 + 1


def test_warm_up_runs_once_when_the_first_run_uses_all_the_time():
    run = runs([3000 * MS], then_ns=MS)
    assert not warm_up(run, Policy()).settled
    assert run.n == 1


def test_burst_drops_its_lead_in_when_it_ends():
    run = runs([99 * MS], then_ns=20 * MS)
    assert burst(run, Policy()) == [20 * MS] * 3
    assert run.n == 4


def test_burst_has_its_minimum_of_runs_when_each_is_longer_than_the_burst():
    assert burst(runs([], then_ns=100 * MS), Policy()) == [100 * MS] * 3


def test_burst_stops_early_when_one_run_uses_the_whole_time():
    assert burst(runs([], then_ns=6000 * MS), Policy()) == [6000 * MS]


def test_burst_ends_when_the_clock_stands_still():
    assert len(burst(runs([], then_ns=0), Policy())) == Policy().burst_ns // 1_000


def test_is_enough_says_no_when_there_are_no_samples():
    assert not is_enough([], Policy())


@pytest.mark.parametrize(
    ("bursts", "enough"),
    [
        ([[30 * MS] * 3] * 9, True),
        ([[30 * MS] * 3] * 8, False),  # too few bursts
        ([[30 * MS] * 2] * 9, False),  # too few runs
        ([[10 * MS] * 3] * 9, False),  # too little time
        ([[(20 + 5 * i) * MS] * 3 for i in range(9)], False),  # too wide an interval
        ([[2500 * MS], [2600 * MS]], True),  # the time is used up
    ],
)
def test_is_enough_asks_for_time_runs_bursts_and_a_tight_median_when_judging(bursts, enough):
    assert is_enough(bursts, Policy()) is enough


@given(st.lists(st.lists(st.integers(1, 10**9), min_size=1, max_size=5), min_size=1, max_size=12))
def test_is_enough_always_says_yes_when_the_time_is_used_up(bursts):
    assert is_enough([*bursts, [5_000 * MS]], Policy())


def test_verdict_is_stable_when_all_runs_are_alike():
    assert verdict([[30 * MS] * 3] * 8, SETTLED, Policy()).stable


def test_verdict_tells_the_interval_when_bursts_scatter():
    found = verdict([[(20 + 10 * (i % 3)) * MS] * 3 for i in range(9)], SETTLED, Policy())
    assert not found.stable
    assert "the median is known to +-33.3% only (95% interval over 9 bursts)" in found.reason
    assert "something else uses this device" in found.reason


def test_verdict_tells_the_drift_when_the_second_half_is_slower():
    found = verdict([[20 * MS]] * 6 + [[23 * MS]] * 6, SETTLED, Policy())
    assert not found.stable
    assert "the second half of the runs was 15.0% slower than the first" in found.reason


def test_verdict_tells_the_count_when_few_runs_fitted():
    cold = WarmUp(first_run_ns=3000 * MS, n_runs=1, total_ns=3000 * MS, settled=False)
    found = verdict([[3000 * MS], [3000 * MS]], cold, Policy())
    assert found.reason == "only 2 runs fitted into the time limit (at least 20 wanted)"


def test_verdict_gives_every_reason_when_there_are_several():
    cold = WarmUp(first_run_ns=1, n_runs=1, total_ns=1, settled=False)
    found = verdict([[(10 + i) * MS] for i in range(12)], cold, Policy())
    for text in ("only 12 runs fitted", "the median is known to", "the second half of the runs"):
        assert text in found.reason
