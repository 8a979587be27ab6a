"""Walk an ONNX graph once: fold what is known, translate the rest into a torch.fx graph."""

from __future__ import annotations

import contextlib
import logging
import operator as python_operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from hal.errors import UnsupportedGraph, problems
from hal_torch.bridge.dtypes import carried, holder, to_torch
from hal_torch.bridge.node import Branch, Call, Operand, OpNode, Refused
from hal_torch.bridge.table import domain_of, lookup, moves, translate
from hal_torch.bridge.weights import LOWERABLE

_UNKNOWN_UNTIL_RUN = (DataDependentOutputException, DynamicOutputShapeException)
_TORCH_SAYS_NO = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)


_CHANGE_TYPE = frozenset(
    {"Cast", "CastLike", "DequantizeLinear", "QuantizeLinear", "BitCast", "Shape", "Size"}
)
"""Operators that move or convert values of every type into another type than that of their first input."""


class _Cascaded(Refused):
    """A node reads what a refused node should have made; only the first refusal is reported."""


def bridge(model: ir.Model) -> torch.fx.GraphModule:
    """Translate an ONNX model into a PyTorch module.

    Each ONNX node becomes one fx node with `meta["onnx_node"]` (the node's name) and `meta["onnx_op"]`
    (its type). Nodes whose result is known beforehand vanish: their result is a parameter (floats,
    without gradient) or a buffer named after the ONNX value. Nodes of a branch taken at bridge time
    carry the name of their `If`. The more input shapes are static, the more is known beforehand.

    Args:
        model: The model; it is not changed.

    Returns:
        A module that takes the graph inputs in order, initializers excluded, and returns a tuple of
        the graph outputs. It runs under torch.compile.

    Raises:
        UnsupportedGraph: Nodes cannot be translated; the text names each with its reason.
    """
    builder = _built(model)
    if builder.problems:
        found = [f"node '{name}' ({op}): {reason}" for name, (op, reason) in builder.problems.items()]
        raise UnsupportedGraph(
            problems("the model cannot be translated to PyTorch", found)
            + "\nRun these nodes on another backend, or rewrite them with supported operators."
        )
    return builder.module()


def refusals(model: ir.Model) -> dict[str, str]:
    """Why nodes of a model cannot be translated, judged with everything the graph tells.

    Args:
        model: The model; it is not changed.

    Returns:
        {name of a top-level node: reason}, empty when `bridge` will succeed.
    """
    return {name: f"{op}: {reason}" for name, (op, reason) in _built(model).problems.items()}


def _built(model: ir.Model) -> Builder:
    if model.functions:
        model = model.clone()
        ir_passes.InlinePass()(model)
    builder = Builder(model.graph, dict(model.opset_imports), _Shared())
    builder.declare_inputs(model.graph.inputs)
    with torch.no_grad():
        builder.translate_nodes(model.graph)
        builder.finish([builder.resolve(value) for value in model.graph.outputs])
    return builder


@dataclass
class _Shared:
    """What the builders of a graph and its branches share."""

    fake_mode: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))
    held: dict[tuple[object, ...], tuple[str, torch.Tensor]] = field(default_factory=dict)


