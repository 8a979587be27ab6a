"""Runs a model on onnx's ReferenceEvaluator with operators of ours, freeing values after their last use."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx.external_data_helper import uses_external_data
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun, RuntimeContextError

from hal.errors import InputError, UserError, problems
from hal.graph.reference.operator import Array
from hal.graph.reference.registry import OWN, REFUSED, WIDENED, find_own, widened

#: Called after each node of the main graph with the nodes done and the nodes in all.
Progress = Callable[[int, int], None]


class ReferenceUnavailable(UserError):
    """The reference has no answer for a model; targets can run it, but nothing vouches for their answers."""


#: When the evaluation under way has to end, on the monotonic clock; loops of a model may never do.
_UNTIL_S: ContextVar[float] = ContextVar("until_s", default=math.inf)


class _OutOfTime(Exception):
    """The time limit passed."""


class _RunFailed(Exception):
    """A node could not be computed; carries which, out of nested graphs."""


def _reason(error: Exception) -> str:
    """Return what went wrong in one line; onnx wraps errors, and appends whole nodes to some."""
    cause = error.__cause__ or error
    lines = str(cause).splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0][:300]}"


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Return the names that the nodes of a subgraph, or of graphs within it, take from around it."""
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    outer: set[str] = set()
    for node in graph.node:
        outer |= _used(node) - known
        known.update(node.output)
    return outer | ({value.name for value in graph.output} - known)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _used(node: onnx.NodeProto) -> set[str]:
    """Return the names of every value a node needs, those of its subgraphs among them."""
    names = set(node.input)
    for graph in _subgraphs(node):
        names |= _captured(graph)
    return names


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _all_nodes(inner)


class Evaluator(ReferenceEvaluator):
    """onnx's evaluator; subgraphs and functions run on this class too, because onnx asks for the class.

    Attributes:
        progress: Told about every node of this graph; None for subgraphs.
    """

    progress: Progress | None = None

    def _init(self) -> None:
        super()._init()
        kept = set(self.output_names_)
        seen: set[str] = set()
        self.freed_: list[list[str]] = []
        for node in reversed(list(self.nodes_)):
            names = (_used(node) | set(node.output)) - seen - kept - {""}
            seen |= names
            self.freed_.append(sorted(names))
        self.freed_.reverse()

    def _load_impl(self, node: onnx.NodeProto, input_types: Any = None) -> Any:
        opset = self.opsets_.get(node.domain)
        if opset is not None:
            own = find_own(node.domain, node.op_type, opset)
            if own is not None:
                return own
        found = super()._load_impl(node, input_types)
        if (
            node.domain == ""
            and node.op_type in WIDENED
            and isinstance(found, type)
            and issubclass(found, OpRun)
        ):
            return widened(found)
        return found

    def run(
        self,
        output_names: Any,
        feed_inputs: Mapping[str, Any],
        attributes: dict[str, Any] | None = None,
        intermediate: bool = False,
        check_shape_annotations: bool | None = None,
        _bindings: Any = None,
    ) -> list[Any]:
        """Compute the outputs, dropping each value after the last node that needs it.

        Args:
            output_names: Names of the outputs wanted; None for all.
            feed_inputs: Values by name; for a subgraph, everything visible around it.
            attributes: Attributes of the call when this is the body of a function.
            intermediate: Must be False: intermediate values are gone by the end.
            check_shape_annotations: Ignored; shapes are what the arithmetic gives.

        Returns:
            The values, in the order of ``output_names``.
        """
        values: dict[str, Any] = {**self.rt_inits_, **feed_inputs, "": None}
        for position, node in enumerate(self.rt_nodes_):
            options: dict[str, Any] = {}
            if node.need_context():
                options["context"] = values
            if node.has_linked_attribute and attributes:
                options["linked_attributes"] = attributes
            if time.monotonic() > _UNTIL_S.get():
                raise _OutOfTime
            try:
                outputs = node.run(*(values[name] for name in node.input), **options)
            except (_RunFailed, _OutOfTime):
                raise
            except Exception as error:  # what onnx's code raises is not documented; the reason is kept
                label = f"{node.op_type} {node.onnx_node.name!r} (outputs {list(node.output)})"
                raise _RunFailed(f"node {label}: {_reason(error)}") from error
            # An output without a name is one that nobody asked for.
            values.update((name, value) for name, value in zip(node.output, outputs, strict=False) if name)
            for name in self.freed_[position]:
                values.pop(name, None)
            if self.progress is not None:
                self.progress(position + 1, len(self.rt_nodes_))
        wanted = list(self.output_names if output_names is None else output_names)
        missing = [name for name in wanted if name not in values]
        if missing:
            raise _RunFailed(f"no node computes the outputs {missing}")
        return [values[name] for name in wanted]


