"""How a model is called and what it returns, where its framework knows more than ONNX can say.

ONNX has flat lists of named tensors. A framework's model has parameters, some with a default or with tensors
nested in them, and returns what it likes. An importer writes both into the metadata of the file, so that they
go where the model goes. It is data alone: no class is named that would be imported.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
import onnx_ir as ir

from hal.errors import ModelError, problems

#: Key in the model's metadata.
KEY = "hal.interface"


class Leaf(msgspec.Struct, frozen=True, tag="tensor"):
    """A tensor, by its name in the graph."""

    name: str


class Constant(msgspec.Struct, frozen=True, tag="constant"):
    """A value that is the same in each call, because the model was exported with it."""

    value: bool | int | float | str | None


class Items(msgspec.Struct, frozen=True, tag="items"):
    """A list or a tuple."""

    kind: Literal["list", "tuple"]
    items: tuple[Tree, ...]


class Fields(msgspec.Struct, frozen=True, tag="fields"):
    """Trees by name.

    Attributes:
        kind: ``dict``; ``record`` for what has its fields as attributes too, as transformers' ModelOutput;
            ``namedtuple``.
        names: In order, one per tree.
        items: The trees.
        type_name: Of a namedtuple.
    """

    kind: Literal["dict", "record", "namedtuple"]
    names: tuple[str | int, ...]
    items: tuple[Tree, ...]
    type_name: str = ""


Tree = Leaf | Constant | Items | Fields


class Parameter(msgspec.Struct, frozen=True):
    """Something that a call is given.

    Attributes:
        name: By which it can be given; empty where it has none.
        tree: The tensors in it.
    """

    name: str
    tree: Tree


class Interface(msgspec.Struct, frozen=True):
    """How a model is called and what it returns.

    Attributes:
        parameters: In the order of the framework's signature.
        outputs: What a call returns.
    """

    parameters: tuple[Parameter, ...]
    outputs: Tree


def write(model: ir.Model, interface: Interface) -> None:
    """Put it into the model's metadata."""
    model.metadata_props[KEY] = msgspec.json.encode(interface).decode()


def read(model: ir.Model) -> Interface | None:
    """What an importer wrote; None where nothing is there.

    Raises:
        ModelError: It is damaged, or names other tensors than the graph has; all faults are named.
    """
    text = model.metadata_props.get(KEY)
    if text is None:
        return None
    advice = f"remove {KEY!r} from the model's metadata, or export the model again"
    try:
        found = msgspec.json.decode(text, type=Interface)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ModelError(f"how the model is to be called cannot be read: {error}; {advice}") from error
    if faults := list(_faults(found, model.graph)):
        raise ModelError(problems(f"how the model is to be called does not fit it ({advice})", faults))
    return found


def leaves(tree: Tree) -> Iterator[str]:
    """Names of the tensors in a tree, in order."""
    if isinstance(tree, Leaf):
        yield tree.name
    elif isinstance(tree, Items | Fields):
        for item in tree.items:
            yield from leaves(item)


def built(tree: Tree, tensors: Mapping[str, Any]) -> Any:
    """What a tree stands for.

    Args:
        tree: The structure.
        tensors: By name.
    """
    if isinstance(tree, Leaf):
        return tensors[tree.name]
    if isinstance(tree, Constant):
        return tree.value
    made = [built(item, tensors) for item in tree.items]
    if isinstance(tree, Items):
        return made if tree.kind == "list" else tuple(made)
    if tree.kind == "namedtuple":
        from collections import namedtuple

        return namedtuple(tree.type_name, [str(name) for name in tree.names])(*made)
    named = dict(zip(tree.names, made, strict=True))
    return Record(named) if tree.kind == "record" else named


class Record(dict[str | int, Any]):
    """Outputs by name, as attributes and by number, as transformers' ``ModelOutput`` has them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"there is no output {name!r}; there are {', '.join(map(str, self))}"
            ) from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) or (isinstance(key, int) and key not in self.keys()):
            return tuple(self.values())[key]
        return super().__getitem__(key)


def _faults(interface: Interface, graph: ir.Graph) -> Iterator[str]:
    inputs = [str(value.name) for value in graph.inputs]
    outputs = {str(value.name) for value in graph.outputs}
    named = [name for parameter in interface.parameters for name in leaves(parameter.tree)]
    if sorted(named) != sorted(inputs):
        yield f"its parameters hold the tensors {named}; expected each of {inputs} once"
    if unknown := sorted(set(leaves(interface.outputs)) - outputs):
        yield f"it returns {unknown}; expected some of {sorted(outputs)}"
    for tree in (interface.outputs, *(parameter.tree for parameter in interface.parameters)):
        yield from _unusual(tree)


def _unusual(tree: Tree) -> Iterator[str]:
    if isinstance(tree, Fields):
        if len(tree.names) != len(tree.items) or len(set(tree.names)) != len(tree.names):
            yield f"a {tree.kind} has the names {list(tree.names)} for {len(tree.items)} values"
        elif tree.kind == "namedtuple":
            words = [tree.type_name, *map(str, tree.names)]
            bad = [word for word in words if not word.isidentifier() or keyword.iskeyword(word)]
            bad += [word for word in words[1:] if word.startswith("_")]
            if bad:
                yield f"a namedtuple has the names {bad}; expected identifiers"
    if isinstance(tree, Items | Fields):
        for item in tree.items:
            yield from _unusual(item)


__all__ = [
    "KEY",
    "Constant",
    "Fields",
    "Interface",
    "Items",
    "Leaf",
    "Parameter",
    "Record",
    "Tree",
    "built",
    "leaves",
    "read",
    "write",
]
