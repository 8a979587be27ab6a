"""Small bundles for tests: the bytes of one, and the same bytes with a lie in them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hal.graph.facts import facts
from hal.graph.model import Graph
from hal.profiling.assembly import graph_info
from hal.records.plan import Constraints, Partition, Plan
from hal.records.profile import Profile
from hal.session import bundle
from tests.unit import placeable, planned
from tests.unit.compared import kernel, table

#: Members of a bundle whose records nobody reads.
PLAIN = {
    bundle.PROVENANCE: b'{"from": "here"}',
    bundle.PLAN: b"{}",
    bundle.PROFILE: b"{}",
    bundle.MODEL: bytes(range(256)) * 2,
}
BLOBS = (bundle.Blob("openvino", "k0", b"code" * 9), bundle.Blob("fake", "k1", b""))


def written(path: Path, contents: dict[str, bytes] = PLAIN, blobs: Sequence[bundle.Blob] = BLOBS) -> bytes:
    """Write a bundle; its bytes."""
    bundle.write(path, contents, blobs, hal_version="0.1.0", force=True)
    return path.read_bytes()


def lying(path: Path, change: Callable[[bundle.Manifest], object], *parts: bytes) -> None:
    """Write a bundle whose manifest says something else; all its headers agree with that.

    Args:
        path: The file.
        change: Makes the manifest that is written, of any type.
        parts: Contents of the members; those of :data:`PLAIN` where there are none.
    """
    contents = parts or tuple(PLAIN.values())
    members = tuple(
        bundle.Member(
            name=name, n_bytes=len(part), crc32=zlib.crc32(part), sha256=hashlib.sha256(part).hexdigest()
        )
        for name, part in zip(bundle.names(0), contents, strict=True)
    )
    manifest = bundle.Manifest(format="hal bundle", version=1, hal_version="0.1.0", members=members)
    made = change(manifest)
    first = made if isinstance(made, bytes) else msgspec.json.encode(made)
    told = made.members if isinstance(made, bundle.Manifest) else members
    heads, tail = bundle._frame(first, told)
    path.write_bytes(
        b"".join(
            head + part for head, part in zip(heads, [first, *contents, *[b""] * len(told)], strict=False)
        )
        + tail
    )


def graph(scale: float = 1.0) -> Graph:
    """A product with weights, an activation and another product."""
    weights = np.random.default_rng(5).standard_normal((2, 4, 4)).astype(np.float32) * scale
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("MatMul", ["b", "w1"], ["y"], name="last"),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 4))] for name in "xy"]
    held = [numpy_helper.from_array(weights[at], f"w{at}") for at in range(2)]
    proto = helper.make_graph(nodes, "small", *ends, initializer=held)
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def profile_of(made: Graph, *targets: str) -> Profile:
    """A profile in which each later target is slower, and every node is a unit."""
    kernels = [table(*(kernel(name, median_ns=10_000 * at) for name in made.nodes)) for at in (1, 2, 3)]
    return placeable.profile(
        *(placeable.on(name, 30_000 * at, kernels[at - 1]) for at, name in enumerate(targets, 1)),
        facts=facts(made),
        model=graph_info(made, "made up"),
        links=(),
        devices=tuple(placeable.device(name) for name in dict.fromkeys(t.split("/")[0] for t in targets)),
    )


def plan_of(made: Graph, *pieces: tuple[str, Sequence[str]], **constraints: object) -> Plan:
    """A plan of these partitions: targets and names of nodes."""
    partitions = tuple(
        Partition(target=target, units=tuple(nodes), nodes=tuple(nodes), inputs=(), outputs=())
        for target, nodes in pieces
    )
    return planned.plan(
        model=graph_info(made, "made up"),
        partitions=partitions,
        constraints=Constraints(**constraints),  # type: ignore[arg-type]  # fields of all types
        transfers=(),
        finalists=(),
        measured=None,
        devices=(),
        notes=(),
    )
