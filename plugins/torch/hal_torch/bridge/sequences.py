"""Sequences and optional values: Python lists of tensors, and None for what is absent.

They live between the nodes of a module; what goes in and out of a compiled executable are tensors alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hal_torch.bridge.node import Call, Operand, OpNode, Refused, Undecided, call
from hal_torch.bridge.table import operator

Tensors = list[torch.Tensor]


def sequence(*parts: torch.Tensor) -> Tensors:
    """A list of tensors."""
    return list(parts)


@operator("SequenceConstruct", 11, any_type=True)
def sequence_construct(node: OpNode) -> Call:
    """Tensors as a sequence."""
    return Call(sequence, tuple(node.input(i) for i in range(len(node.inputs))), opaque=True)


@operator("SequenceEmpty", 11, any_type=True)
def sequence_empty(node: OpNode) -> Call:
    """A sequence of nothing."""
    return Call(sequence, opaque=True)


def inserted(parts: Tensors, part: torch.Tensor, place: torch.Tensor | None) -> Tensors:
    """The sequence with a tensor more, at its end unless a place is given."""
    at = len(parts) if place is None else int(place)
    if not -len(parts) <= at <= len(parts):
        raise IndexError(f"SequenceInsert at {at} of a sequence of {len(parts)}")
    longer = list(parts)
    longer.insert(at, part)
    return longer


@operator("SequenceInsert", 11, any_type=True)
def sequence_insert(node: OpNode) -> Call:
    """A sequence with a tensor more."""
    return Call(inserted, (node.input(0), node.input(1), node.optional(2)), opaque=True)


def erased(parts: Tensors, place: torch.Tensor | None) -> Tensors:
    """The sequence without one of its tensors, the last unless a place is given."""
    shorter = list(parts)
    shorter.pop(-1 if place is None else int(place))
    return shorter


@operator("SequenceErase", 11, any_type=True)
def sequence_erase(node: OpNode) -> Call:
    """A sequence with a tensor less."""
    return Call(erased, (node.input(0), node.optional(1)), opaque=True)


def at(parts: Tensors, place: torch.Tensor) -> torch.Tensor:
    """One tensor of a sequence."""
    return parts[int(place)]


@operator("SequenceAt", 11, any_type=True)
def sequence_at(node: OpNode) -> Call:
    """One tensor of a sequence."""
    return call(at, node.input(0), node.input(1))


def length(parts: Tensors) -> torch.Tensor:
    """int64[], how many tensors there are."""
    return torch.tensor(len(parts), dtype=torch.int64)


@operator("SequenceLength", 11, any_type=True)
def sequence_length(node: OpNode) -> Call:
    """How many tensors there are."""
    return call(length, node.input(0))


def cut(x: torch.Tensor, sizes: torch.Tensor | None, axis: int, keep: bool) -> Tensors:
    """Parts along an axis: of one size, of given sizes, or single places."""
    if sizes is None:
        parts = x.split(1, axis)
        return list(parts if keep else (part.squeeze(axis) for part in parts))
    return list(x.split(int(sizes) if sizes.dim() == 0 else sizes.tolist(), axis))


@operator("SplitToSequence", 11, any_type=True)
def split_to_sequence(node: OpNode) -> Call:
    """Parts of a tensor as a sequence."""
    keep = bool(node.integer("keepdims", 1))
    return Call(cut, (node.input(0), node.optional(1), node.integer("axis", 0), keep), opaque=True)


def joined(parts: Tensors, axis: int, new: bool) -> torch.Tensor:
    """The tensors side by side, along a new axis or one that they have."""
    return torch.stack(parts, axis) if new else torch.cat(parts, axis)


@operator("ConcatFromSequence", 11, any_type=True)
def concat_from_sequence(node: OpNode) -> Call:
    """The tensors of a sequence side by side."""
    return call(joined, node.input(0), node.integer("axis", 0), bool(node.integer("new_axis", 0)))


class MapModule(torch.nn.Module):
    """Run a body for each element of a sequence.

    Args:
        body: Takes one element of each sequence, the tensors and the captured values; returns a tuple.
        n_inputs: How many arguments are not captured.
        n_outputs: How many sequences come out.
    """

    def __init__(self, body: torch.nn.Module, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.body = body
        self.n_inputs = n_inputs
        self.n_outputs = n_outputs

    def forward(self, first: Tensors, *others: Tensors | torch.Tensor) -> tuple[Tensors, ...]:
        """One sequence per output of the body."""
        columns = others[: self.n_inputs - 1]
        captured = others[self.n_inputs - 1 :]
        results: tuple[Tensors, ...] = tuple([] for _ in range(self.n_outputs))
        for index, part in enumerate(first):
            row = [column if isinstance(column, torch.Tensor) else column[index] for column in columns]
            for found, result in zip(results, self.body(part, *row, *captured), strict=True):
                found.append(result)
        return results


@operator("SequenceMap", 17, any_type=True)
def sequence_map(node: OpNode) -> Call:
    """A body for each element of a sequence."""
    if node.scope is None:
        raise Undecided
    operands = [node.input(i) for i in range(len(node.inputs))]
    inner = [Operand(operand.name) for operand in operands]
    branch = node.scope.branch(node.graph("body"), inner)
    n_outputs = len(branch.outputs)
    module = MapModule(branch.module, len(operands), n_outputs)
    return Call(module, (*operands, *branch.captures), fakes=[None] * n_outputs, foldable=False)


def itself(x: torch.Tensor | Tensors | None) -> torch.Tensor | Tensors | None:
    """What was given."""
    return x


def nothing() -> None:
    """The absent value."""


@operator("Optional", 15, any_type=True)
def optional(node: OpNode) -> Call:
    """A value that may be absent."""
    given = node.optional(0)
    return Call(nothing, opaque=True) if given is None else Call(itself, (given,), opaque=True)


def present(x: torch.Tensor | Sequence[torch.Tensor] | None) -> torch.Tensor:
    """bool[], whether there is a value."""
    return torch.tensor(x is not None)


@operator("OptionalHasElement", 15, any_type=True)
def optional_has_element(node: OpNode) -> Call | torch.Tensor:
    """Whether there is a value."""
    given = node.optional(0)
    return torch.tensor(False) if given is None else call(present, given)


def value_of(x: torch.Tensor | Tensors | None) -> torch.Tensor | Tensors:
    """The value, which must be there."""
    if x is None:
        raise ValueError("OptionalGetElement of an absent value")
    return x


@operator("OptionalGetElement", 15, any_type=True)
def optional_get_element(node: OpNode) -> Call:
    """The value, which must be there."""
    given = node.optional(0)
    if given is None:
        raise Refused("the value of nothing is asked for")
    return Call(value_of, (given,), opaque=given.const is None and given.shape is None)
