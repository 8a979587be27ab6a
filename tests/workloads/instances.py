"""All public instances, with what others reached on them.

The data lies in the folder that the environment variable ``HAL_WORKLOADS`` names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hal.planning.problem import Problem
from tests.workloads import dnn_partitioning, moirai


class Instance(NamedTuple):
    """A public problem.

    Attributes:
        family: ``throughput contiguous``, ``throughput``, ``latency`` or ``makespan``.
        name: As published.
        load: Reads it.
        reference: What to reach, to be made small.
        reference_text: Where the reference comes from.
        budget_s: In which it should be reached, loading included.
    """

    family: str
    name: str
    load: Callable[[], Problem]
    reference: float
    reference_text: str
    budget_s: float


#: Name, nodes: exact contiguous by the publishers' program, best known non-contiguous.
_THROUGHPUT = (
    ("LayerGraphs.bert24", 17.7899, 17.715),
    ("LayerGraphs.gnmt", 32.9107, 31.687),
    ("LayerGraphs.resnet50", 33.7747, 33.339),
    ("LayerGraphs.inceptionv3", 51.5519, 51.260),
    ("OperatorGraphs.bert_l-3", 27.9186, 21.908),
    ("OperatorGraphs.bert_l-6", 29.5795, 28.330),
    ("OperatorGraphs.bert_l-12", 147.478, 130.038),
    ("OperatorGraphs.resnet50", 124.349, 124.349),
)
_LATENCY = (
    ("LayerGraphs.bert24", 100.218),
    ("LayerGraphs.gnmt", 225.651),
    ("LayerGraphs.resnet50", 1178.665),
    ("OperatorGraphs.bert_l-3", 408.471),
    ("OperatorGraphs.bert_l-6", 438.057),
    ("OperatorGraphs.bert_l-12", 738.364),
    ("OperatorGraphs.resnet50", 684.024),
)
#: Name, best known, budget in seconds.
_MAKESPAN = (
    ("GoogLeNet", 1.3096, 30.0),
    ("yolov5x", 23.745, 2.0),
    ("example-1", 30.0, 2.0),
)


def workloads() -> Path | None:
    """Where the public problems lie; None where ``HAL_WORKLOADS`` is not set."""
    where = os.environ.get("HAL_WORKLOADS")
    return Path(where) if where else None


def instances(folder: Path) -> list[Instance]:
    """All instances of a folder with ``dnn-partitioning`` and ``moirai``."""
    published = folder / "dnn-partitioning"
    return [*_throughput(published), *_latency(published), *_makespan(folder / "moirai")]


def _throughput(folder: Path) -> list[Instance]:
    found = []
    for contiguous in (True, False):
        for name, convex, free in _THROUGHPUT:
            path = folder / "throughput" / f"{name}_inference.json"
            by_one_order = contiguous and "inception" in name
            found.append(
                Instance(
                    "throughput contiguous" if contiguous else "throughput",
                    name,
                    partial(dnn_partitioning.throughput, path, contiguous=contiguous),
                    convex if contiguous else free,
                    "DP over one linear order"
                    if by_one_order
                    else "publishers' DP"
                    if contiguous
                    else "HiGHS and search",
                    5.0 if by_one_order else 10.0 if contiguous else 60.0,
                )
            )
    return found


def _latency(folder: Path) -> list[Instance]:
    return [
        Instance(
            "latency",
            name,
            partial(dnn_partitioning.latency, folder / "latency" / f"{name}_inference.json"),
            reference,
            "CP-SAT",
            60.0,
        )
        for name, reference in _LATENCY
    ]


def _makespan(folder: Path) -> list[Instance]:
    return [
        Instance(
            "makespan",
            name,
            partial(moirai.makespan, folder / f"{name}.json"),
            reference,
            "annealing and CP-SAT",
            budget_s,
        )
        for name, reference, budget_s in _MAKESPAN
    ]
