"""Control flow: If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hal_torch.bridge.node import Branch, Call, Operand, OpNode, Refused, Undecided
from hal_torch.bridge.table import operator


class IfModule(torch.nn.Module):
    """Run one of two branches, chosen at each call.

    Args:
        then_branch: Runs when the condition is true.
        else_branch: Runs when it is false.
        n_then: How many captured values belong to the first branch.
    """

    def __init__(self, then_branch: torch.nn.Module, else_branch: torch.nn.Module, n_then: int) -> None:
        super().__init__()
        self.then_branch = then_branch
        self.else_branch = else_branch
        self.n_then = n_then

    def forward(self, condition: torch.Tensor, *captured: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs of the branch that was taken."""
        if bool(condition):
            return tuple(self.then_branch(*captured[: self.n_then]))
        return tuple(self.else_branch(*captured[self.n_then :]))


def _branch(node: OpNode, name: str, inputs: Sequence[Operand]) -> Branch:
    if node.scope is None:
        raise Undecided
    return node.scope.branch(node.graph(name), inputs)


@operator("If", any_type=True)
def if_node(node: OpNode) -> Call | list[Operand]:
    """A branch in place when the condition is known, else both branches and a choice at each call."""
    condition = node.input(0)
    then_graph, else_graph = node.graph("then_branch"), node.graph("else_branch")
    if condition.const is not None:
        if node.scope is None:
            raise Undecided
        return node.scope.inline(then_graph if bool(condition.const.item()) else else_graph)
    then_branch, else_branch = _branch(node, "then_branch", ()), _branch(node, "else_branch", ())
    module = IfModule(then_branch.module, else_branch.module, len(then_branch.captures))
    captured = (*then_branch.captures, *else_branch.captures)
    fakes = [_agreed(a, b) for a, b in zip(then_branch.outputs, else_branch.outputs, strict=True)]
    return Call(module, (condition, *captured), fakes=fakes, foldable=False)


def _agreed(first: Operand, second: Operand) -> torch.Tensor | None:
    """A tensor with the shape and dtype of both branches, None when they differ."""
    if first.shape is None or first.shape != second.shape or first.dtype != second.dtype:
        return None
    return first.fake if first.fake is not None else second.fake


class LoopModule(torch.nn.Module):
    """Run a body while a condition holds.

    Args:
        body: Takes the iteration number, the condition, carried and captured values; returns the
            condition, carried values and one slice per scan output.
        n_carried: How many values are carried from one iteration to the next.
        n_scanned: How many outputs collect a slice per iteration.
        limited: Whether the first argument limits the number of iterations.
        conditional: Whether the next argument is a condition.
        empty: Shape and dtype of a slice of each scan output, for loops without iterations.
    """

    def __init__(
        self,
        body: torch.nn.Module,
        n_carried: int,
        limited: bool,
        conditional: bool,
        empty: Sequence[tuple[tuple[int, ...], torch.dtype]],
    ) -> None:
        super().__init__()
        self.body = body
        self.n_carried = n_carried
        self.limited = limited
        self.conditional = conditional
        self.empty = tuple(empty)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Carried values after the last iteration, then the collected slices."""
        left = list(inputs)
        limit = int(left.pop(0)) if self.limited else None
        condition = left.pop(0) if self.conditional else torch.tensor(True)
        carried, captured = left[: self.n_carried], left[self.n_carried :]
        collected: list[list[torch.Tensor]] = [[] for _ in self.empty]
        step = 0
        while (limit is None or step < limit) and bool(condition):
            number = torch.tensor(step, dtype=torch.int64)
            condition, *rest = self.body(number, condition, *carried, *captured)
            carried = rest[: self.n_carried]
            for slices, part in zip(collected, rest[self.n_carried :], strict=True):
                slices.append(part)
            step += 1
        stacked = [
            torch.stack(slices) if slices else torch.empty((0, *shape), dtype=dtype)
            for slices, (shape, dtype) in zip(collected, self.empty, strict=True)
        ]
        return (*carried, *stacked)


def _slices(outputs: Sequence[Operand]) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of one slice of each scan output; what is unknown matters only without iterations."""
    return [(output.shape or (), output.dtype or torch.float32) for output in outputs]


@operator("Loop", any_type=True)
def loop_node(node: OpNode) -> Call:
    """A loop in Python around the body's module."""
    limit, condition = node.optional(0), node.optional(1)
    carried = [node.input(i) for i in range(2, len(node.inputs))]
    # Shapes may change from one iteration to the next, so only dtypes are promised to the body.
    inner = [Operand(c.name, dtype_hint=c.dtype) for c in carried]
    number = Operand("iteration", dtype_hint=torch.int64)
    flag = Operand("condition", dtype_hint=torch.bool)
    branch = _branch(node, "body", (number, flag, *inner))
    empty = _slices(branch.outputs[1 + len(carried) :])
    module = LoopModule(branch.module, len(carried), limit is not None, condition is not None, empty)
    given = [operand for operand in (limit, condition) if operand is not None]
    fakes = [None] * (len(branch.outputs) - 1)
    return Call(module, (*given, *carried, *branch.captures), fakes=fakes, foldable=False)


