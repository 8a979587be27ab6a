"""A bound graph for several requests at once: its first dimensions are as many times as large."""

from __future__ import annotations

import hashlib

import onnx_ir as ir
from onnx_ir.passes import common as passes

from hal.errors import InputError, problems
from hal.graph.model import Graph

#: Operators whose outputs have sizes that follow from values, not from sizes: how many rows are whose is then
#: not known. Source: ONNX, Operators.md.
_BY_VALUE = frozenset(
    {"NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "Scan", "If", "StringSplit"}
)


def rebatched(graph: Graph, n_requests: int) -> Graph:
    """The graph with the first dimension of every input ``n_requests`` times as large.

    Nodes and weights stay as they are. Whether its answers are those of the requests one by one cannot be
    told from shapes: a node may mix rows. Run both and compare. Sizes of outputs that shape inference cannot
    tell are left open where they follow from those of the inputs alone.

    Args:
        graph: Bound.
        n_requests: 2 or more.

    Raises:
        InputError: An input has no dimension, or an output is not as many times as large, or its size cannot
            be told; all are named.
    """
    found = [
        f"input {spec} has no dimension to gather along" for spec in graph.signature.inputs if not spec.shape
    ]
    if not graph.signature.inputs:
        found.append("it has no inputs")
    if found:
        raise InputError(problems(f"requests of {graph.name!r} cannot be gathered", found))
    model = graph.model.clone()
    for value in model.graph.inputs:
        assert value.shape is not None
        first, *rest = value.shape.numpy()
        value.shape = ir.Shape([n_requests * first, *rest])
    outputs = {id(value) for value in model.graph.outputs}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([None] * len(value.shape)) if id(value) in outputs else None
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    digest = hashlib.sha256(f"{graph.digest}, {n_requests} at once".encode()).hexdigest()
    made = Graph(model, name=graph.name, digest=digest)
    by_value = sorted({node.op_type for node in graph.model.graph.all_nodes()} & _BY_VALUE)
    for one, many in zip(graph.signature.outputs, made.signature.outputs, strict=True):
        if not _is_known(one.shape):
            if by_value:
                found.append(f"the size of output {one} may follow from values ({', '.join(by_value)})")
        elif not one.shape or many.shape != (n_requests * int(one.shape[0]), *one.shape[1:]):
            found.append(
                f"output {one} would be {many}, not {n_requests} times as large in its first dimension"
            )
    if found:
        raise InputError(problems(f"requests of {graph.name!r} cannot be gathered", found))
    return made


def _is_known(shape: tuple[int | str, ...]) -> bool:
    return all(isinstance(size, int) for size in shape)


__all__ = ["rebatched"]
