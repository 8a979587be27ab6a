"""From what a caller gives to the tensors of a run, by position, and from its outputs to what he gets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hal.backend import Signature, TensorSpec
from hal.errors import InputError, problems
from hal.graph.interface import Constant, Fields, Interface, Items, Leaf, Parameter, Tree, built, leaves
from hal.graph.ranges import Ranges
from hal.session.libraries import read
from hal.tensor import Array, own_dtype


class Calling:
    """How one model is called.

    Args:
        name: Of the model, for errors.
        signature: All sizes are numbers.
        interface: What the importer recorded; None for a model that was ONNX from the start.
        ranges: Shapes that inputs may have; None where they have those of the signature.

    Attributes:
        wanted: Type and shape of each input; the type is None where it is not one of numpy's own.
        names: Of the inputs, by position.
        is_flat: Whether the inputs given by position are the parameters, one tensor each.
        arrange: Makes what a call returns of the outputs by position.
    """

    def __init__(
        self,
        name: str,
        signature: Signature,
        interface: Interface | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        self._model = name
        self._ranges = ranges
        self._specs = signature.inputs
        self._shown = {
            spec.name: f"{spec.dtype}[{', '.join(map(str, spec.shape))}]" for spec in signature.inputs
        }
        if ranges is not None:
            self._shown = {
                spec.name: f"{spec.dtype}[{ranges.shown(at)}]" for at, spec in enumerate(signature.inputs)
            }
        self.names = [spec.name for spec in signature.inputs]
        self.wanted = [(own_dtype(spec.dtype), spec.shape) for spec in signature.inputs]
        self._outputs = {spec.name: at for at, spec in reversed(list(enumerate(signature.outputs)))}
        known = interface.parameters if interface is not None else ()
        self._parameters = known or tuple(Parameter(name, Leaf(name)) for name in self.names)
        self._by_name = {parameter.name: parameter.tree for parameter in self._parameters if parameter.name}
        self._labels = {
            leaf: label
            for at, parameter in enumerate(self._parameters)
            for leaf, label in _labels(parameter.tree, parameter.name or f"input {at}")
        }
        trees = [parameter.tree for parameter in self._parameters]
        self.is_flat = trees == [Leaf(name) for name in self.names]
        self.arrange: Callable[[Sequence[Any]], Any] = _bare if len(signature.outputs) == 1 else tuple
        if interface is not None:
            self.arrange = functools.partial(_arranged, interface.outputs, list(signature.outputs))

    def bind(self, args: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        """The tensors of a call by position; not looked at yet.

        Args:
            args: As the caller gave them: by position, or one mapping by name.
            named: By name.

        Raises:
            InputError: Inputs are missing, unknown, given twice or nested otherwise; all are named.
        """
        first = args[0] if len(args) == 1 and not named else None
        if isinstance(first, Mapping) and not self._is_argument(first):
            args, named = (), first
        found: list[str] = []
        given: dict[str, Any] = {}
        if len(args) > len(self._parameters):
            found.append(
                f"{len(args)} inputs were given by position; expected at most {len(self._parameters)}: "
                f"{', '.join(self._labels.values()) or 'none'}"
            )
        by_position = list(zip(self._parameters, args, strict=False))
        for parameter, value in by_position:
            if parameter.name and parameter.name in named:
                found.append(f"input {parameter.name!r} was given by position and by name; give it once")
            _take(parameter.tree, value, parameter.name, given, found)
        for name, value in named.items():
            if name in self._by_name:
                _take(self._by_name[name], value, name, given, found)
            elif name in self._labels:
                given[name] = value
            else:
                known = dict.fromkeys((*self._by_name, *self.names))
                found.append(f"input {name!r} is unknown; the model takes {', '.join(known) or 'none'}")
        found += [
            f"input {self._labels[spec.name]!r} is missing; expected {self._shown[spec.name]}"
            for spec in self._specs
            if spec.name not in given
        ]
        if found:
            raise self._refused(found)
        return [given[name] for name in self.names]

    def feeds(self, feeds: Any) -> list[Any]:
        """The tensors of :meth:`Session.run` by position.

        Raises:
            InputError: No mapping; inputs are missing or unknown; all are named.
        """
        if not isinstance(feeds, Mapping):
            raise self._refused([f"the feeds are {_kind(feeds)}; expected a dict of input name to tensor"])
        return self.bind((), feeds)

    def fit(self, tensors: Sequence[Any], kept: Collection[int] = ()) -> tuple[list[Any], str]:
        """Tensors as arrays on the host, checked.

        Args:
            tensors: By position.
            kept: Positions of those that stay as they are, and are known to fit.

        Returns:
            The arrays by position, and what to say of those that have another shape than expected; empty
            where none has, or all are within the ranges.

        Raises:
            InputError: Something is no tensor, or of another type; all are named.
        """
        found: list[str] = []
        others: list[str] = []
        arrays: list[Any] = []
        for at, (spec, (dtype, shape), tensor) in enumerate(
            zip(self._specs, self.wanted, tensors, strict=True)
        ):
            if at in kept or (type(tensor) is np.ndarray and tensor.dtype is dtype and tensor.shape == shape):
                arrays.append(tensor)
                continue
            label = self._labels[spec.name]
            try:
                array = read(tensor)
            except InputError as error:
                found.append(f"input {label!r}: {error.message}; expected {self._shown[spec.name]}")
                continue
            kind = "string" if array.dtype.kind in "OUST" else array.dtype.name
            if kind == "string" and array.dtype.kind != "O":
                array = array.astype(str).astype(object)
            given = f"{kind}[{', '.join(map(str, array.shape))}]"
            said = f"input {label!r} is {given}; expected {self._shown[spec.name]}"
            if kind != spec.dtype:
                found.append(said)
            elif array.dtype.byteorder == ">":
                found.append(f"input {label!r} is big-endian; expected the machine's byte order")
            elif array.shape != shape:
                others.append(said)
            arrays.append(array)
        if found:
            raise self._refused(found + others)
        if not others or (self._ranges is not None and self._ranges.hold([one.shape for one in arrays])):
            return arrays, ""
        return arrays, problems(f"the inputs do not fit {self._model!r}", others)

    def output(self, name: str) -> int:
        """Position of an output.

        Raises:
            InputError: There is none of this name.
        """
        if name not in self._outputs:
            known = ", ".join(reversed(self._outputs)) or "none"
            raise InputError(f"{self._model!r} has no output {name!r}; expected some of {known}")
        return self._outputs[name]

    def example(self, arrays: Sequence[Array]) -> Any:
        """Tensors by position as the framework's model takes them: for an importer."""
        tensors = dict(zip(self.names, arrays, strict=True))
        given = [built(parameter.tree, tensors) for parameter in self._parameters]
        if len(self._by_name) < len(self._parameters):
            return tuple(given)
        return dict(zip(self._by_name, given, strict=True))

    def _is_argument(self, value: Mapping[Any, Any]) -> bool:
        """Whether a lone mapping is the first parameter rather than all inputs by name."""
        tree = self._parameters[0].tree if self._parameters else None
        return isinstance(tree, Fields) and tree.kind != "namedtuple" and set(value) <= set(tree.names)

    def _refused(self, found: Sequence[str]) -> InputError:
        return InputError(problems(f"the inputs do not fit {self._model!r}", found))