def _unknown_operators(opsets: dict[str, int], model: onnx.ModelProto) -> list[str]:
    """Return every operator of a model that has no reference, as ``domain::name (reason)``."""
    probe = Evaluator(onnx.helper.make_graph([], "probe", [], []), opsets=opsets)
    unknown: set[str] = set()
    asked: set[tuple[str, str]] = set()
    for node in _all_nodes(model.graph):
        if (node.domain, node.op_type) in asked:
            continue
        asked.add((node.domain, node.op_type))
        opset = opsets.get(node.domain)
        reason = REFUSED.get((node.domain, node.op_type))
        since = OWN.get((node.domain, node.op_type), (0, None))[0]
        if opset is None:
            reason = "its op set is not imported"
        elif reason is None and opset < since:
            reason = f"op set {opset} is too old, the reference starts at {since}"
        elif reason is None:
            try:
                probe._load_impl(node)
            except RuntimeContextError:
                pass  # a function that depends on the types, which onnx expands when it runs
            except Exception:  # noqa: BLE001  any refusal of onnx means the same; all are reported at once
                reason = f"unknown in op set {opset}"
        if reason is not None:
            unknown.add(f"{node.domain or 'ai.onnx'}::{node.op_type} ({reason})")
    return sorted(unknown)


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Expand the model's own functions: onnx runs them, but not all operators in them with attributes."""
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # onnx's native code documents no exceptions; the reason is kept
        raise _unprepared(error) from error


def _prepared(model: onnx.ModelProto) -> Evaluator:
    try:
        return Evaluator(model)
    except Exception as error:  # what onnx raises on a malformed model is not documented; the reason is kept
        raise _unprepared(error) from error


def _unprepared(error: Exception) -> ReferenceUnavailable:
    return ReferenceUnavailable(
        f"no reference for this model: onnx cannot prepare it ({_reason(error)}); "
        "check the model with onnx.checker"
    )


def _check_inputs(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    known = [value.name for value in model.graph.input]
    needed = [name for name in known if name not in weights]
    found = [f"input {name!r} is missing" for name in needed if name not in inputs]
    found += [f"there is no input {name!r}" for name in inputs if name not in known]
    if found:
        title = f"the reference cannot run; the model's inputs are {', '.join(needed) or 'none'}"
        raise InputError(problems(title, found))


def reference_outputs(
    model: onnx.ModelProto,
    inputs: Mapping[str, Array],
    *,
    progress: Progress | None = None,
    limit_s: float = math.inf,
) -> dict[str, Array]:
    """Return the answers every target is judged by.

    Operators run one by one, the heavy ones in float64; each result is rounded once to the type that the
    model gives its tensor. Nothing of a backend takes part.

    Args:
        model: The model, its external data loaded.
        inputs: Arrays by input name; inputs with a default may be left out.
        progress: Called after each node of the main graph with the nodes done and the nodes in all.
        limit_s: Seconds it may take; looked at before each node, those of loops among them.

    Returns:
        The outputs by name, in the order of the model.

    Raises:
        InputError: An input is missing or unknown.
        ReferenceUnavailable: The time is over, operators have no reference (all are named), weights are not
            in the model, an output is not a tensor, or a node fails.
    """
    _check_inputs(model, inputs)
    elsewhere = [tensor.name for tensor in model.graph.initializer if uses_external_data(tensor)]
    if elsewhere:
        raise ReferenceUnavailable(
            f"no reference for this model: {len(elsewhere)} weights are still in external files, the first "
            f"is {elsewhere[0]!r}; load the model together with its external data"
        )
    model = _inlined(model)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opsets.setdefault("", opsets.get("ai.onnx", 1))
    unknown = _unknown_operators(opsets, model)
    if unknown:
        raise ReferenceUnavailable(
            problems("no reference for this model: operators without a reference implementation", unknown)
            + "\nrewrite the model with operators of ONNX, or judge its targets by other means"
        )
    evaluator = _prepared(model)
    evaluator.progress = progress
    token = _UNTIL_S.set(time.monotonic() + limit_s)
    try:
        # Overflow and NaN are answers here, not accidents.
        with np.errstate(all="ignore"):
            answers = evaluator.run(None, inputs)
    except _OutOfTime:
        raise ReferenceUnavailable(
            f"no reference for this model within {limit_s:g} s; give smaller inputs, or judge its targets "
            "by other means"
        ) from None
    except _RunFailed as failure:
        raise ReferenceUnavailable(
            f"no reference for this model: {failure}; check the model and the shapes of its inputs"
        ) from failure
    finally:
        _UNTIL_S.reset(token)
    outputs = dict(zip(evaluator.output_names, answers, strict=True))
    odd = [
        f"{name} is a {type(value).__name__}"
        for name, value in outputs.items()
        if not isinstance(value, np.ndarray)
    ]
    if odd:
        raise ReferenceUnavailable(
            problems("no reference for this model: an output is not a tensor", odd)
            + "\nmake tensors of sequences and optional values inside the model"
        )
    return outputs
