"""What a translation sees of an ONNX node, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir
import torch


class Refused(Exception):
    """A node cannot be translated with right answers; the text is the reason."""


class Undecided(Exception):
    """Only the whole graph can tell whether the node can be translated (a value is not folded yet)."""


@dataclass(eq=False)
class Operand:
    """A value of the graph while it is being translated.

    Attributes:
        name: Name of the ONNX value, for messages and parameter names.
        const: The value itself when it is known before the model runs.
        fake: A fake tensor with the value's shape and dtype, when both are known.
        fx: The fx node that yields the value; constants get theirs at first use.
        n_uses: How many nodes and graph outputs read the value.
        lower: Whether lower_weights may cast this constant.
        dtype_hint: The dtype when the shape is not known.
        kind: The ONNX element type when PyTorch lacks it and another dtype carries its values.
    """

    name: str
    const: torch.Tensor | None = None
    fake: torch.Tensor | None = None
    fx: torch.fx.Node | None = None
    n_uses: int = 1
    lower: bool = False
    dtype_hint: torch.dtype | None = None
    kind: ir.DataType | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Static shape, or None when it is only known while the model runs."""
        known = self.const if self.const is not None else self.fake
        return None if known is None else tuple(known.shape)

    @property
    def dtype(self) -> torch.dtype | None:
        """Element type, or None when unknown."""
        known = self.const if self.const is not None else self.fake
        return self.dtype_hint if known is None else known.dtype

    @property
    def rank(self) -> int | None:
        """Number of dimensions, or None when unknown."""
        shape = self.shape
        return None if shape is None else len(shape)

    def derived(self, const: torch.Tensor, suffix: str = "", *, lower: bool = False) -> Operand:
        """A constant computed from this one (a transposed weight, a cast scale)."""
        return Operand(self.name + suffix, const=const, lower=lower)


Argument = object
"""What may stand in a Call: operands, Python numbers, strings, None, dtypes, and tuples of these."""


@dataclass(frozen=True)
class Call:
    """One call that computes a node.

    Attributes:
        function: A function, or a module for control flow.
        args: Positional arguments; operands become tensors when the model runs.
        kwargs: Constants bound by name.
        fakes: Shapes of the outputs when the function must not be evaluated on fake tensors;
            an entry is None when the shape of that output is unknown.
        foldable: Whether it may be evaluated once when every argument is known.
        kind: The ONNX element type of the outputs when another dtype carries their values.
        opaque: Whether the one output is no tensor, but a sequence or an optional value.
    """

    function: Callable[..., object]
    args: tuple[Argument, ...] = ()
    kwargs: Mapping[str, Argument] = field(default_factory=dict)
    fakes: Sequence[torch.Tensor | None] | None = None
    foldable: bool = True
    kind: ir.DataType | None = None
    opaque: bool = False


def call(function: Callable[..., object], *args: Argument, **kwargs: Argument) -> Call:
    """Shorthand for Call."""
    return Call(function, args, kwargs)


class Scope(Protocol):
    """What a translation of control flow may ask of the graph around the node."""

    def branch(self, graph: ir.Graph, inputs: Sequence[Operand]) -> Branch:
        """Translate a subgraph into a module of its own."""
        ...

    def inline(self, graph: ir.Graph) -> list[Operand]:
        """Translate a subgraph without inputs in place; returns its outputs."""
        ...


@dataclass(frozen=True)
class Branch:
    """A translated subgraph.

    Attributes:
        module: Takes the inputs, then the captured values; returns a tuple.
        captures: Values of the outer graphs that it reads.
        outputs: Its outputs, for their shapes and dtypes.
    """

    module: torch.fx.GraphModule
    captures: tuple[Operand, ...]
    outputs: tuple[Operand, ...]


