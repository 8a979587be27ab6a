"""Times per kernel: node by node in eager mode, from PyTorch's profiler where compiled."""

from __future__ import annotations

import operator
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from hal.backend import Kernel, KernelRuns
from hal_torch.provenance import Launch, matched


class Marks(Protocol):
    """Points in time of one device."""

    def mark(self) -> Any:
        """Now, in the order of what was launched."""
        ...

    def settle(self) -> None:
        """Wait until every mark has been passed."""
        ...

    def between_ns(self, start: Any, end: Any) -> int:
        """From one mark to another, once settled."""
        ...


class HostMarks:
    """The processor's clock."""

    def mark(self) -> int:
        """Monotonic nanoseconds."""
        return time.perf_counter_ns()

    def settle(self) -> None:
        """Nothing is outstanding on the processor."""

    def between_ns(self, start: int, end: int) -> int:
        """Nanoseconds from one mark to another."""
        return end - start


@dataclass(frozen=True)
class _Step:
    """One fx node, ready to be called with values from numbered slots."""

    node: torch.fx.Node
    slot: int
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    flat: bool
    dead: tuple[int, ...]


@dataclass(frozen=True)
class _Slot:
    index: int


class NodeByNode:
    """Runs a module one fx node at a time, with a mark before and after each."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        nodes = list(module.graph.nodes)
        slots = {node: index for index, node in enumerate(nodes)}
        last_use = {used: node for node in nodes for used in node.all_input_nodes}
        self._constants: dict[int, Any] = {}
        self._inputs: list[int] = []
        self._steps: list[_Step] = []
        self._n_slots = len(nodes)
        for node in nodes:
            if node.op == "placeholder":
                self._inputs.append(slots[node])
            elif node.op == "get_attr":
                self._constants[slots[node]] = operator.attrgetter(node.target)(module)
            elif node.op != "output":
                dead = tuple(
                    slots[used]
                    for used in node.all_input_nodes
                    if last_use[used] is node and used.op != "get_attr"
                )
                self._steps.append(_step(node, module, slots, dead))

    @property
    def kernels(self) -> list[tuple[int, torch.fx.Node]]:
        """Position and node of each step that computes; picking from a tuple does not."""
        return [
            (index, step.node)
            for index, step in enumerate(self._steps)
            if step.function is not operator.getitem
        ]

    def run(self, inputs: Sequence[torch.Tensor], marks: Marks) -> list[tuple[Any, Any]]:
        """Run once; the marks around each step."""
        values: list[Any] = [None] * self._n_slots
        for slot, constant in self._constants.items():
            values[slot] = constant
        for slot, given in zip(self._inputs, inputs, strict=True):
            values[slot] = given
        found = []
        mark = marks.mark
        for step in self._steps:
            if step.flat:
                args = [values[a.index] if type(a) is _Slot else a for a in step.args]
                kwargs = step.kwargs
            else:
                args, kwargs = _filled(step.args, values), _filled(step.kwargs, values)
            function = step.function
            start = mark()
            values[step.slot] = function(*args, **kwargs)
            end = mark()
            found.append((start, end))
            for slot in step.dead:
                values[slot] = None
        return found


def _step(
    node: torch.fx.Node, module: torch.fx.GraphModule, slots: dict[torch.fx.Node, int], dead: tuple[int, ...]
) -> _Step:
    args = torch.fx.node.map_arg(node.args, lambda used: _Slot(slots[used]))
    kwargs = torch.fx.node.map_arg(node.kwargs, lambda used: _Slot(slots[used]))
    nested = any(isinstance(a, tuple | list | dict | slice) for a in (*args, *kwargs.values()))
    flat = not nested and not any(type(a) is _Slot for a in kwargs.values())
    function: Callable[..., Any]
    if node.op == "call_function":
        function = node.target
    elif node.op == "call_method":
        function = getattr(torch.Tensor, str(node.target))
    else:
        function = module.get_submodule(str(node.target))
    return _Step(node, slots[node], function, tuple(args), dict(kwargs), flat, dead)


def _filled(template: Any, values: list[Any]) -> Any:
    if type(template) is _Slot:
        return values[template.index]
    if isinstance(template, tuple | list):
        return type(template)(_filled(item, values) for item in template)
    if isinstance(template, dict):
        return {name: _filled(item, values) for name, item in template.items()}
    if isinstance(template, slice):
        return slice(*(_filled(part, values) for part in (template.start, template.stop, template.step)))
    return template


def eager_runs(
    module: torch.fx.GraphModule,
    inputs: Sequence[torch.Tensor],
    n_runs: int,
    marks: Marks,
    names: Iterable[str],
) -> KernelRuns:
    """One kernel per fx node that computes.

    Args:
        module: What the bridge made.
        inputs: On the device.
        n_runs: Instrumented runs, after one warm-up run.
        marks: The device's clock.
        names: The nodes of the ONNX graph.
    """
    stepper = NodeByNode(module)
    stepper.run(inputs, marks)
    marks.settle()
    durations: list[list[int]] = []
    run_ns: list[int] = []
    for _ in range(n_runs):
        start = marks.mark()
        pairs = stepper.run(inputs, marks)
        end = marks.mark()
        marks.settle()
        run_ns.append(marks.between_ns(start, end))
        durations.append([marks.between_ns(*pair) for pair in pairs])
    known = set(names)
    kernels = tuple(
        Kernel(
            name=node.name,
            type=str(node.meta.get("onnx_op", node.target)),
            nodes=_names((node,), known),
            durations_ns=tuple(run[index] for run in durations),
        )
        for index, node in stepper.kernels
    )
    return KernelRuns(kernels=kernels, run_ns=tuple(run_ns), folded=folded(module, names))


def compiled_runs(
    call: Callable[..., Any],
    module: torch.fx.GraphModule,
    graphs: Sequence[Sequence[Launch]],
    inputs: Sequence[torch.Tensor],
    n_runs: int,
    names: Iterable[str],
) -> KernelRuns:
    """One kernel per launch of compiled code, from PyTorch's profiler.

    Durations are the device's: the sum of what a launch ran there on a GPU, host time on a CPU.

    Args:
        call: The module, compiled observed.
        module: What was compiled.
        graphs: Per compiled graph its kernels with their fx nodes.
        inputs: On the device.
        n_runs: Instrumented runs, after one warm-up run.
        names: The nodes of the ONNX graph.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    devices = {tensor.device for tensor in (*inputs, *module.parameters(), *module.buffers())}
    on_gpu = any(device.type == "cuda" for device in devices)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    call(*inputs)
    with _silent_kineto(), profile(activities=activities, acc_events=True) as profiler:
        for _ in range(n_runs):
            with record_function("hal_run"):
                call(*inputs)
                if on_gpu:
                    torch.cuda.synchronize()
    roots = [e for e in profiler.events() if e.name == "hal_run" and e.device_type == _host()]
    columns: dict[tuple[str, int], tuple[frozenset[str], list[int]]] = {}
    for root in roots:
        n_seen: dict[str, int] = {}
        for name, found, duration_ns in _launches(root, module, graphs, on_gpu):
            n_seen[name] = n_seen.get(name, 0) + 1
            columns.setdefault((name, n_seen[name]), (found, []))[1].append(duration_ns)
    launched = {key: column for key, column in columns.items() if len(column[1]) == len(roots)}
    covered = absorb(module, [found for found, _ in launched.values()])
    nodes = {node.name: node for node in module.graph.nodes}
    kernels = tuple(
        Kernel(
            name=f"{name}#{occurrence}" if occurrence > 1 else name,
            type="inductor" if "fused" in name else name,
            nodes=_names((node for key, node in nodes.items() if key in keys), set(names)),
            durations_ns=tuple(durations_ns),
        )
        for ((name, occurrence), (_, durations_ns)), keys in zip(launched.items(), covered, strict=True)
    )
    run_ns = tuple(_ns(root.time_range.elapsed_us()) for root in roots)
    # Inductor fuses what it likes, across the whole graph: that says nothing of what must stay together.
    return KernelRuns(kernels=kernels, run_ns=run_ns, folded=folded(module, names), defines_units=False)