class Builder:
    """Builds the fx graph of one ONNX graph or branch.

    Attributes:
        problems: {node name: (operator, reason)} of the nodes that were refused.
    """

    def __init__(
        self, graph: ir.Graph, opsets: dict[str, int], shared: _Shared, parent: Builder | None = None
    ) -> None:
        self.problems: dict[str, tuple[str, str]] = {}
        self._cascaded = False
        self._opsets = opsets
        self._shared = shared
        self._parent = parent
        self._fx = torch.fx.Graph()
        self._root = torch.nn.Module()
        self._known: dict[ir.Value, Operand] = {}
        # Values that no node computes, with the reason where it is not the refusal of their node.
        self._poisoned: dict[ir.Value, str | None] = {}
        self._attributes: dict[str, torch.fx.Node] = {}
        self._lowerable: dict[str, None] = {}
        self._captures: list[Operand] = []
        self._last_placeholder: torch.fx.Node | None = None
        self._owner: ir.Node | None = None
        for value in graph.initializers.values():
            self._declare_constant(value)

    def declare_inputs(self, inputs: Iterable[ir.Value]) -> None:
        """Make a placeholder for each graph input that is not an initializer."""
        for value in inputs:
            if value in self._known or value in self._poisoned:
                continue
            operand = Operand(value.name or "", n_uses=len(value.uses()))
            operand.fx = self._placeholder(operand.name)
            self._known[value] = operand
            dtype = _tensor_dtype(value)
            if value.dtype is not None and holder(value.dtype) is None:
                self._poisoned[value] = f"input {value.name}: {value.dtype.name} has no PyTorch dtype"
            elif dtype is not None:
                operand.dtype_hint, operand.kind = dtype, carried(value.dtype)
                if value.shape is not None and value.shape.is_static():
                    sizes = tuple(int(d) for d in value.shape.numpy())
                    with self._shared.fake_mode:
                        operand.fake = torch.empty(sizes, dtype=dtype)

    def declare_branch_inputs(self, inputs: Sequence[ir.Value], operands: Sequence[Operand]) -> None:
        """Make a placeholder for each input of a branch, with what is known of its shape."""
        for value, outer in zip(inputs, operands, strict=True):
            name = value.name or ""
            self._known[value] = Operand(
                name,
                fake=outer.fake,
                fx=self._placeholder(name),
                dtype_hint=outer.dtype_hint or _tensor_dtype(value),
                kind=outer.kind,
            )

    def translate_nodes(self, graph: ir.Graph) -> None:
        """Translate the nodes of a graph in their order; refused ones are kept in `problems`."""
        for node in graph:
            try:
                self._translate(node)
            except _Cascaded:
                self._cascaded = True
                self._poisoned.update(dict.fromkeys(node.outputs))
            except Refused as refused:
                self.problems.setdefault(node.name or node.op_type, (node.op_type, str(refused)))
                self._poisoned.update(dict.fromkeys(node.outputs))

    def resolve(self, value: ir.Value) -> Operand:
        """Find a value here or, as a captured one, in an outer graph."""
        found = self._known.get(value)
        if found is not None:
            return found
        if value in self._poisoned:
            return Operand(value.name or "")
        if self._parent is None:
            raise Refused(f"value {value.name} is read before it is computed")
        outer = self._parent.resolve(value)
        if outer.const is not None:
            inner = Operand(outer.name, const=outer.const, n_uses=outer.n_uses, lower=outer.lower)
        else:
            fx = self._placeholder(outer.name)
            inner = Operand(outer.name, fake=outer.fake, fx=fx, dtype_hint=outer.dtype_hint)
            self._captures.append(outer)
        inner.kind = outer.kind
        self._known[value] = inner
        return inner

    def finish(self, outputs: Sequence[Operand]) -> None:
        """Return the outputs, and drop what none of them needs."""
        if self.problems:
            return
        self._fx.output(tuple(self._value(operand) for operand in outputs))
        for node in reversed(self._fx.nodes):
            if node.op not in ("placeholder", "output") and not node.users:
                self._fx.erase_node(node)

    def module(self) -> torch.fx.GraphModule:
        """The finished module."""
        module = torch.fx.GraphModule(self._root, self._fx, class_name="OnnxGraph")
        module.meta[LOWERABLE] = tuple(name for name in self._lowerable if hasattr(module, name))
        return module.eval()

    def branch(self, graph: ir.Graph, inputs: Sequence[Operand]) -> Branch:
        """Translate a subgraph into a module of its own.

        Raises:
            Refused: One of its nodes is.
        """
        inner = Builder(graph, self._opsets, self._shared, self)
        inner.declare_branch_inputs(graph.inputs, inputs)
        inner.translate_nodes(graph)
        if inner.problems:
            found = "; ".join(f"{op} '{name}': {why}" for name, (op, why) in inner.problems.items())
            raise Refused(f"its subgraph has {found}")
        if inner._cascaded:
            raise _Cascaded
        outputs = tuple(inner.resolve(value) for value in graph.outputs)
        inner.finish(outputs)
        return Branch(inner.module(), tuple(inner._captures), outputs)

    def inline(self, graph: ir.Graph) -> list[Operand]:
        """Translate a subgraph without inputs in place.

        Raises:
            Refused: One of its nodes is.
        """
        for value in graph.initializers.values():
            self._declare_constant(value)
        for node in graph:
            try:
                self._translate(node)
            except _Cascaded:
                raise
            except Refused as refused:
                raise Refused(f"the branch taken has {node.op_type} '{node.name}': {refused}") from refused
        return [self.resolve(value) for value in graph.outputs]

    def _declare_constant(self, value: ir.Value) -> None:
        try:
            if value.const_value is None:
                raise Refused("it has no value")
            self._known[value] = Operand(
                value.name or "",
                const=to_torch(value.const_value),
                n_uses=len(value.uses()),
                kind=carried(value.const_value.dtype),
            )
        except Refused as refused:
            # Only a node that reads it has to be refused; see _translate.
            self._known[value] = Operand(value.name or "")
            self._poisoned[value] = f"input {value.name}: {refused}"

    def _translate(self, node: ir.Node) -> None:
        version = self._opsets.get(domain_of(node), self._opsets.get(node.domain, 1))
        lookup(node, version)
        for value in node.inputs:
            if value is not None:
                self._check_poison(value)
        operands = tuple(
            self.resolve(value) if value is not None and value.name else None for value in node.inputs
        )
        owner_before = self._owner
        self._owner = owner_before or node
        try:
            result = translate(OpNode(node, version, operands, self))
            if isinstance(result, list):
                outputs = result
            elif isinstance(result, torch.Tensor):
                outputs = [Operand(node.outputs[0].name or "", const=result)]
            else:
                outputs = self._emit(node, result)
        finally:
            self._owner = owner_before
        for value, operand in zip(node.outputs, outputs, strict=False):
            operand.n_uses = max(operand.n_uses, len(value.uses()))
            operand.dtype_hint = operand.dtype_hint or _tensor_dtype(value)
            if not isinstance(result, list):
                operand.kind = self._kind(node, value, operands, result)
            self._known[value] = operand

    @staticmethod
    def _kind(
        node: ir.Node, value: ir.Value, inputs: Sequence[Operand | None], made: Call | torch.Tensor
    ) -> ir.DataType | None:
        """The element type of an output when PyTorch lacks it; without a declared type it is the input's."""
        if isinstance(made, Call) and made.kind is not None:
            return made.kind
        if value.dtype is not None or not moves(node) or not inputs or inputs[0] is None:
            return carried(value.dtype)
        return None if node.op_type in _CHANGE_TYPE else inputs[0].kind

    def _check_poison(self, value: ir.Value) -> None:
        """Raise when a value cannot be read, here or in the outer graphs.

        Raises:
            Refused: It has a reason of its own.
            _Cascaded: The node that should compute it was refused.
        """
        if value in self._poisoned:
            reason = self._poisoned[value]
            raise _Cascaded if reason is None else Refused(reason)
        if self._parent is not None and value not in self._known:
            self._parent._check_poison(value)

    def _emit(self, node: ir.Node, made: Call) -> list[Operand]:
        """Evaluate a call now when all is known, else add it to the graph."""
        operands = list(_operands(made.args)) + list(_operands(tuple(made.kwargs.values())))
        names = [value.name or "" for value in node.outputs]
        if made.opaque:
            return self._add(node, made, names, [None])
        if made.foldable and all(operand.const is not None for operand in operands):
            tensors = _as_tuple(self._evaluate(made, lambda operand: operand.const), len(names))
            return [Operand(name, const=tensor) for name, tensor in zip(names, tensors, strict=False)]
        fakes: Sequence[torch.Tensor | None]
        if made.fakes is not None:
            fakes = made.fakes
        elif all(operand.shape is not None for operand in operands):
            try:
                with _without_log(), self._shared.fake_mode:
                    fakes = _as_tuple(self._evaluate(made, self._fake), len(names))
            except _UNKNOWN_UNTIL_RUN:
                fakes = [None] * len(names)
        else:
            fakes = [None] * len(names)
        return self._add(node, made, names, fakes)

    def _add(
        self, node: ir.Node, made: Call, names: Sequence[str], fakes: Sequence[torch.Tensor | None]
    ) -> list[Operand]:
        owner = self._owner or node
        args = tuple(_mapped(argument, self._value) for argument in made.args)
        kwargs = {key: _mapped(argument, self._value) for key, argument in made.kwargs.items()}
        name = _identifier(node.name or node.op_type)
        if isinstance(made.function, torch.nn.Module):
            while hasattr(self._root, name):
                name += "_"
            self._root.add_module(name, made.function)
            result = self._fx.create_node("call_module", name, args, kwargs, name)
        else:
            result = self._fx.create_node("call_function", made.function, args, kwargs, name)
        meta = {"onnx_node": owner.name or "", "onnx_op": node.op_type}
        result.meta.update(meta)
        if made.fakes is None and len(names) == 1:
            return [Operand(names[0], fake=fakes[0] if fakes else None, fx=result)]
        outputs = []
        for index, output in enumerate(names):
            operand = Operand(output, fake=fakes[index] if index < len(fakes) else None)
            if output:
                operand.fx = self._fx.call_function(python_operator.getitem, (result, index))
                operand.fx.meta.update(meta)
            outputs.append(operand)
        return outputs

    def _evaluate(self, made: Call, value: Callable[[Operand], torch.Tensor | None]) -> object:
        """Call the function on constants or on fake tensors.

        Raises:
            Refused: PyTorch does.
        """
        args = [_mapped(argument, value) for argument in made.args]
        kwargs = {key: _mapped(argument, value) for key, argument in made.kwargs.items()}
        try:
            return made.function(*args, **kwargs)
        except _UNKNOWN_UNTIL_RUN:
            raise
        except _TORCH_SAYS_NO as error:
            text = str(error).strip('" \n') or repr(error)
            raise Refused(f"PyTorch refuses it: {text.splitlines()[0]}") from error

    def _fake(self, operand: Operand) -> torch.Tensor | None:
        if operand.fake is None and operand.const is not None:
            operand.fake = self._shared.fake_mode.from_tensor(operand.const)
        return operand.fake

    def _placeholder(self, name: str) -> torch.fx.Node:
        if self._last_placeholder is None:
            with self._fx.inserting_before(None):
                node = self._fx.placeholder(_identifier(name))
        else:
            with self._fx.inserting_after(self._last_placeholder):
                node = self._fx.placeholder(_identifier(name))
        self._last_placeholder = node
        return node

    def _value(self, operand: Operand) -> torch.fx.Node:
        """The fx node of an operand; a constant becomes a parameter or buffer at first use."""
        if operand.const is not None:
            operand.fx = self._attribute(operand, operand.const)
        if operand.fx is None:
            raise Refused(f"value {operand.name} is not computed by any node")
        return operand.fx

    def _attribute(self, operand: Operand, const: torch.Tensor) -> torch.fx.Node:
        key: tuple[object, ...] = (const.data_ptr() or id(const), const.dtype, const.shape, const.stride())
        if key not in self._shared.held:
            taken = {name for name, _ in self._shared.held.values()}
            name = base = _identifier(operand.name)
            n_tries = 0
            while name in taken or hasattr(torch.fx.GraphModule, name):
                n_tries += 1
                name = f"{base}_{n_tries}"
            is_float = const.dtype.is_floating_point
            held = torch.nn.Parameter(const, requires_grad=False) if is_float else const
            self._shared.held[key] = (name, held)
        name, held = self._shared.held[key]
        if operand.lower and held.dtype == torch.float32:
            self._lowerable[name] = None
        if name not in self._attributes:
            if isinstance(held, torch.nn.Parameter):
                self._root.register_parameter(name, held)
            else:
                self._root.register_buffer(name, held)
            self._attributes[name] = self._fx.get_attr(name)
        return self._attributes[name]


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Keep PyTorch from logging the traceback of an error that becomes a refusal."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _tensor_dtype(value: ir.Value) -> torch.dtype | None:
    """The dtype of a value that is declared to be a tensor, else None."""
    return holder(value.dtype) if isinstance(value.type, ir.TensorType) else None


def _operands(arguments: object) -> Iterable[Operand]:
    """All operands in nested arguments."""
    if isinstance(arguments, Operand):
        yield arguments
    elif isinstance(arguments, tuple | list):
        for argument in arguments:
            yield from _operands(argument)


def _mapped(argument: object, value: Callable[[Operand], object]) -> object:
    """Nested arguments with each operand replaced."""
    if isinstance(argument, Operand):
        return value(argument)
    if isinstance(argument, tuple | list) and any(True for _ in _operands(argument)):
        return tuple(_mapped(part, value) for part in argument)
    return argument


def _as_tuple(result: object, n_outputs: int) -> tuple[torch.Tensor, ...]:
    """Outputs of a call: one tensor for a node with one output, else a tuple."""
    if n_outputs == 1 and isinstance(result, torch.Tensor):
        return (result,)
    if n_outputs > 1 and isinstance(result, tuple | list):
        return tuple(result)
    raise Refused(f"its translation returned {type(result).__name__}, not tensors")


def _identifier(name: str) -> str:
    """A Python identifier that resembles an ONNX name."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    return plain if plain and not plain[0].isdigit() else f"n_{plain}"