@dataclass(frozen=True)
class OpNode:
    """An ONNX node with its inputs resolved.

    Attributes:
        node: The node.
        version: Operator set version of the node's domain.
        inputs: Its inputs; None where an optional input is left out.
        scope: The graph around it; None when the node is judged alone.
    """

    node: ir.Node
    version: int
    inputs: tuple[Operand | None, ...]
    scope: Scope | None = None

    @property
    def op(self) -> str:
        """Operator type."""
        return self.node.op_type

    @property
    def n_outputs(self) -> int:
        """One more than the position of the last output that has a name."""
        named = [i for i, value in enumerate(self.node.outputs) if value.name]
        return named[-1] + 1 if named else 0

    @property
    def single(self) -> bool:
        """Whether it has one output; its function then returns a tensor, else a tuple."""
        return len(self.node.outputs) == 1

    def has_output(self, index: int) -> bool:
        """Whether the output at a position exists and is read or returned."""
        if index >= len(self.node.outputs):
            return False
        value = self.node.outputs[index]
        return bool(value.name) and (bool(value.uses()) or value.is_graph_output())

    def input(self, index: int) -> Operand:
        """A required input.

        Raises:
            Refused: It is missing.
        """
        found = self.optional(index)
        if found is None:
            raise Refused(f"required input {index} is missing")
        return found

    def optional(self, index: int) -> Operand | None:
        """An optional input, None when left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def const(self, index: int, what: str) -> torch.Tensor | None:
        """The value of an input that has to be known before the model runs; None when left out.

        Raises:
            Refused: It depends on data.
            Undecided: The node is judged alone and the value is not an initializer.
        """
        operand = self.optional(index)
        if operand is None:
            return None
        if operand.const is None:
            if self.scope is None:
                raise Undecided
            raise Refused(f"input `{what}` ({operand.name}) must be a constant, it is computed from data")
        return operand.const

    def const_ints(self, index: int, what: str) -> tuple[int, ...] | None:
        """Like const, as Python ints."""
        tensor = self.const(index, what)
        return None if tensor is None else tuple(int(v) for v in tensor.reshape(-1).tolist())

    def ints_or_operand(self, index: int) -> tuple[int, ...] | Operand | None:
        """An input of ints: read now when it is known, else as a tensor read at each call."""
        operand = self.optional(index)
        if operand is None or operand.const is None:
            return operand
        return tuple(int(v) for v in operand.const.reshape(-1).tolist())

    def shape(self, index: int) -> tuple[int, ...]:
        """The static shape of an input.

        Raises:
            Refused: It is known only while the model runs.
            Undecided: The node is judged alone.
        """
        operand = self.input(index)
        if operand.shape is None:
            if self.scope is None:
                raise Undecided
            raise Refused(f"the shape of input {index} ({operand.name}) must be static, it depends on data")
        return operand.shape

    def dtype(self, index: int) -> torch.dtype:
        """The dtype of an input.

        Raises:
            Refused: It could not be inferred.
            Undecided: The node is judged alone.
        """
        operand = self.input(index)
        if operand.dtype is None:
            if self.scope is None:
                raise Undecided
            raise Refused(f"the element type of input {index} ({operand.name}) could not be inferred")
        return operand.dtype

    def attribute(self, name: str) -> ir.Attr | None:
        """An attribute as it stands, None when left out."""
        return self.node.attributes.get(name)

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        found = self.attribute(name)
        return default if found is None else found.as_int()

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers, None when left out."""
        found = self.attribute(name)
        return None if found is None else tuple(found.as_ints())

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        found = self.attribute(name)
        return default if found is None else found.as_float()

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """A list of floats, None when left out."""
        found = self.attribute(name)
        return None if found is None else tuple(found.as_floats())

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        found = self.attribute(name)
        return default if found is None else found.as_string()

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of strings, None when left out."""
        found = self.attribute(name)
        return None if found is None else tuple(found.as_strings())

    def graph(self, name: str) -> ir.Graph:
        """A subgraph attribute.

        Raises:
            Refused: It is missing.
        """
        found = self.attribute(name)
        if found is None:
            raise Refused(f"subgraph `{name}` is missing")
        return found.as_graph()
