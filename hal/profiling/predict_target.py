"""Estimates for one target: of an operator, of a group of nodes, of a whole model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np

from hal import stats
from hal.profiling.predict_groups import SAME_NODES, Group, group
from hal.profiling.predict_kernels import Guess, KernelModel, Mask, main_op
from hal.profiling.predict_past import PastRun, Seen, family_of
from hal.records.estimate import Estimate, GroupEstimate, ModelEstimate
from hal.records.facts import ModelFacts
from hal.records.kernels import signature_of
from hal.records.machine import Ceiling

#: Least factor each way of a bar: what one program's time differs by between two processes.
#: Source: ours; over pairs of processes it is up to 3% in the median (docs/benchmarks.md), once it is more.
ANOTHER_RUN = 1.05
#: Fewer kernels with known errors than this say nothing of a spread; the bar is then this factor each way.
#: Source: of five values, two are the 10th and the 90th percentile within the data; the factor is the
#: spread over all kernels of tests/models (benchmarks/prediction.py).
MIN_JUDGES, UNJUDGED = 5, 4.0
#: Models that were predicted without themselves, from which on their errors give the bar of a whole model.
#: Source: below it, Student's t makes the bar wider than the sum of the kernels' bars does.
MIN_TRIALS = 3
#: Trials that are made, and kernels that are kept, the newest of each.
#: Source: with these a target takes about a second, which is what an estimate is worth waiting for.
MOST_TRIALS, MOST_KERNELS = 12, 5000
#: The roofline alone: what a launch takes, and the time over (launch + roofline) at p10, median and p90.
#: Source: fitted, benchmarks/prediction.py, over all kernels, models and targets of the processor.
LAUNCH_NS, ROOFLINE_LOW, ROOFLINE_MIDDLE, ROOFLINE_HIGH = 2000.0, 0.15, 0.9, 3.5
#: 90th percentile of Student's t by degrees of freedom, 1 to 10; above, that of the normal distribution.
#: Source: tables, for example NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
_T90 = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372)
_Z90 = 1.282

_MEASURED = "the same work, measured"
_ROOFLINE_ALONE = "roofline alone: no kernel was measured on this target"


class TargetPredictor:
    """What a target would take for work that was not measured on it.

    Args:
        target: As written by ``str(Target)``.
        runs: What was measured on it, oldest first.
        lone: Kernels whose profiles are gone.
        ceiling: Its roofline; None where it was not measured.

    Raises:
        ValueError: There are neither kernels nor a ceiling.
    """

    def __init__(
        self, target: str, runs: Sequence[PastRun], lone: Sequence[Seen] = (), ceiling: Ceiling | None = None
    ) -> None:
        self.target = target
        self.runs = list(runs)
        self.ceiling = ceiling
        seen = [*lone, *(one for run in self.runs for one in run.kernels)][-MOST_KERNELS:]
        model = KernelModel(seen, ceiling)
        self.kernels = model if model.seen else None
        if self.kernels is None and ceiling is None:
            raise ValueError(f"nothing is known of {target}: neither kernels nor a ceiling")
        self._exact: dict[str, list[Seen]] = defaultdict(list)
        self._by_op: dict[str, list[int]] = defaultdict(list)
        for one in seen:
            if one.signature:
                self._exact[one.signature].append(one)
            self._by_op[main_op(one.ops)].append(one.median_ns)

    def kernel(self, wanted: Seen) -> Estimate:
        """The time of one kernel.

        Args:
            wanted: What it computes; times in it are not looked at.
        """
        exact = self._exact.get(wanted.signature, []) if wanted.signature else []
        if exact:
            return _stored(exact)
        guess = self.kernels.guess(wanted) if self.kernels else None
        if guess is not None:
            return _judged(guess)
        if self.kernels is None and self.ceiling is not None and wanted.moved_bytes is not None:
            return _roofline(wanted, self.ceiling)
        return self._unknown_work(wanted)

    def model(self, facts: ModelFacts, name: str, digest: str) -> ModelEstimate:
        """A whole model, end to end.

        Args:
            facts: Of the bound graph.
            name: Of the model.
            digest: Of the bound graph.
        """
        groups, free = group(facts, self.runs)
        family = family_of(facts.nodes)
        estimates = [self._group(each, facts, family, digest) for each in groups]
        kernels = _sum(estimates)
        gaps = self._gaps(family)
        between = round(stats.median(gaps) * len(groups)) if gaps else 0
        return ModelEstimate(
            model=name,
            digest=digest,
            target=self.target,
            total=self._total(kernels, gaps, len(groups), family),
            kernels=kernels,
            between_ns=between,
            groups=tuple(sorted(estimates, key=lambda each: -each.cost.median_ns)),
            free=tuple(free),
            notes=tuple(self._notes(groups, digest)),
        )

    def nodes(self, facts: ModelFacts, names: Collection[str], digest: str) -> Estimate:
        """A unit of a model: the kernels of some of its nodes, without the time between kernels.

        Args:
            facts: Of the whole bound graph.
            names: The nodes; a kernel that would reach beyond them is cut there.
            digest: Of the bound graph.

        Raises:
            ValueError: None of the names is a node.
        """
        inside = set(names) & {node.name for node in facts.nodes}
        if not inside:
            raise ValueError(f"none of {sorted(names)[:5]} is a node of the graph")
        groups, _ = group(facts, self.runs)
        cut = [Group(tuple(n for n in each.nodes if n.name in inside), each.cause) for each in groups]
        family = family_of(facts.nodes)
        return _sum([self._group(each, facts, family, digest) for each in cut if each.nodes])

    def _group(self, each: Group, facts: ModelFacts, family: str, digest: str) -> GroupEstimate:
        wanted = _wanted(each, facts, family, digest)
        return GroupEstimate(
            nodes=wanted.nodes,
            ops=wanted.ops,
            flops=wanted.flops,
            moved_bytes=wanted.moved_bytes,
            cost=self.kernel(wanted),
            cause=each.cause,
        )

    def _total(self, kernels: Estimate, gaps: Sequence[float], n: int, family: str) -> Estimate:
        middle = stats.median(gaps) if gaps else 0.0
        median_ns = max(kernels.median_ns + middle * n, 1.0)
        trials = self._trials_of(family)
        if len(trials) >= MIN_TRIALS:
            spread = math.sqrt(sum(each**2 for each in trials) / len(trials))
            t = _T90[len(trials) - 1] if len(trials) <= len(_T90) else _Z90
            factor = math.exp(t * spread * math.sqrt(1 + 1 / len(trials)))
            low_ns, high_ns = median_ns / factor, median_ns * factor
            how = f"bar from {len(trials)} runs of other models or shapes, each predicted without itself"
        else:
            low_gap = (middle - stats.percentile(gaps, 10)) * n if gaps else 0.0
            high_gap = (stats.percentile(gaps, 90) - middle) * n if gaps else 0.0
            low_ns = median_ns - math.hypot(kernels.median_ns - kernels.low_ns, low_gap)
            high_ns = median_ns + math.hypot(kernels.high_ns - kernels.median_ns, high_gap)
            how = "bar from the kernels' bars"
        return _estimate(
            min(low_ns, median_ns / ANOTHER_RUN),
            median_ns,
            max(high_ns, median_ns * ANOTHER_RUN),
            f"{kernels.source}, and the usual time between kernels; {how}",
            kernels.n_records,
        )

    def _gaps(self, family: str) -> list[float]:
        """Times per kernel that are in no kernel: of the same model, else of each other one."""
        same = _steady([run for run in self.runs if run.family == family])
        return [run.gap_ns for run in same or _steady(_one_each(self.runs))]

    def _trials_of(self, family: str) -> list[float]:
        if any(run.family == family for run in self.runs):
            return self._shape_trials
        return self._model_trials

    @cached_property
    def _model_trials(self) -> list[float]:
        """log(truth / prediction) end to end of one run per model, predicted from the other models."""
        found = []
        for run in _one_each(self.runs)[-MOST_TRIALS:]:
            others = [other for other in self.runs if other.family != run.family]
            if others and self.kernels is not None:
                found.append(self._trial(run, others, self.kernels.without(family=run.family)))
        return found

    @cached_property
    def _shape_trials(self) -> list[float]:
        """The same, of runs whose model was measured at another shape, predicted without their shape."""
        found: list[float] = []
        for run in reversed(self.runs):
            others = [other for other in self.runs if other.digest != run.digest]
            has_shapes = any(other.family == run.family for other in others)
            if has_shapes and self.kernels is not None and len(found) < MOST_TRIALS:
                found.append(self._trial(run, others, self.kernels.without(digest=run.digest)))
        return found

    def _trial(self, run: PastRun, others: Sequence[PastRun], usable: Mask) -> float:
        assert self.kernels is not None
        groups, _ = group(run.facts, others)
        total = 0.0
        for each in groups:
            wanted = _wanted(each, run.facts, run.family, "")
            log_ns = self.kernels.log_ns(wanted, usable)
            total += self.kernels.floor_ns if log_ns is None else math.exp(log_ns)
        same = _steady([other for other in others if other.family == run.family])
        gap = stats.median([other.gap_ns for other in same or _steady(_one_each(others))])
        return math.log(run.end_to_end_ns / max(total + gap * len(groups), 1.0))

    def _unknown_work(self, wanted: Seen) -> Estimate:
        """By operator alone, where shapes do not tell how much work there is."""
        times = self._by_op.get(main_op(wanted.ops)) or [t for found in self._by_op.values() for t in found]
        if not times:
            low, middle, high = (LAUNCH_NS * f for f in (ROOFLINE_LOW, ROOFLINE_MIDDLE, ROOFLINE_HIGH))
            source = "a launch: its work is not known"
        else:
            low, middle, high = (stats.percentile(times, percent) for percent in (10, 50, 90))
            low, high = min(low, middle / UNJUDGED), max(high, middle * UNJUDGED)
            source = "kernels of this operator at other shapes: its work is not known"
        return _estimate(low, middle, high, source, len(times))

    def _notes(self, groups: Sequence[Group], digest: str) -> list[str]:
        found = []
        if any(run.digest == digest for run in self.runs):
            found.append("this model was measured here at this shape; hal profiles show has the figures")
        if self.kernels is None:
            found.append("no kernel was measured on this target: the roofline alone says little")
        elif not any(each.cause == SAME_NODES for each in groups):
            n_models = len({run.family for run in self.runs})
            if n_models < MIN_TRIALS:
                found.append(f"models measured on this target: {n_models}; more of them make this better")
        if self.kernels is not None and self.ceiling is None:
            found.append("no ceiling was measured: the best rates of earlier kernels stand in for it")
        return found


def _t90(freedom: int) -> float:
    return _T90[max(freedom, 1) - 1] if freedom <= len(_T90) else _Z90


def _one_each(runs: Sequence[PastRun]) -> list[PastRun]:
    """The newest run of each model."""
    return list({run.family: run for run in runs}.values())


def _steady(runs: Sequence[PastRun]) -> Sequence[PastRun]:
    """Those with a stable figure, where there are any: time between kernels is what noise adds to first."""
    return [run for run in runs if run.stable] or runs


def _wanted(each: Group, facts: ModelFacts, family: str, digest: str) -> Seen:
    names = tuple(node.name for node in each.nodes)
    work = facts.work(names)
    signed = all(node.signature for node in each.nodes)
    return Seen(
        signature=signature_of(node.signature for node in each.nodes) if signed else "",
        ops=tuple(node.op for node in each.nodes),
        flops=work.flops,
        moved_bytes=work.moved_bytes,
        median_ns=0,
        p10_ns=0,
        p90_ns=0,
        digest=digest,
        family=family,
        nodes=names,
    )


def _estimate(low: float, middle: float, high: float, source: str, n_records: int) -> Estimate:
    return Estimate(
        low_ns=max(round(min(low, middle)), 1),
        median_ns=max(round(middle), 1),
        high_ns=max(round(max(high, middle)), 1),
        source=source,
        n_records=n_records,
    )


def _stored(exact: Sequence[Seen]) -> Estimate:
    medians = [one.median_ns for one in exact]
    low = min(stats.median([one.p10_ns for one in exact]), stats.percentile(medians, 10))
    high = max(stats.median([one.p90_ns for one in exact]), stats.percentile(medians, 90))
    corrected = ", less the cost of instruments" if any(one.corrected for one in exact) else ""
    return _estimate(
        low, stats.median(medians), high, f"{_MEASURED} in an earlier profile{corrected}", len(exact)
    )


def _judged(guess: Guess) -> Estimate:
    middle = math.exp(guess.log_ns)
    if guess.residuals.size < MIN_JUDGES:
        low, high = middle / UNJUDGED, middle * UNJUDGED
    else:
        # Kernels of one model err alike, so that few models tell little of how far others may be off.
        wider = _t90(guess.n_models - 1) / _Z90
        low, high = middle * np.exp(np.percentile(guess.residuals, [10, 90]) * wider)
    source = f"like kernels {'here and ' if guess.within else ''}in other models, scaled by the roofline"
    low, high = min(float(low), middle / ANOTHER_RUN), max(float(high), middle * ANOTHER_RUN)
    return _estimate(low, middle, high, source, guess.n_records)


def _roofline(wanted: Seen, ceiling: Ceiling) -> Estimate:
    roof_ns = 1e9 * max(
        (wanted.flops or 0) / ceiling.flops_per_s, (wanted.moved_bytes or 0) / ceiling.bytes_per_s
    )
    least = LAUNCH_NS + roof_ns
    return _estimate(least * ROOFLINE_LOW, least * ROOFLINE_MIDDLE, least * ROOFLINE_HIGH, _ROOFLINE_ALONE, 0)


def _sum(groups: Sequence[GroupEstimate]) -> Estimate:
    """Sum of kernels.

    Bars of kernels with one main operator add up, because their errors go together; those of different
    operators add as independent ones do, by the root of the sum of squares.
    """
    middle = sum(each.cost.median_ns for each in groups)
    below: dict[str, int] = defaultdict(int)
    above: dict[str, int] = defaultdict(int)
    for each in groups:
        op = main_op(each.ops)
        below[op] += each.cost.median_ns - each.cost.low_ns
        above[op] += each.cost.high_ns - each.cost.median_ns
    measured = sum(each.cost.source.startswith(_MEASURED) for each in groups)
    source = f"sum of {len(groups)} kernels, {measured} of them as measured in earlier profiles"
    return _estimate(
        middle - math.hypot(*below.values()),
        middle,
        middle + math.hypot(*above.values()),
        source,
        sum(each.cost.n_records for each in groups),
    )
