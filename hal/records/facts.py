"""What is known of a model's nodes without running it: work, bytes, and where each comes from."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

#: Operators that read no more of their first input than they write.
_PARTIAL = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})


class NodeFact(msgspec.Struct, frozen=True, kw_only=True):
    """One top-level node of the bound graph.

    Attributes:
        name: Unique in the graph.
        op: Operator type.
        domain: Operator domain; empty for ONNX's own.
        module: Dotted path of the ``torch.nn.Module`` (or the scope of another framework) it came from;
            empty where the file does not tell.
        source: ``file.py:line`` of the user's code, without folders of this machine; empty where unknown.
        flops: Floating-point (or integer) operations per run, a multiply-add counted as two, nothing for
            what is folded at compile time; None where shapes or the operator are not known.
        reads: Values it reads, weights included, by name; subgraphs' outer values too.
        writes: Values it makes.
        signature: Digest of operator, attributes, input and output shapes and dtypes: equal for nodes
            that cost the same on one target, in whichever model.
    """

    name: str
    op: str
    domain: str = ""
    module: str = ""
    source: str = ""
    flops: int | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    signature: str = ""

    @property
    def levels(self) -> tuple[str, ...]:
        """The module's path step by step, a number with what it numbers: encoder, layer.0, attention."""
        levels: list[str] = []
        for step in filter(None, self.module.split(".")):
            if step.isdigit() and levels:
                levels[-1] += f".{step}"
            else:
                levels.append(step)
        return tuple(levels)


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a set of nodes has to do, however it is fused.

    Attributes:
        flops: Operations per run; None where a node's are not known.
        moved_bytes: Least traffic: values that enter the set (weights included) and values that leave it,
            each once, of tables only the parts that are read; None where a size is not
            known.
        weight_bytes: Part of ``moved_bytes`` that is weights.
        activation_bytes: Bytes of the values that leave the set; None where a size is not known.
    """

    flops: int | None
    moved_bytes: int | None
    weight_bytes: int
    activation_bytes: int | None


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All nodes of a graph, in topological order, and the sizes of the values between them.

    Attributes:
        nodes: In the order of the graph.
        value_bytes: Bytes of each value at its own dtype, where its shape is known.
        weights: Values that are the same in each run: initializers, and what is computed from them and from
            the bound shapes alone, which runtimes fold when they compile.
        inputs: Values given at each run.
        outputs: Values the model returns.
    """

    nodes: tuple[NodeFact, ...]
    value_bytes: dict[str, int]
    weights: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def by_name(self) -> dict[str, NodeFact]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    def work(self, names: Collection[str]) -> Work:
        """What the named nodes have to do together, as :meth:`WorkIndex.work` says."""
        return self._index.work(names)

    @functools.cached_property
    def _index(self) -> WorkIndex:
        return WorkIndex(self)


class WorkIndex:
    """Answers what sets of nodes have to do, in time that grows with the set and not with the model."""

    def __init__(self, facts: ModelFacts) -> None:
        self._facts = facts
        self._nodes = facts.by_name()
        # The caller of the model is a reader too, which is never inside.
        self._n_readers = Counter(facts.outputs)
        for node in facts.nodes:
            self._n_readers.update(_read(node))

    def work(self, names: Collection[str]) -> Work:
        """What the named nodes have to do together.

        Args:
            names: Names of nodes; unknown ones are left out.
        """
        inside = [self._nodes[name] for name in set(names) if name in self._nodes]
        made = {value for node in inside for value in node.writes if value}
        read: Counter[str] = Counter()
        for node in inside:
            read.update(_read(node))
        entering = {value: self._bytes(value) for value in read.keys() - made}
        entering.update(self._looked_up(inside, entering))
        leaving = {value for value in made if self._n_readers[value] > read[value]}
        flops = [node.flops for node in inside]
        return Work(
            flops=None if None in flops else sum(n for n in flops if n is not None),
            moved_bytes=_total([*entering.values(), *map(self._bytes, leaving)]),
            weight_bytes=_total([n for value, n in entering.items() if value in self._facts.weights]) or 0,
            activation_bytes=_total(map(self._bytes, leaving)),
        )

    def _bytes(self, value: str) -> int | None:
        return self._facts.value_bytes.get(value)

    def _looked_up(
        self, inside: Sequence[NodeFact], entering: Mapping[str, int | None]
    ) -> dict[str, int | None]:
        """Bytes read of values of which only parts are read: rows of an embedding, a slice."""
        taken: dict[str, list[int | None]] = {}
        for node in inside:
            if node.op in _PARTIAL and node.reads and node.reads[0] in entering:
                taken.setdefault(node.reads[0], []).append(
                    _total(map(self._bytes, filter(None, node.writes)))
                )
        whole = {value for node in inside for value in (_read(node) - {*_first(node)}) if value in taken}
        found: dict[str, int | None] = {}
        for value, parts in taken.items():
            size, part = entering[value], _total(parts)
            if value not in whole and part is not None:
                found[value] = part if size is None else min(size, part)
        return found


def _total(sizes: Iterable[int | None]) -> int | None:
    known = list(sizes)
    return None if None in known else sum(size for size in known if size is not None)


def _first(node: NodeFact) -> tuple[str, ...]:
    return node.reads[:1] if node.op in _PARTIAL else ()


def _read(node: NodeFact) -> set[str]:
    return {value for value in node.reads if value}
