"""A model with its plan written onto the nodes, for graph viewers."""

from __future__ import annotations

from pathlib import Path

import onnx

from hal.errors import UserError
from hal.graph.model import Graph
from hal.records.plan import Plan
from hal.units import format_ns

#: The first IR version whose nodes may have metadata.
_METADATA_SINCE = 10


def annotated(graph: Graph, plan: Plan) -> onnx.ModelProto:
    """A copy of the model whose nodes say where they run.

    Each node has the metadata ``hal.target`` and ``hal.partition``, the first of each partition also
    ``hal.predicted`` and ``hal.reason``; the model has ``hal.plan`` in short. Viewers show them beside the
    node's attributes.

    Args:
        graph: The bound graph.
        plan: Of this graph.

    Raises:
        UserError: The plan is of another model; names both digests.
        ModelError: The model is too large for one file.
    """
    if graph.digest != plan.model.digest:
        raise UserError(
            f"the plan is of {plan.model.name!r} with digest {plan.model.digest[:12]}; the model's is "
            f"{graph.digest[:12]}; plan this model"
        )
    proto = onnx.ModelProto()
    proto.CopyFrom(graph.to_proto())
    proto.ir_version = max(proto.ir_version, _METADATA_SINCE)
    home = {node: number for number, part in enumerate(plan.partitions) for node in part.nodes}
    told: set[int] = set()
    for node in proto.graph.node:
        number = home.get(node.name)
        if number is None:
            continue
        part = plan.partitions[number]
        texts = {"hal.target": part.target, "hal.partition": str(number)}
        if number not in told:
            told.add(number)
            texts["hal.predicted"] = format_ns(part.end_ns - part.start_ns)
            texts["hal.reason"] = part.reason
        for key, value in texts.items():
            node.metadata_props.add(key=key, value=value)
    proto.metadata_props.add(
        key="hal.plan",
        value=f"{len(plan.partitions)} partitions on {', '.join(plan.targets)}, for "
        f"{plan.constraints.objective}",
    )
    return proto


def write_annotated(graph: Graph, plan: Plan, path: Path, *, force: bool = False) -> None:
    """Write :func:`annotated` to a file.

    Raises:
        OutputExists: It exists and ``force`` is false.
        StorageError: It cannot be written.
    """
    from hal.records import files

    content: bytes = annotated(graph, plan).SerializeToString()
    files.write(path, content, force=force)
