"""How a PyTorch model is called and what it returns, read off its exported program."""

from __future__ import annotations

import inspect
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hal.graph.interface import Constant, Fields, Interface, Items, Leaf, Parameter, Tree, leaves

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch


def interface_of(program: torch.export.ExportedProgram, graph: ir.Graph, source: Any) -> Interface | None:
    """Parameters with the tensors in them, and the structure of what is returned.

    Classes of transformers' ``ModelOutput`` become records; other classes that PyTorch takes apart, tuples.

    Args:
        program: What was exported.
        graph: What it became; its inputs and outputs are the program's in order, constants apart.
        source: The module or program that the user has.

    Returns:
        None where the graph has other inputs or outputs than the program.
    """
    from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

    def found(specs: Any, kind: Any, names: Iterator[str]) -> Iterator[Tree]:
        for spec in specs:
            if spec.kind is kind:
                is_fixed = isinstance(spec.arg, ConstantArgument)
                yield Constant(spec.arg.value) if is_fixed else Leaf(next(names, ""))

    signature, call = program.graph_signature, program.call_spec
    if call.in_spec is None or call.out_spec is None:
        return None
    inputs, outputs = ([str(value.name) for value in ends] for ends in (graph.inputs, graph.outputs))
    given = list(found(signature.input_specs, InputKind.USER_INPUT, iter(inputs)))
    returned = list(found(signature.output_specs, OutputKind.USER_OUTPUT, iter(outputs)))
    if [len(given), len(returned)] != [call.in_spec.num_leaves, call.out_spec.num_leaves]:
        return None
    positional, named = call.in_spec.children()
    rest = iter(given)
    known = _names(source)
    names = [*known, *[""] * positional.num_children][: positional.num_children]
    parameters = [
        _parameter(name, _tree(spec, rest)) for name, spec in zip(names, positional.children(), strict=True)
    ]
    parameters += [
        Parameter(name, _tree(spec, rest)) for name, spec in zip(named.context, named.children(), strict=True)
    ]
    tree = _tree(call.out_spec, iter(returned))
    same = [name for one in parameters for name in leaves(one.tree)] == inputs
    if not same or list(leaves(tree)) != outputs:
        return None
    # By position they come in the order of the signature, whatever the order of an example's keywords.
    order = {name: at for at, name in enumerate(known)}
    parameters.sort(key=lambda one: order.get(one.name, len(order)))
    return Interface(tuple(parameters), tree)


def _names(source: Any) -> list[str]:
    """Names of the parameters that can be given by position; a program does not know them."""
    if not callable(getattr(source, "forward", None)):
        return []
    return [
        parameter.name
        for parameter in inspect.signature(source.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def _parameter(name: str, tree: Tree) -> Parameter:
    # Without a name of its own, a tensor is known by that of the graph.
    return Parameter(name or (tree.name if isinstance(tree, Leaf) else ""), tree)


def _tree(spec: Any, rest: Iterator[Tree]) -> Tree:
    """A pytree with its leaves, which come in order."""
    if spec.is_leaf():
        return next(rest)
    items = tuple(_tree(child, rest) for child in spec.children())
    kind, context = spec.type, spec.context
    if kind is list:
        return Items("list", items)
    if kind is namedtuple:
        return Fields("namedtuple", context._fields, items, context.__name__)
    is_named = (
        isinstance(context, list | tuple)
        and len(context) == len(items)
        and all(isinstance(name, str | int) for name in context)
    )
    if not is_named or kind is tuple:
        return Items("tuple", items)
    return Fields("dict" if kind in (dict, OrderedDict) else "record", tuple(context), items)
