"""The smallest part of a model, with real inputs, on which two sides part too."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hal.errors import HalError
from hal.graph.cut import storable
from hal.graph.difference import TensorError
from hal.graph.model import Graph
from hal.profiling.divergence_search import Found, Job
from hal.profiling.divergence_sides import REFERENCE, Side
from hal.tensor import Array

_log = logging.getLogger("hal.profiling")


@dataclass(frozen=True)
class Part:
    """A part of a model on which the sides part.

    Attributes:
        graph: The part.
        inputs: By name.
        errors: By output.
        extent: As in :class:`hal.records.divergence.Reproduction`.
        inputs_from: The side that computed the inputs; empty where they are the model's own.
    """

    graph: Graph
    inputs: dict[str, Array]
    errors: dict[str, TensorError]
    extent: str
    inputs_from: str


class Reproducer:
    """Tries parts of a model.

    Args:
        job: What is searched.

    Attributes:
        n_tried: Parts tried so far.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._values: dict[str, Array] = {}
        self._source: Side | None = None
        self.n_tried = 0

    def smallest(self, found: Found | None) -> Part | None:
        """The smallest part on which the sides part.

        The first node alone; then with more and more nodes before it, until they part, and again with fewer;
        then the same for everything that crosses the cut at which it was found, and for the outputs of the
        model.

        Returns:
            None where only the model itself will do.
        """
        ends = tuple(end for end in self._job.ends if end in self._job.cutter.values)
        wanted = [(found.first.value,), found.outputs] if found is not None else []
        for outputs in dict.fromkeys([*wanted, ends]):
            if outputs and (part := self._grow(outputs)) is not None:
                return part
        return None

    def _grow(self, outputs: tuple[str, ...]) -> Part | None:
        """Look for a part that computes these values."""
        cutter = self._job.cutter
        layers = cutter.layers(outputs)
        if not layers:  # the same in each run: only nodes that read weights
            return self._try(cutter.ancestors(outputs), outputs)
        best, depth, failed = None, 1, 0
        while True:
            depth = min(depth, len(layers))
            best = self._try(_joined(layers[:depth]), outputs)
            if best is not None or depth == len(layers):
                break
            failed, depth = depth, 2 * depth
        if best is None:
            return None
        while depth - failed > 1:
            middle = (failed + depth) // 2
            part = self._try(_joined(layers[:middle]), outputs)
            if part is None:
                failed = middle
            else:
                best, depth = part, middle
        return self._shrunk(best, cutter.ordered(_joined(layers[:depth])), outputs)

    def _shrunk(self, best: Part, nodes: Sequence[str], outputs: tuple[str, ...]) -> Part:
        """Leave out the first of some nodes, as many as possible."""
        cutter = self._job.cutter
        kept = {node for value in outputs if (node := cutter.producer(value)) is not None}
        low, high = 0, min(nodes.index(node) for node in kept)
        while low < high:
            middle = (low + high + 1) // 2
            # What no longer leads to an output goes too.
            part = self._try(cutter.ancestors(outputs, within=set(nodes[middle:])), outputs)
            if part is None:
                high = middle - 1
            else:
                best, low = part, middle
        return best

    def _try(self, nodes: Collection[str], outputs: tuple[str, ...]) -> Part | None:
        """Run a part on both sides; None where they agree on it, or it does not run."""
        job = self._job
        self.n_tried += 1
        job.progress.stage(f"looking for the smallest part that reproduces it: {len(nodes)} nodes")
        try:
            job.cutter.learn(job.pair.shapes)
            graph = job.cutter.part(nodes, outputs)
            inputs = self._inputs(graph)
            if inputs is None:
                return None
            job.cutter.learn({name: array.shape for name, array in inputs.items()})
            errors = job.pair.compare(job.cutter.part(nodes, outputs), inputs)
        except HalError as error:
            _log.warning("a part of %d nodes: %s", len(nodes), error)
            return None
        if not any(map(job.parts, errors.values())):
            return None
        job.cutter.learn(job.pair.shapes)  # of its outputs, perhaps for the first time
        graph = job.cutter.part(nodes, outputs)
        computed = [name for name in inputs if name not in job.inputs]
        whole = not computed
        extent = "node" if len(nodes) == 1 else "prefix" if whole else "part"
        source = "" if whole or self._source is None else self._source.name
        return Part(graph, inputs, errors, extent, source)

    def _inputs(self, graph: Graph) -> dict[str, Array] | None:
        """Inputs of a part; None where one holds NaN, which no model is given (hal.graph.model)."""
        wanted = [spec.name for spec in graph.signature.inputs]
        missing = [name for name in wanted if name not in self._job.inputs and name not in self._values]
        if missing:
            self._values |= self._computed(missing)
        found = {}
        for name in wanted:
            array = storable(self._job.inputs.get(name, self._values.get(name, np.empty(0))))
            if array.dtype.kind in "fc" and np.isnan(array).any():
                return None
            found[name] = array
        return found

    def _computed(self, names: Sequence[str]) -> Mapping[str, Array]:
        job = self._job
        graph = job.cutter.prefix(names)
        sides = [side for side in job.pair.sides if side.name == REFERENCE] or list(job.pair.sides)
        if self._source is not None:  # one side for all, so that the inputs belong together
            sides = [self._source]
        for side in sides[:-1]:
            try:
                return self._from(side, graph)
            except HalError as error:
                _log.warning("inputs of a part: %s", error)
        return self._from(sides[-1], graph)

    def _from(self, side: Side, graph: Graph) -> Mapping[str, Array]:
        answers = self._job.pair.answers(side, graph, self._job.inputs)
        self._source = side
        return dict(zip((spec.name for spec in graph.signature.outputs), answers, strict=True))


def _joined(layers: Sequence[Sequence[str]]) -> list[str]:
    return [node for layer in layers for node in layer]
