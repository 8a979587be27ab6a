"""The table of translations: which operator, from which operator set version on, becomes which call."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch

from hal_torch.bridge.dtypes import NARROW, TORCH, to_torch
from hal_torch.bridge.node import Call, Operand, OpNode, Refused, Undecided
from hal_torch.bridge.unsigned import UNSIGNED, InInt64, computes_in_int64

Translate = Callable[[OpNode], "Call | torch.Tensor | list[Operand]"]
"""Answers a call, a constant, or the operands that already hold the outputs."""

TABLE: dict[tuple[str, str], list[tuple[int, Translate]]] = {}
"""{(domain, operator): [(first operator set version, translation)]}, newest first."""

NEWEST_OPSET = 28
"""The newest operator set that was compared with the ONNX node tests."""

_ANY_TYPE: set[tuple[str, str]] = set()


def operator(
    name: str, since: int = 1, *, domain: str = "", any_type: bool = False
) -> Callable[[Translate], Translate]:
    """Enter a translation into the table.

    Args:
        name: Operator type.
        since: First operator set version that it is right for.
        domain: Operator domain, empty for the standard one.
        any_type: Whether it moves values without computing, so that every dtype is right.
    """

    def enter(translate: Translate) -> Translate:
        add(name, since, translate, domain=domain, any_type=any_type)
        return translate

    return enter


def add(name: str, since: int, translate: Translate, *, domain: str = "", any_type: bool = False) -> None:
    """Enter one translation into the table; see operator."""
    entries = TABLE.setdefault((domain, name), [])
    entries.append((since, translate))
    entries.sort(key=lambda entry: -entry[0])
    if any_type:
        _ANY_TYPE.add((domain, name))


def domain_of(node: ir.Node) -> str:
    """The node's domain; the standard one is empty however it is spelt."""
    return "" if node.domain == "ai.onnx" else node.domain


def lookup(node: ir.Node, version: int) -> Translate:
    """Find the translation of a node.

    Raises:
        Refused: There is none for the operator or for the version.
    """
    domain = domain_of(node)
    entries = TABLE.get((domain, node.op_type))
    if entries is None:
        raise Refused(f"the bridge has no translation for operator {node.op_type} of domain '{domain}'")
    if domain == "" and version > NEWEST_OPSET:
        raise Refused(f"operator set {version} is newer than {NEWEST_OPSET}, the newest one translated")
    for since, translate in entries:
        if version >= since:
            return translate
    raise Refused(
        f"{node.op_type} of operator set {version} is not translated, only from {entries[-1][0]} on"
    )


def translate(node: OpNode) -> Call | torch.Tensor | list[Operand]:
    """Translate one node.

    Raises:
        Refused: With the reason.
        Undecided: The node is judged alone and needs its graph.
    """
    found = lookup(node.node, node.version)
    for value in node.node.inputs:
        if value is not None and value.dtype in NARROW and node.op != "DequantizeLinear":
            raise Refused(f"PyTorch has no tensors of {value.dtype.name} (input {value.name})")
    if (domain_of(node.node), node.op) not in _ANY_TYPE:
        for operand in node.inputs:
            if operand is None or operand.dtype not in UNSIGNED:
                continue
            if domain_of(node.node) == "" and computes_in_int64(node.op, operand.dtype):
                return _widened(found(node), operand.dtype)
            raise Refused(f"PyTorch does not compute with {operand.dtype} (input {operand.name})")
    return found(node)


def _widened(made: Call | torch.Tensor | list[Operand], dtype: torch.dtype) -> Call:
    """A call on unsigned integers computed in int64.

    Raises:
        Refused: The translation is not a call.
    """
    if not isinstance(made, Call):
        raise Refused(f"PyTorch does not compute with {dtype}")
    return Call(InInt64(made.function, dtype), made.args, made.kwargs)


def unsupported(node: ir.Node, opset: int) -> str | None:
    """Why a node cannot be translated, judged from the node alone.

    None does not promise that the whole graph translates: a value that has to be a constant may turn
    out to depend on data. Use `refusals` for the verdict on a graph.

    Args:
        node: The node; constants, shapes and types of its inputs are used where they are known.
        opset: Version of the node's operator set.

    Returns:
        The reason, naming operator, attribute or type; None when nothing speaks against it.
    """
    try:
        translate(OpNode(node, opset, tuple(_alone(value) for value in node.inputs)))
    except Refused as refused:
        return f"{node.op_type}: {refused}"
    except Undecided:
        return None
    return None


def _alone(value: ir.Value | None) -> Operand | None:
    """What is known of an input without its graph."""
    if value is None or not value.name:
        return None
    if value.dtype is not None and value.dtype not in TORCH and value.dtype not in NARROW:
        raise Refused(f"input {value.name} is {value.dtype.name}, which PyTorch does not have")
    if value.const_value is not None:
        return Operand(value.name, const=to_torch(value.const_value))
    hint = None if value.dtype is None else TORCH.get(value.dtype)
    return Operand(value.name, dtype_hint=hint)
