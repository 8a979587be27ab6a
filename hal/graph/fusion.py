"""Which nodes a runtime that fuses is expected to compute in one kernel, where none was measured.

A node that computes element by element, or only moves or renames elements, joins the kernel that makes what
it reads, where nobody else reads that. A softmax between two products of matrices becomes one kernel with
them. Only the last node of a kernel hands anything on, so that kernels are convex.

Source: TVM's rule for operators of the kinds "elementwise", "broadcast" and "injective" behind one that is
"complex out fusable": Chen et al., "TVM: An Automated End-to-End Optimizing Compiler for Deep Learning", OSDI
2018, section 3. OpenVINO, ONNX Runtime and TensorRT do so with activations, biases and residual sums.
Attention in one kernel: Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with
IO-Awareness", NeurIPS 2022; the same three have such kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from hal.records.facts import ModelFacts, NodeFact

_ELEMENT_WISE = """
    Abs Acos Add And Atan BitShift Cast CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu
    Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish
    Mod Mul Neg Not Or Pow PRelu Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub
    Sum Swish Tan Tanh ThresholdedRelu Where Xor BatchNormalization Dropout QuantizeLinear DequantizeLinear
"""
#: The same memory under another shape: nothing is computed or moved.
VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
#: Nodes that join the kernel before them.
JOINING = frozenset({*_ELEMENT_WISE.split(), *VIEWS, "Transpose", "DepthToSpace", "SpaceToDepth", "Expand"})


def kernels(facts: ModelFacts) -> tuple[tuple[tuple[NodeFact, ...], ...], tuple[str, ...]]:
    """The kernels expected of a graph.

    Args:
        facts: Of the bound graph.

    Returns:
        The nodes of each kernel, kernels in the order of their first nodes; and the names of nodes that cost
        nothing in a run, because weights and bound shapes alone decide what they compute.
    """
    n_readers = Counter(facts.outputs)
    for node in facts.nodes:
        n_readers.update(set(node.reads))
    home: dict[str, int] = {}
    found: list[list[NodeFact]] = []
    folded = []
    for node in facts.nodes:
        if node.writes and facts.weights.issuperset(filter(None, node.writes)):
            folded.append(node.name)
            continue
        at = _joined(node, home, found, n_readers)
        if at is None:
            at = len(found)
            found.append([])
        found[at].append(node)
        home.update(dict.fromkeys(filter(None, node.writes), at))
    return tuple(map(tuple, _with_attention(found, home, n_readers))), tuple(folded)


def is_view(nodes: Sequence[NodeFact]) -> bool:
    """Whether a kernel only renames memory."""
    return all(node.op in VIEWS and not node.domain for node in nodes)


def _joined(
    node: NodeFact, home: Mapping[str, int], found: Sequence[Sequence[NodeFact]], n_readers: Mapping[str, int]
) -> int | None:
    """The kernel that a node joins, of several the one that began last; None where it begins its own."""
    if node.op not in JOINING or node.domain:
        return None
    # A view's other inputs are sizes, whose kernel it has nothing to do with.
    read = node.reads[:1] if node.op in VIEWS else node.reads
    fitting = [-1]
    for value in read:
        if value in home and n_readers[value] == 1:
            maker = found[home[value]][-1]
            # What else that node makes must have no reader, and the value must be its own.
            if value in maker.writes and not any(n_readers[v] for v in maker.writes if v and v != value):
                fitting.append(home[value])
    return max(fitting) if max(fitting) >= 0 else None


def _with_attention(
    found: Sequence[list[NodeFact]], home: Mapping[str, int], n_readers: Mapping[str, int]
) -> list[list[NodeFact]]:
    """Kernels with product, softmax and product in one, where nobody else reads what is between them."""
    products = {at for at, kernel in enumerate(found) if kernel[0].op == "MatMul"}
    after = {value: at for at in products for value in found[at][0].reads}
    merged: dict[int, list[NodeFact]] = {}
    gone: set[int] = set()
    for at, kernel in enumerate(found):
        if kernel[0].op != "Softmax" or len(kernel[-1].writes) != 1:
            continue
        score, share = kernel[0].reads[0], kernel[-1].writes[0]
        before, behind = home.get(score), after.get(share)
        if before in products and behind is not None and n_readers[score] == n_readers[share] == 1:
            merged[at] = [*found[before], *kernel, *found[behind]]
            gone |= {before, behind}
    return [merged.get(at, kernel) for at, kernel in enumerate(found) if at not in gone]
