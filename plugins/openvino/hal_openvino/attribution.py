"""From OpenVINO's kernels to the nodes of the ONNX graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hal_openvino.atlas import TOKEN, Atlas

# What stands in the runtime model without being run: by the names of the CPU and the GPU plugin.
_CONSTANTS = frozenset({"Const", "Constant"})
_EDGES = frozenset({"Input", "Output", "Parameter", "Result"})
_LAYOUT = frozenset({"Reorder", "reorder"})
# ONNX operators that only rename or reinterpret a tensor: without a step of their own they cost nothing.
_VIEWS = frozenset({"Identity", "Dropout", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"})
# ONNX operators that exporters build activations from, and that OpenVINO fuses behind another operation.
_ACTIVATIONS = {"Clip", "Relu", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softplus", "Min", "Max"}
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Log", *_ACTIVATIONS})


class Step:
    """One node of OpenVINO's runtime model.

    Attributes:
        name: As the runtime reports it.
        kind: Layer type, for example ``Convolution``.
        nodes: ONNX nodes it helps compute.
        unnamed: Operations fused into it that OpenVINO made up, such as ``HSwish_17``.
        before: Steps it reads from.
        after: Steps that read from it.
    """

    def __init__(self, name: str, kind: str, nodes: Iterable[str], unnamed: Iterable[str]) -> None:
        self.name = name
        self.kind = kind
        self.nodes: dict[str, None] = dict.fromkeys(nodes)
        self.unnamed = tuple(unnamed)
        self.before: list[Step] = []
        self.after: list[Step] = []

    @functools.cached_property
    def is_constant(self) -> bool:
        """Whether it is computed once, while compiling: all that it reads is constant."""
        if not self.before:
            return self.kind in _CONSTANTS
        return all(other.is_constant for other in self.before)

    @property
    def is_run(self) -> bool:
        """Whether it does anything when the model runs."""
        return self.kind not in _EDGES and not self.is_constant


def attribute(atlas: Atlas, runtime_model: Any) -> tuple[list[Step], tuple[str, ...]]:
    """The steps that run, each with its ONNX nodes, and the nodes that cost nothing per run.

    The sources, the surer ones first:

    1. Tokens in ``originalLayersNames``: OpenVINO's own record of what it fused.
    2. A step that fused an operation of OpenVINO's making (``HSwish_17``) computes the element-wise
       nodes that no step claims and that read nothing but the step's own nodes.
    3. A step without a token lies between steps with: it computes the nodes on the paths between
       theirs that no step claims (the pattern was replaced by a new operation).
    4. A node that no step claims was fused into the step that all its readers are in, or else into
       the step that all its inputs come from.
    5. A node that only renames a tensor goes with the step that makes the tensor, or else with the one
       that reads it.
    6. A step that is still without nodes converts layouts or types for the steps that read it, and
       helps compute their nodes.

    Folded are constant nodes, and those that rename an input for the caller, where no step is.
    """
    run = [step for step in _steps(atlas, runtime_model) if step.is_run]
    claims = _Claims(atlas, run)
    for step in run:
        if step.nodes and step.unnamed:
            claims.take_epilogue(step)
    for step in run:
        if not step.nodes and step.kind not in _LAYOUT:
            claims.take_between(step)
    claims.take_by_neighbours()
    claims.take_views()
    for step in [step for step in run if not step.nodes]:
        near = _nearest(step, lambda s: s.after) or _nearest(step, lambda s: s.before)
        step.nodes = dict.fromkeys(node for other in near for node in other.nodes)
    order = {name: position for position, name in enumerate(atlas.operators)}
    for step in run:
        step.nodes = dict.fromkeys(sorted(step.nodes, key=order.__getitem__))
    covered = {node for step in run for node in step.nodes}
    folded = tuple(
        name
        for name, operator in atlas.operators.items()
        if name not in covered and (name in atlas.constant or operator in _VIEWS)
    )
    return run, folded


class _Claims:
    """Which step each node belongs to, while that is being found out."""

    def __init__(self, atlas: Atlas, run: Sequence[Step]) -> None:
        self._atlas = atlas
        # What nothing needs was left out by OpenVINO and counts as constant: it says nothing of its inputs.
        self._readers = {
            name: tuple(reader for reader in readers if reader not in atlas.constant)
            for name, readers in atlas.consumers.items()
        }
        self._sources = _reverse(atlas.consumers)
        self._claimed: dict[str, Step] = {}
        for step in run:
            for node in step.nodes:
                self._claimed.setdefault(node, step)
        self._free = {
            name for name in atlas.operators if name not in self._claimed and name not in atlas.constant
        }

    def take_epilogue(self, step: Step) -> None:
        for name in self._atlas.operators:
            sources = self._varying_sources(name)
            if (
                name in self._free
                and self._atlas.operators[name] in _ELEMENTWISE | _VIEWS
                and sources
                and all(source in step.nodes for source in sources)
            ):
                self._claim(name, step)

    def take_between(self, step: Step) -> None:
        before = {node for other in _nearest(step, lambda s: s.before) for node in other.nodes}
        after = {node for other in _nearest(step, lambda s: s.after) for node in other.nodes}
        # Without a step on one side, it reads the graph's inputs or makes its outputs: start there.
        first = {name for name in self._free if not any(s in self._free for s in self._sources.get(name, ()))}
        last = {name for name in self._free if not self._readers[name]}
        below = self._reach(before, self._readers) if before else first | self._reach(first, self._readers)
        above = self._reach(after, self._sources) if after else last | self._reach(last, self._sources)
        for name in below & above:
            self._claim(name, step)

    def take_by_neighbours(self) -> None:
        into = dict(self._claimed)
        for name in reversed(self._atlas.operators):
            self._assume(name, self._readers[name], into)
        for name in self._atlas.operators:
            self._assume(name, self._varying_sources(name), into)
        for name in self._atlas.operators:
            if name not in self._free or name not in into:
                continue
            # A view belongs to a step only when the step makes what it renames, too.
            inside = [into.get(source) is into[name] for source in self._varying_sources(name)]
            if self._atlas.operators[name] not in _VIEWS or (inside and all(inside)):
                self._claim(name, into[name])

    def take_views(self) -> None:
        views = [name for name in self._atlas.operators if self._atlas.operators[name] in _VIEWS]
        ways: tuple[tuple[Iterable[str], Callable[[str], Sequence[str]]], ...] = (
            (views, self._varying_sources),
            (reversed(views), self._readers.__getitem__),
        )
        for ordered, near in ways:
            for name in ordered:
                step = next((self._claimed[other] for other in near(name) if other in self._claimed), None)
                if name in self._free and step is not None:
                    self._claim(name, step)

    def _assume(self, name: str, near: Sequence[str], into: dict[str, Step]) -> None:
        if name in into or name not in self._free:
            return
        steps = {id(into[other]): into[other] for other in near if other in into}
        if len(steps) == 1 and all(other in into for other in near):
            into[name] = next(iter(steps.values()))

    def _claim(self, name: str, step: Step) -> None:
        step.nodes[name] = None
        self._claimed[name] = step
        self._free.discard(name)

    def _varying_sources(self, name: str) -> tuple[str, ...]:
        return tuple(s for s in self._sources.get(name, ()) if s not in self._atlas.constant)

    def _reach(self, start: set[str], edges: Mapping[str, tuple[str, ...]]) -> set[str]:
        """What can be reached over unclaimed nodes only."""
        found: set[str] = set()
        stack = [other for name in start for other in edges.get(name, ())]
        while stack:
            name = stack.pop()
            if name in self._free and name not in found:
                found.add(name)
                stack.extend(edges.get(name, ()))
        return found


def _steps(atlas: Atlas, runtime_model: Any) -> list[Step]:
    steps: dict[str, Step] = {}
    for operation in runtime_model.get_ordered_ops():
        facts = operation.get_rt_info()
        kind = str(facts["layerType"].value) if "layerType" in facts else operation.get_type_name()
        original = str(facts["originalLayersNames"].value) if "originalLayersNames" in facts else ""
        parts = [part.strip() for part in original.split(",") if part.strip()]
        nodes = dict.fromkeys(node for part in parts for node in atlas.owners_of(part))
        name = operation.get_friendly_name()
        unnamed = [part for part in parts if part != name and not TOKEN.match(part)]
        step = steps[name] = Step(name, kind, nodes, unnamed)
        for port in operation.inputs():
            source = steps.get(port.get_source_output().get_node().get_friendly_name())
            if source is not None:
                step.before.append(source)
                source.after.append(step)
        _ = step.is_constant  # asked in topological order, so that it never recurses deeply
    return list(steps.values())


def _nearest(step: Step, ways: Callable[[Step], list[Step]]) -> list[Step]:
    """The next steps with nodes, in one direction, through steps without."""
    found: dict[int, Step] = {}
    seen: set[int] = set()
    stack = list(ways(step))
    while stack:
        other = stack.pop()
        if id(other) in seen:
            continue
        seen.add(id(other))
        if other.nodes and other.is_run:
            found[id(other)] = other
        else:
            stack.extend(ways(other))
    return list(found.values())


def _reverse(edges: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, others in edges.items():
        for other in others:
            found.setdefault(other, []).append(name)
    return {name: tuple(others) for name, others in found.items()}
