"""How many requests at once: placements measured under load, in the ways that their runtimes offer.

The search goes from coarse to fine. Each placement is run in each way (how many runs at once, with which
threads or streams) without gathering; the best way of each is then tried with 2, 4, 8, ... requests gathered
into a run, for as long as that brings more; the other ways are tried again with the number that was best.
What is left of the placements runs in turn until the figures are tight, and the best one is measured once
more, longer, for the percentiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from hal import stats
from hal.choosing.finalists import NOISE, Arena, Candidate, Measured, ratio_of, spots_of
from hal.choosing.throughput_lanes import Child, LoadLane, in_turn
from hal.choosing.throughput_ways import MOST_BATCH, Way, ways_of
from hal.errors import HalError, InputError
from hal.graph.rebatch import rebatched
from hal.planning.memory_under_load import excess
from hal.records.plan import Throughput

#: Bursts for each step of the search, and for the last contest at least and at most.
#: Source: ours for the search, whose errors the contest corrects; then as :class:`hal.sampling.Policy`.
_SEARCH, _LEAST, _MOST = 4, 9, 25
#: Placements whose best way without gathering brings less than this share of the best are not searched
#: further. Source: ours; gathering brought up to 3 times as much to the smallest models measured here.
_WORTH = 0.5
#: Least gain for which twice as many requests are gathered: each waits for all of its run.
#: Source: ours; twice the noise that :data:`hal.choosing.finalists.NOISE` allows.
_GAIN = 0.04
#: Doublings in a row that may bring too little. Source: ours; some kernels are made for even more rows.
_PATIENCE = 2
#: Longest run of gathered requests. Source: ours; what gathering saves is the cost of a call and better use
#: of caches, and is had long before.
_MOST_RUN_NS = 250_000_000


@dataclass(frozen=True)
class Loads:
    """What came of a search.

    Attributes:
        measured: The best way of each placement and what the contest was between, and what failed.
        best: The winner; None where every placement failed.
        throughput: Of the winner.
        notes: What the reader should know.
    """

    measured: tuple[Measured, ...]
    best: Measured | None
    throughput: Throughput | None
    notes: tuple[str, ...]


def loaded(arena: Arena, bases: Sequence[Candidate]) -> Loads:
    """Find how to bring the most requests per second.

    Args:
        arena: What is measured.
        bases: Placements that keep the constraints, the most promising first.
    """
    job = arena.job
    spots = spots_of(job.discovery)
    notes: list[str] = []
    failed: list[LoadLane] = []
    most_batch = MOST_BATCH
    try:
        rebatched(job.subject.graph, 2)
    except InputError as error:
        notes.append(error.message)
        most_batch = 1
    with ExitStack() as stack:
        searches: list[_Search] = []
        for base in bases:
            ways = [way for way in ways_of(base, job.discovery) if not excess(base.plan, way.n_in_flight, 1)]
            ways = ways or [Way(base, 1)]
            child = Child(arena, spots, ways)
            stack.callback(child.close)
            search = _Search(child, ways, notes)
            job.progress.stage(f"measuring {base.placement} under load")
            search.screen()
            failed += search.failed
            if search.best is not None:
                searches.append(search)
        most = min((one.interval_ns for one in searches), default=0.0)
        going = []
        for search in searches:
            if search.interval_ns * _WORTH > most:
                continue
            going.append(search)
            job.progress.stage(f"gathering requests for {search.base.placement}")
            search.gather(most_batch)
        lanes = [lane for search in going for lane in search.standing]
        job.progress.stage("measuring under load, all in turn")
        in_turn(lanes, _LEAST)
        while _is_open(lanes) and max(len(lane.bursts_ns) for lane in lanes) < _MOST:
            for lane in lanes:
                lane.burst()
        rest = [search.best for search in searches if search not in going and search.best is not None]
        found = [lane.measured(1, 0) for lane in lanes]
        others = [lane.measured(0, number) for number, lane in enumerate((*rest, *failed), start=1)]
        best = _best(found, lanes)
        throughput = None
        if best is not None:
            try:
                throughput = lanes[found.index(best)].load()
            except HalError as error:
                notes.append(f"the percentiles could not be measured: {error.message}")
        return Loads((*found, *others), best, throughput, tuple(dict.fromkeys(notes)))


class _Search:
    """The search for the best way of one placement.

    Args:
        child: Where it is run.
        ways: To choose from, without gathering.
        notes: Told what cannot be had.
    """

    def __init__(self, child: Child, ways: Sequence[Way], notes: list[str]) -> None:
        self._child, self._ways, self._notes = child, list(ways), notes
        self.base = ways[0].candidate
        self.best: LoadLane | None = None
        self.failed: list[LoadLane] = []
        self._unlike: list[LoadLane] = []

    @property
    def interval_ns(self) -> float:
        """Time per request in the best way so far."""
        return float("inf") if self.best is None else self.best.interval_ns

    @property
    def standing(self) -> list[LoadLane]:
        """What takes part in the contest: the best way, and the best that gathers otherwise."""
        return [lane for lane in (self.best, *self._unlike) if lane is not None]

    def screen(self) -> None:
        """Each way without gathering; the best one stays compiled."""
        lanes = [self._started(way) for way in self._ways]
        in_turn([lane for lane in lanes if not lane.failure], _SEARCH)
        best = lanes[0]
        for lane in lanes[1:]:  # the simplest come first
            if lane.interval_ns < best.interval_ns * (1 - NOISE):
                best = lane
        for lane in lanes:
            if lane is not best:
                lane.close()
        if best.failure:
            self.failed.append(best)
        else:
            self.best = best

    def gather(self, most: int) -> None:
        """More and more requests in a run, up to ``most``, for as long as that brings more."""
        assert self.best is not None
        single = standing = self.best
        batch, n_in_vain = 2, 0
        while batch <= most and n_in_vain < _PATIENCE and standing.run_ns * 2 <= _MOST_RUN_NS:
            way = standing.way.gathering(batch)
            if too_much := excess(self.base.plan, way.n_in_flight, batch):
                self._notes.append(
                    f"{self.base.placement}: no more than {batch // 2} requests a run: {too_much}"
                )
                break
            lane = self._better(standing, way)
            n_in_vain = n_in_vain + 1 if lane is standing else 0
            if lane is not standing and standing is not single:
                standing.close()
            standing = lane
            batch *= 2
        if standing is single:
            return
        # With gathered requests another way may be the best: a large run has work for all threads.
        for other in self._ways:
            if (other.candidate, other.n_in_flight) != (standing.way.candidate, standing.way.n_in_flight):
                way = other.gathering(standing.way.batch)
                if not excess(self.base.plan, way.n_in_flight, way.batch):
                    lane = self._better(standing, way)
                    if lane is not standing:
                        standing.close()
                        standing = lane
        self.best, self._unlike = standing, [single]

    def _better(self, standing: LoadLane, way: Way) -> LoadLane:
        """Another way where it brings more; else what stands. The other one is closed."""
        lane = self._started(way)
        if lane.failure:
            self._notes.append(f"{way.name}: {lane.failure}")
            lane.close()
            return standing
        in_turn([standing, lane], _SEARCH)
        if lane.interval_ns <= standing.interval_ns * (1 - _GAIN):
            return lane
        lane.close()
        return standing

    def _started(self, way: Way) -> LoadLane:
        lane = LoadLane(self._child, way)
        lane.start()
        if lane.failure:
            lane.close()
        return lane


def _is_open(lanes: Sequence[LoadLane]) -> bool:
    """Whether more bursts could change who wins: a rival's interval reaches that of the best."""
    going = sorted((lane for lane in lanes if not lane.failure), key=lambda lane: lane.interval_ns)
    if len(going) < 2:
        return False
    best = stats.median_interval(going[0].bursts_ns)
    return any(stats.median_interval(lane.bursts_ns).low < best.high for lane in going[1:])


def _best(found: Sequence[Measured], lanes: Sequence[LoadLane]) -> Measured | None:
    """The one that brings the most; of those that cannot be told apart, the simplest."""
    standing = [
        (len(one.candidate.plan.partitions), lane.way.batch, lane.way.n_in_flight, at)
        for at, (one, lane) in enumerate(zip(found, lanes, strict=True))
        if one.timing is not None
    ]
    winner: Measured | None = None
    for *_, at in sorted(standing):
        if winner is None or _is_better(found[at], winner):
            winner = found[at]
    return winner


def _is_better(one: Measured, other: Measured) -> bool:
    ratio = ratio_of(one, other)
    return ratio is not None and ratio.high < 1 and ratio.ratio < 1 - NOISE


__all__ = ["Loads", "loaded"]