class ScanModule(torch.nn.Module):
    """Run a body over slices.

    Args:
        body: Takes states, one slice per scanned input, and captured values; returns states and one
            slice per output.
        n_states: How many states are carried.
        in_axes: Axis of each scanned input.
        in_reversed: Whether each scanned input is read from its end.
        out_axes: Axis of each output.
        out_reversed: Whether each output is written from its end.
    """

    def __init__(
        self,
        body: torch.nn.Module,
        n_states: int,
        in_axes: Sequence[int],
        in_reversed: Sequence[int],
        out_axes: Sequence[int],
        out_reversed: Sequence[int],
    ) -> None:
        super().__init__()
        self.body = body
        self.n_states = n_states
        self.in_axes = tuple(in_axes)
        self.in_reversed = tuple(in_reversed)
        self.out_axes = tuple(out_axes)
        self.out_reversed = tuple(out_reversed)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Last states, then the stacked outputs."""
        n_scanned = len(self.in_axes)
        states = list(inputs[: self.n_states])
        scanned = inputs[self.n_states : self.n_states + n_scanned]
        captured = inputs[self.n_states + n_scanned :]
        columns = [
            parts[::-1] if reverse else parts
            for parts, reverse in zip(
                (x.unbind(axis) for x, axis in zip(scanned, self.in_axes, strict=True)),
                self.in_reversed,
                strict=True,
            )
        ]
        collected: list[list[torch.Tensor]] = [[] for _ in self.out_axes]
        for parts in zip(*columns, strict=True):
            result = self.body(*states, *parts, *captured)
            states = list(result[: self.n_states])
            for slices, part in zip(collected, result[self.n_states :], strict=True):
                slices.append(part)
        stacked = [
            torch.stack(slices[::-1] if reverse else slices, axis)
            for slices, axis, reverse in zip(collected, self.out_axes, self.out_reversed, strict=True)
        ]
        return (*states, *stacked)


@operator("Scan", 9, any_type=True)
def scan_node(node: OpNode) -> Call:
    """A loop over slices."""
    n_scanned = node.integer("num_scan_inputs", 0)
    operands = [node.input(i) for i in range(len(node.inputs))]
    n_states = len(operands) - n_scanned
    inner = [Operand(operand.name, dtype_hint=operand.dtype) for operand in operands]
    branch = _branch(node, "body", inner)
    n_out = len(branch.outputs) - n_states
    if any(operand.shape is not None and 0 in operand.shape for operand in operands[n_states:]):
        raise Refused("a scan over nothing is not translated")
    module = ScanModule(
        branch.module,
        n_states,
        node.integers("scan_input_axes") or (0,) * n_scanned,
        node.integers("scan_input_directions") or (0,) * n_scanned,
        node.integers("scan_output_axes") or (0,) * n_out,
        node.integers("scan_output_directions") or (0,) * n_out,
    )
    fakes = [None] * len(branch.outputs)
    return Call(module, (*operands, *branch.captures), fakes=fakes, foldable=False)


class BatchedScan(torch.nn.Module):
    """Run a scan for each sample of a batch.

    Args:
        scan: Takes states, scanned inputs and captured values of one sample.
        n_batched: How many of its arguments have a batch dimension in front.
    """

    def __init__(self, scan: torch.nn.Module, n_batched: int) -> None:
        super().__init__()
        self.scan = scan
        self.n_batched = n_batched

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Last states, then the stacked outputs, each with the batch dimension in front."""
        batched, captured = inputs[: self.n_batched], inputs[self.n_batched :]
        samples = [self.scan(*parts, *captured) for parts in zip(*(x.unbind() for x in batched), strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))


@operator("Scan", 8, any_type=True)
def scan_8(node: OpNode) -> Call:
    """A loop over slices, for each sample of a batch."""
    if node.optional(0) is not None:
        raise Refused("input `sequence_lens` of Scan before operator set 9 is not translated")
    n_scanned = node.integer("num_scan_inputs", 0)
    operands = [node.input(i) for i in range(1, len(node.inputs))]
    n_states = len(operands) - n_scanned
    branch = _branch(node, "body", [Operand(operand.name, dtype_hint=operand.dtype) for operand in operands])
    n_out = len(branch.outputs) - n_states
    if any(operand.shape is not None and 0 in operand.shape for operand in operands):
        raise Refused("a scan over nothing is not translated")
    directions = node.integers("directions") or (0,) * n_scanned
    forward = (0,) * n_out
    scan = ScanModule(branch.module, n_states, (0,) * n_scanned, directions, forward, forward)
    fakes = [None] * len(branch.outputs)
    module = BatchedScan(scan, len(operands))
    return Call(module, (*operands, *branch.captures), fakes=fakes, foldable=False)