@contextmanager
def _silent_kineto() -> Iterator[None]:
    """The profiler's native part writes to stderr when it starts and stops, unless told not to."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = before or "99"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def absorb(module: torch.fx.GraphModule, kernels: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """Add the nodes that Inductor's record lost when it replaced a pattern (a convolution and its relu).

    A node in no kernel whose readers are in kernels is computed in the kernels of its readers, for no
    other launch could have made its value. One that nobody reads, such as a last reshape, is a view of
    what it reads, and goes with that. Both hold only where every launch is known.

    Args:
        module: What was compiled.
        kernels: Names of the fx nodes of each launch.

    Returns:
        The same with the lost nodes added.
    """
    result = [set(found) for found in kernels]
    if not all(result):
        return list(kernels)
    members: dict[str, set[int]] = {}
    for index, found in enumerate(result):
        for name in found:
            members.setdefault(name, set()).add(index)
    for node in reversed(module.graph.nodes):
        if node.op.startswith("call_") and node.name not in members:
            readers: set[int] = set().union(*(members.get(user.name, set()) for user in node.users))
            members[node.name] = readers
            for index in readers:
                result[index].add(node.name)
    for node in module.graph.nodes:
        if node.op.startswith("call_") and not members[node.name]:
            makers: set[int] = set().union(*(members.get(used.name, set()) for used in node.all_input_nodes))
            members[node.name] = makers
            for index in makers:
                result[index].add(node.name)
    return [frozenset(found) for found in result]


def folded(module: torch.fx.GraphModule, names: Iterable[str]) -> tuple[str, ...]:
    """Nodes of the graph without a counterpart in the module: the bridge computed them beforehand."""
    left = {node.meta.get("onnx_node") for node in module.graph.nodes}
    return tuple(name for name in names if name not in left)


def _launches(
    root: Any, module: torch.fx.GraphModule, graphs: Sequence[Sequence[Launch]], on_gpu: bool
) -> list[tuple[str, frozenset[str], int]]:
    """(name, fx nodes, nanoseconds) of what one run launched, in order."""
    regions: list[list[Any]] = []
    order: list[tuple[Any, int]] = []  # (event, number of its region; -1 for code left to eager mode)
    _walk(root, -1, regions, order)
    nodes_of: dict[int, frozenset[str]] = {}
    answers = matched([[event.name for event in events] for events in regions], graphs)
    for events, answer in zip(regions, answers, strict=True):
        nodes_of.update((id(event), nodes) for event, nodes in zip(events, answer, strict=True))
    # What runs between compiled graphs decides on a branch or a next iteration.
    deciding = frozenset(node.name for node in module.graph.nodes if node.op == "call_module")
    following = deciding if len(deciding) == 1 else frozenset[str]()
    for event, region in reversed(order):
        if region >= 0:
            following = nodes_of[id(event)] & deciding or following
        else:
            nodes_of[id(event)] = following if len(following) == 1 else frozenset()
    return [
        (
            re.sub(r"^graph_\d+_", "", event.name),
            nodes_of[id(event)],
            _ns(event.device_time_total if on_gpu else event.cpu_time_total),
        )
        for event, _ in order
    ]


_WRAPPERS = ("Torch-Compiled Region", "CompiledFunction", "## Call CompiledFxGraph")
_BOOKKEEPING = ("TorchDynamo", "Pregraph bytecode", "AOTDispatcher")
_RUNTIME = ("cuda", "cuLaunch")  # CUDA's own calls: launches, waits


def _walk(parent: Any, region: int, regions: list[list[Any]], order: list[tuple[Any, int]]) -> None:
    for event in sorted(parent.cpu_children, key=lambda child: child.time_range.start):
        if event.name.startswith(_WRAPPERS):
            inner = region
            if event.name.startswith("## Call CompiledFxGraph"):
                regions.append([])
                inner = len(regions) - 1
            _walk(event, inner, regions, order)
        elif event.name.startswith(_RUNTIME) and not event.kernels:
            continue  # a wait or an allocation; what was launched has kernels
        elif not event.name.startswith(_BOOKKEEPING):
            order.append((event, region))
            if region >= 0:
                regions[region].append(event)


def _names(nodes: Iterable[torch.fx.Node], known: set[str]) -> tuple[str, ...]:
    found = dict.fromkeys(node.meta.get("onnx_node", "") for node in nodes)
    return tuple(name for name in found if name in known)


def _host() -> Any:
    return torch.autograd.DeviceType.CPU


def _ns(duration_us: float) -> int:
    return round(duration_us * 1000)