def _take(tree: Tree, value: Any, label: str, given: dict[str, Any], found: list[str]) -> None:
    """Put the tensors of an argument where they belong; what is wrong with it goes to ``found``."""
    if isinstance(tree, Leaf):
        given[tree.name] = value
    elif isinstance(tree, Constant):
        if not isinstance(value, None | bool | int | float | str) or value != tree.value:
            shown = repr(value) if isinstance(value, None | bool | int | float | str) else _kind(value)
            found.append(
                f"input {label!r} is {shown}; the model was exported with {tree.value!r}, which is now "
                "fixed: leave it out, or compile again with another example"
            )
    elif isinstance(tree, Fields) and tree.kind != "namedtuple":
        wanted = ", ".join(map(str, tree.names))
        if not isinstance(value, Mapping):
            found.append(f"input {label!r} is {_kind(value)}; expected a dict of {wanted}")
            # Each tensor in it would else be told as missing too.
            given.update(dict.fromkeys(leaves(tree)))
            return
        found += [
            f"input {label!r} has {name!r}, which is unknown; expected {wanted}"
            for name in value
            if name not in tree.names
        ]
        for name, item in zip(tree.names, tree.items, strict=True):
            if name in value:
                _take(item, value[name], f"{label}[{name!r}]", given, found)
    elif not isinstance(value, list | tuple) or len(value) != len(tree.items):
        size = f" of {len(value)}" if isinstance(value, list | tuple) else ""
        found.append(
            f"input {label!r} is {_kind(value)}{size}; expected a list or tuple of {len(tree.items)}"
        )
        given.update(dict.fromkeys(leaves(tree)))
    else:
        for at, (item, one) in enumerate(zip(tree.items, value, strict=True)):
            _take(item, one, f"{label}[{at}]", given, found)


def _labels(tree: Tree, label: str) -> Iterator[tuple[str, str]]:
    """Each tensor of a tree with the way to it, as one would write it."""
    if isinstance(tree, Leaf):
        yield tree.name, label
    elif isinstance(tree, Items):
        for at, item in enumerate(tree.items):
            yield from _labels(item, f"{label}[{at}]")
    elif isinstance(tree, Fields):
        for name, item in zip(tree.names, tree.items, strict=True):
            yield from _labels(item, f"{label}[{name!r}]")


def _arranged(tree: Tree, specs: Sequence[TensorSpec], outputs: Sequence[Any]) -> Any:
    return built(tree, {spec.name: output for spec, output in zip(specs, outputs, strict=True)})


def _bare(outputs: Sequence[Any]) -> Any:
    return outputs[0]


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
