"""The table of translations: which operator, from which operator set version on, becomes which call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir
import torch

from hal_torch.bridge.dtypes import carried, holder, to_torch
from hal_torch.bridge.node import Call, Operand, OpNode, Refused, Undecided
from hal_torch.bridge.unsigned import UNSIGNED, computing

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


def moves(node: ir.Node) -> bool:
    """Whether an operator moves or converts values without computing, so that every dtype is right."""
    return (domain_of(node), node.op_type) in _ANY_TYPE


def translate(node: OpNode) -> Call | torch.Tensor | list[Operand]:
    """Translate one node.

    Raises:
        Refused: With the reason.
        Undecided: The node is judged alone and needs its graph.
    """
    found = lookup(node.node, node.version)
    if not moves(node.node):
        for operand in node.inputs:
            if operand is not None and operand.kind is not None:
                raise Refused(f"PyTorch does not compute with {operand.kind.name} (input {operand.name})")
            if operand is None or operand.dtype not in UNSIGNED:
                continue
            made = found(node)
            if domain_of(node.node) == "" and isinstance(made, Call):
                function = computing(node.op, operand.dtype, made.function)
                if function is not None:
                    return replace(made, function=function)
            raise Refused(f"PyTorch does not compute with {operand.dtype} (input {operand.name})")
    return found(node)


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
    hint, kind = holder(value.dtype), carried(value.dtype)
    if value.dtype is not None and hint is None:
        raise Refused(f"input {value.name} is {value.dtype.name}, which PyTorch does not have")
    if value.const_value is not None:
        return Operand(value.name, const=to_torch(value.const_value), kind=kind)
    return Operand(value.name, dtype_hint=hint, kind=kind)
