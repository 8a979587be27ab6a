"""Reads the problems of msr-fiddle/dnn-partitioning.

Source: Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph Operators", NeurIPS 2020.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hal.planning.problem import Problem


def throughput(path: Path, *, contiguous: bool) -> Problem:
    """Pipeline of identical accelerators and cores.

    Accelerators come first, cores behind. An accelerator pays for each tensor that comes in, once, and for
    each that goes out, once; a core pays for its nodes alone.

    Args:
        path: A JSON file of the folder ``throughput``.
        contiguous: Whether each device's nodes are one partition.
    """
    return _problem(path, objective="throughput", n_cores=None, partitions=1 if contiguous else 0)


def latency(path: Path) -> Problem:
    """One request; each accelerator runs one partition, each node on the CPU is a partition of its own.

    The accelerators come first. The last target is the CPU, which runs any number of partitions at once.

    Args:
        path: A JSON file of the folder ``latency``.
    """
    return _problem(path, objective="latency", n_cores=1, partitions=1)


def _problem(path: Path, *, objective: str, n_cores: int | None, partitions: int) -> Problem:
    read: dict[str, Any] = json.loads(path.read_bytes())
    nodes, edges = read["nodes"], read["edges"]
    k = int(read["maxFPGAs"])
    cores = int(read["maxCPUs"]) if n_cores is None else n_cores
    n, t = len(nodes), k + cores
    at = {node["id"]: number for number, node in enumerate(nodes)}
    source = np.array([at[edge["sourceId"]] for edge in edges], np.int64)
    sink = np.array([at[edge["destId"]] for edge in edges], np.int64)
    _, kept = np.unique(source * n + sink, return_index=True)
    cost = np.zeros(n)
    for number, edge in zip(source.tolist(), edges, strict=True):
        cost[number] = edge["cost"]
    time = np.empty((n, t))
    weights = np.zeros((n, t), np.int64)
    for number, node in enumerate(nodes):
        time[number, :k] = node["fpgaLatency"] if node["supportedOnFpga"] else np.inf
        time[number, k:] = node["cpuLatency"]
        weights[number, :k] = round(node["size"])
    handed = np.zeros((n, t))
    handed[:, :k] = cost[:, None]
    colours = [node.get("colorClass", -1 - number) for number, node in enumerate(nodes)]
    _, group = np.unique(colours, return_inverse=True)
    group = np.where(np.bincount(group)[group] > 1, group, -1)
    is_latency = objective == "latency"
    return Problem(
        time=time,
        silicon=np.arange(t),
        pool=np.minimum(np.arange(t), k),
        capacity=np.array([read["maxSizePerFPGA"]] * k + [np.inf] * (cores > 0)),
        producer=np.arange(n),
        read_tensor=source[kept],
        read_unit=sink[kept],
        send=handed,
        receive=handed,
        weight_bytes=weights,
        slots=np.array([1] * k + [0 if is_latency else 1] * cores),
        partitions_per_target=np.array([partitions] * k + [0 if is_latency else partitions] * cores),
        same_device=group,
        charge="target",
        overlap=False,
        objective=objective,
        unit_names=tuple(str(node["name"]) for node in nodes),
        target_names=tuple([f"accelerator {at}" for at in range(k)] + [f"cpu {at}" for at in range(cores)]),
    )
