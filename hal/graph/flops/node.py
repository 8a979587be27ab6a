"""A node as the formulas see it, and the table that they enter themselves into."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import onnx_ir as ir

from hal.graph.shapes import Known
from hal.tensor import Array

#: Operations that one arithmetic function on one element counts as: additions, multiplications and
#: comparisons 1, divisions and square roots 4, exponentials and their like 8.
#: Source: F. H. McMahon, "The Livermore Fortran Kernels", UCRL-53745, 1986, weights of operations.
DIVIDE = SQRT = 4
TRANSCENDENTAL = 8

MICROSOFT = "com.microsoft"


class UnknownCount(Exception):
    """A shape, a value or a case that a formula needs is not known."""


class OpNode:
    """One node with its shapes.

    Attributes:
        op: Operator type.
        known: What is known of the graph's values.
    """

    def __init__(self, node: ir.Node, known: Known, opset: int) -> None:
        self.node = node
        self.op = node.op_type
        self.known = known
        self.opset = opset

    def has(self, index: int) -> bool:
        """Whether the input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    @property
    def n_inputs(self) -> int:
        """Inputs, those left out at the end not counted."""
        return sum(value is not None for value in self.node.inputs)

    def shape(self, index: int) -> tuple[int, ...]:
        """An input's sizes.

        Raises:
            UnknownCount: It is left out, or its sizes are not known.
        """
        value = self.node.inputs[index] if self.has(index) else None
        shape = None if value is None else self.known.shape(value)
        if shape is None:
            raise UnknownCount(f"input {index} of {self.op}")
        return shape

    def size(self, index: int) -> int:
        """An input's number of elements; raises as :meth:`shape`."""
        return math.prod(self.shape(index))

    def out(self, index: int = 0) -> tuple[int, ...]:
        """An output's sizes.

        Raises:
            UnknownCount: They are not known.
        """
        shape = self.known.shape(self.node.outputs[index]) if index < len(self.node.outputs) else None
        if shape is None:
            raise UnknownCount(f"output {index} of {self.op}")
        return shape

    def out_size(self, index: int = 0) -> int:
        """An output's number of elements; raises as :meth:`out`."""
        return math.prod(self.out(index))

    def constant(self, index: int) -> Array:
        """An input's values, where they are the same in each run.

        Raises:
            UnknownCount: They are not.
        """
        value = self.node.inputs[index] if self.has(index) else None
        constant = None if value is None else self.known.constant(value)
        if constant is None:
            raise UnknownCount(f"value of input {index} of {self.op}")
        return constant

    def integer(self, name: str, default: int) -> int:
        """An attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute, None where it is left out."""
        attribute = self.node.attributes.get(name)
        return None if attribute is None else tuple(attribute.as_ints())

    def number(self, name: str, default: float) -> float:
        """An attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_float()

    def text(self, name: str, default: str) -> str:
        """An attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()


Formula = Callable[[OpNode], int]
"""Operations per run of a node. Raises UnknownCount where that cannot be told."""

TABLE: dict[tuple[str, str], Formula] = {}
"""{(domain, operator): formula}"""


def enter(names: Iterable[str] | str, domain: str = "") -> Callable[[Formula], Formula]:
    """Enter a formula for operators into the table."""

    def into(formula: Formula) -> Formula:
        for name in [names] if isinstance(names, str) else names:
            TABLE[domain, name] = formula
        return formula

    return into
