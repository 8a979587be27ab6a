"""From OpenVINO's kernels to the nodes of the ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hal_openvino.atlas import Atlas

# What stands in the runtime model without being run: by the names of the CPU and the GPU plugin.
_NOT_RUN = frozenset({"Input", "Output", "Const", "Parameter", "Result", "Constant"})
_LAYOUT = frozenset({"Reorder", "reorder"})


class Step:
    """One node of OpenVINO's runtime model.

    Attributes:
        name: As the runtime reports it.
        kind: Layer type, for example ``Convolution``.
        nodes: ONNX nodes it helps compute.
        before: Steps it reads from.
        after: Steps that read from it.
    """

    def __init__(self, name: str, kind: str, nodes: Iterable[str]) -> None:
        self.name = name
        self.kind = kind
        self.nodes: dict[str, None] = dict.fromkeys(nodes)
        self.before: list[Step] = []
        self.after: list[Step] = []

    @property
    def is_run(self) -> bool:
        """Whether it does anything when the model runs."""
        return self.kind not in _NOT_RUN


def attribute(atlas: Atlas, runtime_model: Any) -> tuple[list[Step], tuple[str, ...]]:
    """The steps that run, each with its ONNX nodes, and the nodes that cost nothing per run.

    Four sources, the surer ones first:

    1. Tokens in ``originalLayersNames``: OpenVINO's own record of what it fused.
    2. A step that carries no token lies between steps that do: it computes the nodes on the paths
       between theirs that no other step claims (the pattern was replaced by a new operation).
    3. A node that no step claims, all of whose readers are in one step, was fused into that step.
    4. What is left without nodes converts layouts or types for the steps that read it, and helps
       compute their nodes.

    Nodes on constants alone, and nodes that only rename a tensor and are in no step, are folded.
    """
    steps = _steps(atlas, runtime_model)
    run = [step for step in steps if step.is_run]
    claimed: dict[str, Step] = {}
    for step in run:
        for node in step.nodes:
            claimed.setdefault(node, step)
    free = {name for name in atlas.consumers if name not in claimed and name not in atlas.constant}
    producers = _reverse(atlas.consumers)
    for step in run:
        if step.nodes or step.kind in _LAYOUT:
            continue
        for node in _between(step, atlas.consumers, producers, free):
            step.nodes[node] = None
            claimed[node] = step
            free.discard(node)
    _claim_by_readers(atlas, producers, claimed, free)
    for step in [step for step in run if not step.nodes]:
        near = _nearest(step, lambda s: s.after) or _nearest(step, lambda s: s.before)
        step.nodes = dict.fromkeys(node for other in near for node in other.nodes)
    order = {name: position for position, name in enumerate(atlas.consumers)}
    for step in run:
        step.nodes = dict.fromkeys(sorted(step.nodes, key=order.__getitem__))
    covered = {node for step in run for node in step.nodes}
    folded = tuple(
        name
        for name in atlas.consumers
        if name not in covered and (name in atlas.constant or name in atlas.views)
    )
    return run, folded


def _steps(atlas: Atlas, runtime_model: Any) -> list[Step]:
    steps: dict[str, Step] = {}
    for operation in runtime_model.get_ordered_ops():
        facts = operation.get_rt_info()
        kind = str(facts["layerType"].value) if "layerType" in facts else operation.get_type_name()
        original = str(facts["originalLayersNames"].value) if "originalLayersNames" in facts else ""
        nodes = dict.fromkeys(node for name in original.split(",") for node in atlas.owners_of(name.strip()))
        name = operation.get_friendly_name()
        step = steps[name] = Step(name, kind, nodes)
        for port in operation.inputs():
            source = steps.get(port.get_source_output().get_node().get_friendly_name())
            if source is not None:
                step.before.append(source)
                source.after.append(step)
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


def _between(
    step: Step,
    consumers: dict[str, tuple[str, ...]],
    producers: dict[str, tuple[str, ...]],
    free: set[str],
) -> list[str]:
    before = {node for other in _nearest(step, lambda s: s.before) for node in other.nodes}
    after = {node for other in _nearest(step, lambda s: s.after) for node in other.nodes}
    downstream = _reach(before, consumers, free) if before else free
    upstream = _reach(after, producers, free) if after else free
    both = downstream & upstream
    # Without a step on one side (it reads the graph's inputs, or makes its outputs) all is reachable.
    if not before:
        both = {n for n in both if _starts_at_inputs(n, producers, free)}
    if not after:
        both = {n for n in both if _starts_at_inputs(n, consumers, free)}
    return [name for name in consumers if name in both]


def _reach(start: set[str], edges: dict[str, tuple[str, ...]], free: set[str]) -> set[str]:
    """What can be reached over free nodes only."""
    found: set[str] = set()
    stack = [other for name in start for other in edges.get(name, ())]
    while stack:
        name = stack.pop()
        if name in free and name not in found:
            found.add(name)
            stack.extend(edges.get(name, ()))
    return found


def _starts_at_inputs(name: str, edges: dict[str, tuple[str, ...]], free: set[str]) -> bool:
    """Whether every path on the open side goes over free nodes to the graph's edge."""
    return all(other in free and _starts_at_inputs(other, edges, free) for other in edges.get(name, ()))


def _claim_by_readers(
    atlas: Atlas, producers: dict[str, tuple[str, ...]], claimed: dict[str, Step], free: set[str]
) -> None:
    into: dict[str, Step] = dict(claimed)
    for name in reversed(atlas.consumers):
        if name not in free:
            continue
        near = atlas.consumers[name] or producers.get(name, ())
        steps = {id(into[other]): into[other] for other in near if other in into}
        if len(steps) == 1 and all(other in into for other in near if other not in atlas.constant):
            into[name] = next(iter(steps.values()))
    for name in atlas.consumers:
        if name not in free or name not in into:
            continue
        # A view belongs to a step only when the step makes what it renames, too.
        inside = all(into.get(other) is into[name] for other in producers.get(name, ()))
        if name not in atlas.views or (inside and producers.get(name)):
            into[name].nodes[name] = None
            claimed[name] = into[name]


def _reverse(edges: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, others in edges.items():
        for other in others:
            found.setdefault(other, []).append(name)
    return {name: tuple(others) for name, others in found.items()}
