"""Reads the problems of moirai-placement/moirai.

Source: Zhang et al., "Moirai: Towards Optimal Placement for Distributed Inference on Heterogeneous Devices",
2023.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hal.planning.problem import Problem


def makespan(path: Path) -> Problem:
    """One request on unlike devices: nodes start alone, each edge between devices is a transfer.

    A device computes one node at a time, sends one transfer at a time and receives one at a time. Each edge
    is a tensor of its own, because its time is its own.

    Args:
        path: A JSON file of the folder.
    """
    read: dict[str, Any] = json.loads(path.read_bytes())
    devices, nodes, edges = read["devices"], read["nodes"], read["edges"]
    t = len(devices)
    at = {node["id"]: number for number, node in enumerate(nodes)}
    memory = np.array([round(node["mem"]) for node in nodes], np.int64)
    return Problem(
        time=np.array([node["cost"] for node in nodes]),
        silicon=np.arange(t),
        pool=np.arange(t),
        capacity=np.array([entry["memory"] for entry in devices]),
        weight_bytes=np.repeat(memory[:, None], t, axis=1),
        producer=np.array([at[edge["src"]] for edge in edges], np.int64),
        read_tensor=np.arange(len(edges)),
        read_unit=np.array([at[edge["dst"]] for edge in edges], np.int64),
        transfer=np.array([edge["cost"] for edge in edges]),
        charge="edge",
        start="unit",
        overlap=True,
        send_port=True,
        receive_port=True,
        objective="latency",
        unit_names=tuple(str(node["id"]) for node in nodes),
        target_names=tuple(f"device {entry['id']}" for entry in devices),
    )
