"""The time of a kernel from the roofline and from kernels like it, with an error bar that was tried out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hal.profiling.predict_past import Seen
from hal.records.machine import Ceiling

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Operators that decide what a kernel costs wherever they are part of it.
#: Source: their work grows faster than their bytes (a product of matrices in each).
_HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN", "Einsum", "Attention")

#: Shorter kernels count as this long: logarithms would make much of what no one can measure.
#: Source: a launch on the fastest runtime tested, OpenVINO's on a processor, takes 200 ns and more.
LEAST_NS = 100.0

#: Distances between kernels: what differing operators add to the differences of logarithms.
#: Source: fitted, benchmarks/prediction.py; half or twice of each changes the median error by 7% at most.
SAME_NODES, SAME_OPS, SAME_MAIN_OP, OTHER_OP = 0.0, 0.5, 2.0, 4.0
#: Neighbours a prediction is made from, and the power by which nearer ones count more.
#: Source: fitted as the distances were; 3 to 10 neighbours and powers 2 to 4 do as well.
N_NEIGHBOURS, POWER = 6, 3.0
#: Keeps the weight of an equal kernel finite.
#: Source: a twentieth, what a kernel's time varies by between two runs.
NEAREST = 0.05
#: Kernels around a prediction whose own errors give its bar, of each model.
#: Source: fitted, benchmarks/prediction.py: with the nearest of all models together, which are often one
#: model's repeated layers, half of the truths lay within the bar instead of 80%.
N_JUDGES_EACH = 8


def main_op(ops: Sequence[str]) -> str:
    """The operator that decides what a kernel costs."""
    return next((op for op in ops if op in _HEAVY), ops[0] if ops else "")


@dataclass(frozen=True)
class Guess:
    """A time in logarithms of ns, with the residuals that its bar comes from.

    Attributes:
        log_ns: Most likely.
        residuals: log(truth / prediction) of kernels like it, sorted; what ``log_ns`` may be off by.
        n_records: Kernels it was made from.
        n_models: Models that the residuals come from.
        within: Whether its model was measured at another shape.
    """

    log_ns: float
    residuals: Floats
    n_records: int
    n_models: int
    within: bool


class KernelModel:
    """Predicts kernels of one target from those seen on it.

    The time is ``(floor + roofline) * exp(y)``, y being the weighted mean over the nearest kernels.
    Distances are taken in log(operations), log(bytes) and log(operations / bytes), and grow where
    operators differ.

    Source: the roofline of Williams, Waterman, Patterson (CACM 2009); nearest neighbours with weights
    by distance, Shepard (1968).

    Args:
        seen: At least one kernel with known work.
        ceiling: The target's roofline; None takes the best the kernels themselves reached.
    """

    def __init__(self, seen: Sequence[Seen], ceiling: Ceiling | None) -> None:
        self.seen = [one for one in seen if one.flops is not None and one.moved_bytes is not None]
        times = np.maximum(np.array([one.median_ns for one in self.seen], np.float64), LEAST_NS)
        flops = np.array([one.flops or 0 for one in self.seen], np.float64)
        moved = np.array([one.moved_bytes or 0 for one in self.seen], np.float64)
        self.flops_per_ns = ceiling.flops_per_s / 1e9 if ceiling else _best(flops, times)
        self.bytes_per_ns = ceiling.bytes_per_s / 1e9 if ceiling else _best(moved, times)
        self.floor_ns = _floor(times, self._roof(flops, moved))
        self._features = _features(flops, moved)
        self._y = np.log(times) - np.log(self.floor_ns + self._roof(flops, moved))
        self._all = np.ones(len(self.seen), bool)
        self._codes: dict[str, dict[Any, int]] = {}
        self._ops = self._code("ops", [one.ops for one in self.seen])
        self._main = self._code("main", [main_op(one.ops) for one in self.seen])
        self._families = self._code("family", [one.family for one in self.seen])
        self._digests = self._code("digest", [one.digest for one in self.seen])
        self._signatures = self._code("signature", [one.signature or i for i, one in enumerate(self.seen)])
        self._nodes = self._code(
            "nodes", [(one.family, one.nodes) if one.nodes else i for i, one in enumerate(self.seen)]
        )
        self._residuals: dict[tuple[int, bool], float | None] = {}

    def _code(self, kind: str, values: Sequence[Any]) -> Codes:
        numbers = self._codes.setdefault(kind, {})
        return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)

    def _roof(self, flops: Any, moved: Any) -> Any:
        return np.maximum(flops / self.flops_per_ns, moved / self.bytes_per_ns)

    def without(self, *, family: str = "", digest: str = "") -> Mask:
        """Which kernels belong to neither a family nor a graph: what a trial may look at."""
        mine = self._families == self._codes["family"].get(family, -1)
        mine = mine | (self._digests == self._codes["digest"].get(digest, -1))
        return np.asarray(~mine, np.bool_)

    def log_ns(self, one: Seen, usable: Mask | None = None) -> float | None:
        """Most likely log(ns) of a kernel, whose own times are not looked at; None where work is unknown."""
        if one.flops is None or one.moved_bytes is None:
            return None
        places = self._all if usable is None else usable
        if not places.any():
            return None
        _, y = self._mean(self._distance(one), places)
        return self._base(one) + y

    def guess(self, one: Seen, usable: Mask | None = None) -> Guess | None:
        """Predict a kernel with the errors to expect.

        Args:
            one: What it computes; its times are not looked at.
            usable: Kernels to predict from; None for all.

        Returns:
            None where its work is unknown or nothing is left to predict from.
        """
        places = self._all if usable is None else usable
        if one.flops is None or one.moved_bytes is None or not places.any():
            return None
        distance = self._distance(one)
        nearest, y = self._mean(distance, places)
        family = self._codes["family"].get(one.family, -1)
        within = bool((self._families[places] == family).any())
        judges = self._judges(distance, places)
        residuals = [self._residual(int(index), within) for index in judges]
        found = np.sort(np.array([r for r in residuals if r is not None], np.float64))
        return Guess(self._base(one) + y, found, len(nearest), np.unique(self._families[judges]).size, within)

    def _base(self, one: Seen) -> float:
        return math.log(self.floor_ns + float(self._roof(one.flops, one.moved_bytes)))

    def _judges(self, distance: Floats, usable: Mask) -> npt.NDArray[np.intp]:
        """The nearest kernels, as many of each model: the layers that a model repeats err alike."""
        order = np.flatnonzero(usable)[np.argsort(distance[usable], kind="stable")]
        families = self._families[order]
        found = [order[families == family][:N_JUDGES_EACH] for family in np.unique(families)]
        return np.concatenate(found)

    def _distance(self, one: Seen) -> Floats:
        features = _features(np.array([one.flops], np.float64), np.array([one.moved_bytes], np.float64))
        nodes = self._codes["nodes"].get((one.family, one.nodes), -1) if one.nodes else -1
        return self._apart(
            features[0],
            self._nodes == nodes,
            self._ops == self._codes["ops"].get(one.ops, -1),
            self._main == self._codes["main"].get(main_op(one.ops), -1),
        )

    def _apart(self, features: Floats, same_nodes: Any, same_ops: Any, same_main: Any) -> Floats:
        apart = np.where(
            same_nodes, SAME_NODES, np.where(same_ops, SAME_OPS, np.where(same_main, SAME_MAIN_OP, OTHER_OP))
        )
        squares = ((self._features - features) ** 2).sum(axis=1) + apart**2
        return np.asarray(np.sqrt(squares), np.float64)

    def _mean(self, distance: Floats, usable: Mask) -> tuple[npt.NDArray[np.intp], float]:
        places = np.flatnonzero(usable)
        nearest = places[np.argsort(distance[places], kind="stable")[:N_NEIGHBOURS]]
        weights = 1.0 / (NEAREST + distance[nearest]) ** POWER
        return nearest, float((weights * self._y[nearest]).sum() / weights.sum())

    def _residual(self, index: int, within: bool) -> float | None:
        """log(truth / prediction) of a kernel, predicted without its own model.

        Args:
            index: Of the kernel.
            within: Whether its model at other shapes may be used, as it is for the prediction at hand.
        """
        key = (index, within)
        if key not in self._residuals:
            codes = self._digests if within else self._families
            usable = codes != codes[index]
            if not usable.any():  # one model only: leave out its equals
                usable = self._signatures != self._signatures[index]
            self._residuals[key] = self._tried(index, usable) if usable.any() else None
        return self._residuals[key]

    def _tried(self, index: int, usable: Mask) -> float:
        distance = self._apart(
            self._features[index],
            self._nodes == self._nodes[index],
            self._ops == self._ops[index],
            self._main == self._main[index],
        )
        _, y = self._mean(distance, usable)
        return float(self._y[index] - y)


def _features(flops: Floats, moved: Floats) -> Floats:
    log_flops, log_moved = np.log1p(flops), np.log1p(moved)
    return np.stack([log_flops, log_moved, log_flops - log_moved], axis=1)


def _best(amounts: Floats, times: Floats) -> float:
    """The highest rate seen: the 90th percentile over the longer half; tiny where there was no work."""
    # Short kernels' times are mostly launch, and views move nothing of what they name.
    long = times >= np.median(times) if times.size else times > 0
    rates = amounts[long] / times[long]
    return max(float(np.percentile(rates, 90)) if rates.size else 0.0, 1e-9)


def _floor(times: Floats, roof: Floats) -> float:
    """Time of a launch that has next to nothing to do: median over the tenth with the least work."""
    if not times.size:
        return 1.0
    least = np.argsort(roof, kind="stable")[: max(len(times) // 10, min(len(times), 5))]
    return float(np.median(times[least]))
