"""Where the answers of two targets part, as frozen data."""

from __future__ import annotations

import msgspec


class ValueDifference(msgspec.Struct, frozen=True, kw_only=True):
    """How far one value is apart on two targets.

    Attributes:
        name: Of the value.
        relative_l2: Norm of the difference over the norm of the value on the target that is measured against;
            for integers and booleans the share of elements that differ. None where infinite (JSON has no
            infinity): one side has a NaN or an infinity that the other lacks, the shapes differ, or that
            target's are all zeros and the other's are not.
        max_abs: Largest absolute difference; None where infinite.
        n_nonfinite: Elements where one side is NaN or infinite and the other is not the same.
    """

    name: str
    relative_l2: float | None
    max_abs: float | None
    n_nonfinite: int = 0


class NodeDifference(msgspec.Struct, frozen=True, kw_only=True):
    """What a node adds to the difference.

    Attributes:
        node: Its name.
        op: Its operator.
        position: Its place in the file's order, from 0.
        value: Its output that is furthest apart.
        error_in: Relative L2 of the input that is furthest apart, 0 for inputs and weights of the model; None
            where infinite.
        error_out: Relative L2 of ``value``; None where infinite.
        growth: ``error_out`` over ``error_in``, which counts as at least one rounding of the coarser
            precision; None where infinite.
    """

    node: str
    op: str
    position: int
    value: str
    error_in: float | None
    error_out: float | None
    growth: float | None


class Reproduction(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest part of the model found on which the targets part too.

    Attributes:
        extent: ``node``, one node alone; ``part``, it and nodes before it; ``prefix``, everything before a
            cut; ``model``, nothing smaller than the model.
        nodes: Names of its nodes, in order; those that only prepare weights among them.
        outputs: Its outputs, and how far they are apart.
        n_tried: Parts tried.
        inputs_from: The target that computed its inputs, where they are not the model's own.
        model_file: Where it was written; empty until it is.
        inputs_file: Where its inputs were written.
        command: Replays it.
        replayed: Whether the written files were read again and parted again, in new processes.
    """

    extent: str
    nodes: tuple[str, ...]
    outputs: tuple[ValueDifference, ...]
    n_tried: int
    inputs_from: str = ""
    model_file: str = ""
    inputs_file: str = ""
    command: str = ""
    replayed: bool = False


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """Two targets on one model: whether their answers part, where first, and what reproduces it.

    Attributes:
        model: Its name.
        digest: Its digest.
        n_nodes: Nodes of its main graph.
        inputs_from: ``given``, the demo's test set, or random.
        targets: The two, as written.
        against: The one of them that differences are measured against: the reference if it is one, else the
            first.
        tolerance: Relative L2 above which a value parts.
        tolerance_from: Why that much.
        parted: Whether an output parts.
        outputs: The outputs, in the model's order.
        found_by: ``exposing``, all values at once as outputs; ``bisecting``, the model cut shorter and
            shorter, because exposing hid the difference; empty where nothing parted or nothing was found.
        first: The first node whose inputs agree and whose output does not, on a way to an output that
            parts.
        worst: The node whose output is furthest apart, outputs of the model aside.
        growth: The nodes at which the difference grows most, worst first, with all values exposed; those at
            which it becomes infinite are in the notes.
        n_compared: Intermediate values that were compared.
        n_left_out: Intermediate values that could not be: sequences, strings, values of unknown type.
        reproduction: None where nothing parted.
        notes: What else there is to know.
    """

    model: str
    digest: str
    n_nodes: int
    inputs_from: str
    targets: tuple[str, str]
    against: str
    tolerance: float
    tolerance_from: str
    parted: bool
    outputs: tuple[ValueDifference, ...]
    found_by: str = ""
    first: NodeDifference | None = None
    worst: NodeDifference | None = None
    growth: tuple[NodeDifference, ...] = ()
    n_compared: int = 0
    n_left_out: int = 0
    reproduction: Reproduction | None = None
    notes: tuple[str, ...] = ()

    @property
    def worst_output(self) -> ValueDifference | None:
        """The output that is furthest apart; None for a model whose outputs nothing computes."""
        infinite = float("inf")
        return max(
            self.outputs,
            key=lambda output: infinite if output.relative_l2 is None else output.relative_l2,
            default=None,
        )
