"""The first node at which two sides part: by exposing every value, or by cutting the model shorter."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hal import host
from hal.errors import HalError
from hal.graph.cut import Cutter
from hal.graph.difference import TensorError
from hal.profiling.divergence_sides import Pair
from hal.profiling.progress import Progress
from hal.records.divergence import NodeDifference
from hal.tensor import Array
from hal.units import format_bytes

_log = logging.getLogger("hal.profiling")

#: Unit roundoff: the largest relative error of one correctly rounded operation.
#: Source: Higham, "Accuracy and Stability of Numerical Algorithms", section 2.1 (u = 2^-p for p digits).
ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
#: Share of the free memory that exposed values may take on one side. Both children, both ways through shared
#: memory and both arrays here hold them at once.
_COPIES = 8
#: Nodes listed by growth. Source: the issue.
_LISTED = 5


@dataclass(frozen=True)
class Job:
    """What is searched.

    Attributes:
        cutter: Of the model.
        inputs: Of the model, by name.
        pair: The sides.
        tolerance: Relative L2 above which a value parts.
        ends: Outputs of the model that part.
        progress: Told of what happens.
        budget_bytes: What exposed values may take on one side; None for a share of the free memory.
    """

    cutter: Cutter
    inputs: Mapping[str, Array]
    pair: Pair
    tolerance: float
    ends: tuple[str, ...]
    progress: Progress
    budget_bytes: int | None = None

    @property
    def roundoff(self) -> float:
        """Of the coarser precision."""
        return max(ROUNDOFF[side.precision] for side in self.pair.sides)

    def parts(self, error: TensorError | None) -> bool:
        """Whether a value is further apart than the tolerance."""
        return error is not None and error.relative_l2 > self.tolerance


@dataclass(frozen=True)
class Found:
    """Where the sides part first.

    Attributes:
        by: ``exposing`` or ``bisecting``.
        first: The node.
        outputs: Outputs of a prefix of the model on which they part.
    """

    by: str
    first: NodeDifference
    outputs: tuple[str, ...]


@dataclass
class Exposed:
    """What exposing all values told.

    Attributes:
        errors: By value.
        carried: Relative L2 by value; one that was not compared is as far apart as its node's inputs.
        nodes: By node whose outputs were compared, in topological order.
        notes: What went wrong.
    """

    errors: dict[str, TensorError] = field(default_factory=dict)
    carried: dict[str, float] = field(default_factory=dict)
    nodes: list[NodeDifference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def growth(self) -> tuple[NodeDifference, ...]:
        """The nodes at which the difference grows most, where it grows at all but not beyond all bounds."""
        grown = [node for node in self.nodes if node.growth is not None and node.growth > 1]
        return tuple(sorted(grown, key=lambda node: -(node.growth or 0))[:_LISTED])

    @property
    def unbounded(self) -> list[str]:
        """A sentence on nodes that are infinitely far apart while their inputs are not; none where none are.

        Mostly masks: the sum of the least float and a score is infinite on one side. A softmax behind it
        hides that, and listed by growth such nodes would hide all others.
        """
        found = [node for node in self.nodes if node.growth is None and node.error_in is not None]
        if not found:
            return []
        names = ", ".join(f"{node.node} ({node.op})" for node in found[:_LISTED])
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        return [
            "infinitely far apart though their inputs are not, because one side is infinite, NaN or not zero "
            f"where the other is: {names}{more}"
        ]

    def worst(self, outputs: Sequence[str]) -> NodeDifference | None:
        """The node furthest apart whose value is not an output of the model."""
        inner = [node for node in self.nodes if node.value not in outputs and node.error_out != 0]
        return max(inner, key=lambda node: _or_infinite(node.error_out), default=None)


def expose(job: Job) -> Exposed:
    """Compare every value at once, in chunks where memory would not do."""
    exposed = Exposed()
    chunks = list(chunked(job))
    for number, chunk in enumerate(chunks, 1):
        part = f" (part {number} of {len(chunks)})" if len(chunks) > 1 else ""
        job.progress.stage(f"comparing {len(chunk)} values{part}")
        try:
            exposed.errors |= job.pair.compare(job.cutter.prefix(chunk), job.inputs)
        except HalError as error:
            _log.warning("exposing all values: %s", error)
            exposed.notes.append(f"with all its values as outputs the model does not run: {error.message}")
            exposed.errors.clear()
            return exposed
    _judge_nodes(job, exposed)
    if len(chunks) > 1:
        exposed.notes.append(
            f"the values were compared in {len(chunks)} parts, because all at once would not fit into "
            f"{format_bytes(host.available_memory_bytes())} of memory"
        )
    return exposed


def chunked(job: Job) -> Iterator[list[str]]:
    """The values in topological order, in lists that fit into memory one at a time."""
    budget = job.budget_bytes
    if budget is None:
        budget = host.available_memory_bytes() // _COPIES
    sizes = {value: job.cutter.n_bytes(value) for value in job.cutter.values}
    # A value whose size is not known may be as large as the largest.
    unknown = max((size for size in sizes.values() if size is not None), default=0)
    chunk: list[str] = []
    held = 0
    for value, size in sizes.items():
        n_bytes = unknown if size is None else size
        if chunk and held + n_bytes > budget:
            yield chunk
            chunk, held = [], 0
        chunk.append(value)
        held += n_bytes
    if chunk:
        yield chunk


def _judge_nodes(job: Job, exposed: Exposed) -> None:
    """Fill in what each node adds to the difference, in topological order."""
    cutter, errors, carried = job.cutter, exposed.errors, exposed.carried
    for node in cutter.nodes:
        error_in = max((carried.get(value, 0.0) for value in cutter.reads(node)), default=0.0)
        for value in cutter.writes(node):
            carried[value] = errors[value].relative_l2 if value in errors else error_in
        compared = [value for value in cutter.writes(node) if value in errors]
        if compared:
            value = max(compared, key=carried.__getitem__)
            exposed.nodes.append(_difference(job, node, value, error_in, carried[value]))


def first_exposed(job: Job, exposed: Exposed) -> Found | None:
    """The first node that parts, on a way of parted values to an output that parts.

    A value in between that is far apart for a moment only, such as a small difference of large numbers, is no
    answer: its error does not reach the end.

    Returns:
        None where the outputs agree once all values are exposed: that hid the difference.
    """
    cutter = job.cutter
    nodes = {node.node: node for node in exposed.nodes}
    parted = {value for value, error in exposed.carried.items() if error > job.tolerance}
    seen: set[str] = set()
    waiting = [value for value in job.ends if value in parted]
    origins: list[str] = []
    while waiting:
        node = cutter.producer(waiting.pop())
        if node is None or node in seen:
            continue
        seen.add(node)
        before = [value for value in cutter.reads(node) if value in parted]
        waiting += before
        if not before and node in nodes:
            origins.append(node)
    if not origins:
        return None
    first = nodes[cutter.ordered(origins)[0]]
    return Found("exposing", first, (first.value,))


def bisect(job: Job, at_the_end: Mapping[str, TensorError]) -> Found | None:
    """Cut the model shorter and shorter until one node decides.

    Only what crosses the cut is exposed, so that fusions before it stay as they are. Prefixes that do not run
    are passed over.

    Args:
        job: What is searched.
        at_the_end: The errors of the model's outputs, some of which part.

    Returns:
        None where the outputs that part come from no node.
    """
    cutter = job.cutter
    nodes = cutter.ordered(cutter.ancestors(job.ends))
    frontiers = {
        cut: tuple(values)
        for cut in range(1, len(nodes))
        if (values := cutter.frontier(nodes[:cut], nodes[cut:], job.ends))
    }
    low, high = 0, len(nodes)
    errors: dict[int, Mapping[str, TensorError]] = {0: {}, high: {end: at_the_end[end] for end in job.ends}}
    frontiers[high] = job.ends
    open_cuts = [cut for cut in frontiers if cut < high]
    n_probes = 0
    while candidates := [cut for cut in open_cuts if low < cut < high]:
        cut = candidates[len(candidates) // 2]
        job.progress.stage(f"cutting the model after {cut} of {len(nodes)} nodes")
        job.progress.advance(n_probes, n_probes + len(candidates).bit_length())
        n_probes += 1
        try:
            errors[cut] = job.pair.compare(cutter.prefix(frontiers[cut]), job.inputs)
        except HalError as error:
            _log.warning("a cut after %d nodes: %s", cut, error)
            open_cuts.remove(cut)
            continue
        if any(map(job.parts, errors[cut].values())):
            high = cut
        else:
            low = cut
    parted = [value for value, error in errors[high].items() if job.parts(error)]
    parted = [value for value in parted if cutter.producer(value) is not None]
    if not parted:
        return None
    value = min(parted, key=lambda name: cutter.position(cutter.producer(name) or ""))
    node = cutter.producer(value) or ""
    before = [errors[low][name].relative_l2 for name in cutter.reads(node) if name in errors[low]]
    found = _difference(job, node, value, max(before, default=0.0), errors[high][value].relative_l2)
    return Found("bisecting", found, frontiers[high])


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _difference(job: Job, node: str, value: str, error_in: float, error_out: float) -> NodeDifference:
    return NodeDifference(
        node=node,
        op=job.cutter.graph.nodes[node].op_type,
        position=job.cutter.position(node),
        value=value,
        error_in=finite(error_in),
        error_out=finite(error_out),
        # Of an error below one rounding any operation makes one.
        growth=0.0 if not error_out else finite(_ratio(error_out, max(error_in, job.roundoff))),
    )


def _ratio(above: float, below: float) -> float:
    # Infinite before and after: nothing grew.
    return 1.0 if math.isinf(below) else above / below


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value
