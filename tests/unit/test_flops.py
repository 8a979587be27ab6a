"""Operations per node: hand-computed, and a whole network whose count is published."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hal.graph.facts import facts
from hal.graph.flops.movement import UNCOUNTED
from hal.graph.flops.node import TABLE
from hal.graph.model import Graph
from hal.records.facts import NodeFact

MS = "com.microsoft"
FLOAT, U8, I8, I64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT64


def node_fact(
    op: str,
    *inputs: Any,
    domain: str = "",
    opset: int = 21,
    n_outputs: int = 1,
    out: int = FLOAT,
    **attributes: Any,
) -> NodeFact:
    """The fact of a single node.

    A tuple is an input's shape (float32), a pair of element type and tuple another type, an array a weight,
    None a left out input.
    """
    names, given, weights = [], [], []
    for index, value in enumerate(inputs):
        names.append("" if value is None else f"x{index}")
        if isinstance(value, np.ndarray):
            weights.append(onnx.numpy_helper.from_array(value, f"x{index}"))
        elif value is not None:
            kind, shape = value if value and isinstance(value[-1], tuple) else (FLOAT, value)
            given.append(helper.make_tensor_value_info(f"x{index}", kind, shape))
    node = helper.make_node(
        op, names, [f"y{n}" for n in range(n_outputs)], "node", domain=domain, **attributes
    )
    answer = helper.make_tensor_value_info("y0", out, None)
    graph = helper.make_graph([node], "g", given, [answer], weights)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1), helper.make_opsetid("my.own", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    (fact,) = facts(Graph.load(model)).nodes
    return fact


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


PRODUCTS = [
    ("MatMul", [(3, 5), (5, 7)], {}, 2 * 3 * 5 * 7),
    ("MatMul", [(2, 1, 3, 5), (4, 5, 7)], {}, 2 * 2 * 4 * 3 * 5 * 7),
    ("MatMul", [(5,), (5, 7)], {}, 2 * 5 * 7),
    ("Gemm", [(3, 5), (7, 5), (7,)], {"transB": 1}, 2 * 3 * 5 * 7 + 3 * 7),
    ("Gemm", [(5, 3), (5, 7)], {"transA": 1, "alpha": 0.5}, 2 * 3 * 5 * 7 + 3 * 7),
    ("Conv", [(1, 3, 10, 10), (8, 3, 3, 3)], {}, 2 * 8 * 8 * 8 * 27),
    ("Conv", [(2, 8, 10, 10), (8, 1, 3, 3), (8,)], {"group": 8}, 2 * 8 * 64 * (2 * 9 + 1)),
    ("Conv", [(1, 4, 9), (6, 2, 3)], {"group": 2, "strides": [2]}, 2 * 6 * 4 * 6),
    ("ConvTranspose", [(1, 4, 5, 5), (4, 6, 2, 2)], {"strides": [2, 2]}, 2 * 100 * 6 * 4),
    ("ConvTranspose", [(1, 4, 5), (4, 3, 2), (6,)], {"group": 2}, 2 * 20 * 6 + 6 * 6),
    ("Einsum", [(2, 3, 5), (2, 5, 7)], {"equation": "bij,bjk->bik"}, 2 * 2 * 3 * 5 * 7),
    ("Einsum", [(2, 3), (2, 3)], {"equation": "ij,ij->ij"}, 6),
    ("Einsum", [(4, 3, 5), (5, 7)], {"equation": "...ij,jk->...ik"}, 2 * 4 * 3 * 5 * 7),
    ("Einsum", [(3, 5), (5, 7)], {"equation": "ij,jk"}, 2 * 3 * 5 * 7),
    ("Einsum", [(3, 3)], {"equation": "ii->i"}, 0),
    ("Det", [(2, 6, 6)], {}, 2 * 144),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "expected"), PRODUCTS)
def test_count_is_the_hand_computed_one_when_node_is_a_product(
    op: str, inputs: list[Any], attributes: dict[str, Any], expected: int
) -> None:
    assert node_fact(op, *inputs, **attributes).flops == expected


def test_count_adds_the_epilogue_when_product_is_quantized() -> None:
    scale, zero = np.array(0.1, np.float32), np.zeros((), np.uint8)
    quantized = (scale, zero)
    matmul = node_fact(
        "QLinearMatMul", (U8, (3, 5)), *quantized, (U8, (5, 7)), *quantized, *quantized, out=U8
    )
    assert matmul.flops == 3 * 7 * (2 * 5 + 5)
    conv = node_fact(
        "QLinearConv",
        *((U8, (1, 3, 10, 10)), *quantized, (U8, (8, 3, 3, 3)), *quantized, *quantized),
        (TensorProto.INT32, (8,)),
        out=U8,
    )
    assert conv.flops == 8 * 64 * (2 * 27 + 5 + 1)
    integer = node_fact("MatMulInteger", (U8, (3, 5)), (I8, (5, 7)), out=TensorProto.INT32)
    assert integer.flops == 2 * 3 * 5 * 7
    assert (
        node_fact("ConvInteger", (U8, (1, 3, 4, 4)), (I8, (2, 3, 4, 4)), out=TensorProto.INT32).flops == 192
    )


def test_count_is_of_all_gates_steps_and_directions_when_node_is_recurrent() -> None:
    # 5 steps, a batch of 2, 3 inputs, 4 hidden, both directions.
    lstm = node_fact(
        "LSTM", (5, 2, 3), (2, 16, 3), (2, 16, 4), (2, 32), hidden_size=4, direction="bidirectional"
    )
    assert lstm.flops == 2 * 5 * 2 * (16 * (2 * 3 + 2 * 4 + 2) + 4 * (3 * 14 + 2 * 8 + 4))
    gru = node_fact("GRU", (5, 2, 3), (1, 12, 3), (1, 12, 4), hidden_size=4)
    assert gru.flops == 5 * 2 * (12 * (2 * 3 + 2 * 4 + 1) + 4 * (2 * 14 + 8 + 5))
    rnn = node_fact("RNN", (2, 5, 3), (1, 4, 3), (1, 4, 4), hidden_size=4, layout=1)
    assert rnn.flops == 5 * 2 * (4 * (2 * 3 + 2 * 4 + 1) + 4 * 8)


OTHERS = [
    ("Add", [(2, 1, 4), (3, 1)], {}, 24),
    ("Div", [(2, 3), (3,)], {}, 4 * 6),
    ("Sigmoid", [(10,)], {}, 14 * 10),
    ("Clip", [(10,), np.array(0, np.float32)], {}, 10),
    ("Pow", [(10,), np.array(2, np.float32)], {}, 10),
    ("Pow", [(10,), np.array(3, np.float32)], {}, 20),
    ("Pow", [(10,), np.array(0.5, np.float32)], {}, 40),
    ("Pow", [(10,), np.array(-2, np.float32)], {}, 50),
    ("Pow", [(10,), np.array(2.5, np.float32)], {}, 80),
    ("Pow", [(10,), (1,)], {}, 80),
    ("Sum", [(10,), (10,), (10,)], {}, 20),
    ("Mean", [(10,), (10,)], {}, 50),
    ("Gelu", [(10,)], {}, 120),
    ("Gelu", [(10,)], {"approximate": "tanh"}, 160),
    ("CumSum", [(2, 5), ints(1).reshape(())], {}, 10),
    ("Softmax", [(2, 5)], {}, 15 * 10),
    ("LogSoftmax", [(2, 5)], {}, 12 * 10 + 2 * 8),
    ("LayerNormalization", [(2, 5), (5,), (5,)], {}, 7 * 10 + 2 * (4 + 13)),
    ("BatchNormalization", [(2, 3, 4), (3,), (3,), (3,), (3,)], {}, 2 * 24 + 3 * 11),
    ("InstanceNormalization", [(2, 3, 4), (3,), (3,)], {}, 7 * 24 + 6 * 17),
    ("ReduceSum", [(2, 5), ints(1)], {}, 8),
    ("ReduceSum", [(2, 5)], {"noop_with_empty_axes": 1}, 0),
    ("ReduceMean", [(2, 5), ints(1)], {}, 8 + 4 * 2),
    ("ReduceL2", [(2, 5), ints(1)], {}, 8 + 10 + 4 * 2),
    ("ArgMax", [(2, 5)], {"axis": 1}, 8),
    ("MaxPool", [(1, 2, 6, 6)], {"kernel_shape": [3, 3]}, 8 * 2 * 16),
    ("AveragePool", [(1, 2, 6, 6)], {"kernel_shape": [2, 2]}, 7 * 2 * 25),
    ("GlobalAveragePool", [(1, 2, 6, 6)], {}, 70 + 8),
    ("LpPool", [(1, 2, 6)], {"kernel_shape": [2]}, (2 + 1 + 4) * 10),
    ("LRN", [(1, 5, 2, 2)], {"size": 3}, (1 + 3 + 2 + 8 + 4) * 20),
    ("TopK", [(2, 16), ints(4)], {"n_outputs": 2}, 32 * 3),
    ("Resize", [(1, 2, 4, 4), None, None, ints(1, 2, 8, 8)], {"mode": "nearest"}, 0),
    ("Resize", [(1, 2, 4, 4), None, None, ints(1, 2, 8, 8)], {"mode": "linear"}, 9 * 128),
    ("Resize", [(1, 2, 4, 4), None, None, ints(1, 2, 8, 4)], {"mode": "linear"}, 3 * 64),
    ("Resize", [(1, 2, 4, 4), None, None, ints(1, 2, 8, 8)], {"mode": "cubic"}, 32 * 128),
    ("GridSample", [(1, 2, 4, 4), (1, 3, 3, 2)], {}, 9 * 18 + 2 * 18),
    ("STFT", [(1, 256), ints(64).reshape(()), (64,)], {}, 4 * (64 * 6 * 5 // 2 + 64)),
    ("QuantizeLinear", [(10,), np.ones((), np.float32), np.zeros((), np.int8)], {"out": I8}, 8 * 10),
    ("DequantizeLinear", [(I8, (10,)), np.ones((), np.float32)], {}, 10),
    ("ScatterND", [(8,), (I64, (2, 1)), (2,)], {"reduction": "add"}, 2),
    ("ScatterND", [(8,), (I64, (2, 1)), (2,)], {}, 0),
    ("Transpose", [(2, 5)], {}, 0),
    ("Cast", [(2, 5)], {"to": I64, "out": I64}, 0),
    ("Softmax", [(2, 3, 5)], {"opset": 11}, 15 * 30),
    ("LogSoftmax", [(2, 3, 5)], {"opset": 11}, 12 * 30 + 2 * 8),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "expected"), OTHERS)
def test_count_is_the_hand_computed_one_when_node_is_no_product(
    op: str, inputs: list[Any], attributes: dict[str, Any], expected: int
) -> None:
    assert node_fact(op, *inputs, **attributes).flops == expected


def test_count_is_of_both_products_and_the_softmax_when_node_is_attention() -> None:
    # 2 samples, 4 heads over 2 key-value heads of 8, 5 queries, 7 keys.
    fact = node_fact("Attention", (2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8), opset=23)
    assert fact.flops == 2 * 4 * 5 * 7 * (2 * 8 + 2 * 8 + 1 + 15)
    flat = node_fact("Attention", (2, 5, 32), (2, 7, 16), (2, 7, 16), opset=23, q_num_heads=4, kv_num_heads=2)
    assert flat.flops == fact.flops


CONTRIB = [
    (
        "MatMulNBits",
        [(3, 64), (U8, (7, 2, 16)), (14,)],
        {"N": 7, "K": 64, "bits": 4, "block_size": 32},
        2 * 3 * 7 * 64 + 2 * 7 * 64,
    ),
    ("FusedMatMul", [(2, 5, 3), (2, 5, 7)], {"transA": 1, "alpha": 0.5}, 2 * 3 * 7 * (2 * 5 + 1)),
    ("Gelu", [(10,)], {}, 120),
    ("BiasGelu", [(2, 5), (5,)], {}, 130),
    ("FastGelu", [(2, 5)], {}, 160),
    ("QuickGelu", [(2, 5)], {}, 160),
    ("SkipLayerNormalization", [(2, 5), (2, 5), (5,), (5,)], {}, 8 * 10 + 2 * 17),
    ("SkipSimplifiedLayerNormalization", [(2, 5), (2, 5), (5,)], {}, 5 * 10 + 2 * 13),
    (
        "QLinearAdd",
        [(U8, (2, 5)), (1,), (U8, (1,)), (U8, (5,)), (1,), (U8, (1,)), (1,)],
        {"out": U8},
        10 * 10,
    ),
    ("QGemm", [(U8, (3, 5)), (1,), (U8, (1,)), (I8, (7, 5)), (1,), (I8, (1,))], {"transB": 1}, 21 * 11),
    ("FusedConv", [(1, 3, 10, 10), (8, 3, 3, 3)], {"activation": "Relu"}, 2 * 8 * 64 * 27),
    ("MultiHeadAttention", [(2, 5, 32), (2, 7, 32), (2, 7, 32)], {"num_heads": 4}, 2 * 4 * 35 * 48),
    ("Attention", [(2, 5, 32), (32, 96), (96,)], {"num_heads": 4}, 10 * 96 * 65 + 2 * 4 * 25 * 48),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "expected"), CONTRIB)
def test_count_is_the_hand_computed_one_when_operator_is_microsofts(
    op: str, inputs: list[Any], attributes: dict[str, Any], expected: int
) -> None:
    assert node_fact(op, *inputs, domain=MS, **attributes).flops == expected


def test_count_is_none_when_operator_or_work_is_unknown() -> None:
    assert node_fact("Convolve", (2, 3), domain="my.own").flops is None
    assert node_fact("Add", ("n", 3), (3,)).flops is None
    assert node_fact("NonMaxSuppression", (1, 9, 4), (1, 2, 9), out=I64).flops is None


def test_count_is_nothing_when_node_is_folded() -> None:
    assert node_fact("Exp", np.ones((2, 3), np.float32)).flops == 0


def test_table_has_every_operator_of_onnx_when_asked() -> None:
    ours = {name for domain, name in TABLE if domain == ""}
    theirs = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert theirs - ours == {"If", "Loop", "Scan"}
    assert ours - theirs <= {"SimplifiedLayerNormalization"}  # of ONNX Runtime, in ONNX's domain
    assert set(UNCOUNTED) < ours


# --- graphs in nodes ----------------------------------------------------------------------------


def loop(trips: int | None, *, ends_itself: bool = False) -> onnx.ModelProto:
    goes_on = "more = Not(goes)" if ends_itself else "more = Identity(goes)"
    limit = f"limit = Constant<value = int64 {{{trips}}}>()" if trips is not None else "limit = Identity(n)"
    return onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[4] x, int64 n) => (float[4] y, float[s, 4] all) {{
            {limit}
            begin = Constant<value = bool {{1}}>()
            y, all = Loop(limit, begin, x) <body = body (int64 i, bool goes, float[4] v)
                => (bool more, float[4] w, float[4] seen) {{
                {goes_on}
                w = Add(v, v)
                seen = Identity(w)
            }}>
        }}""")


def test_count_is_of_all_trips_when_their_number_is_constant() -> None:
    found = facts(Graph.load(loop(5)))
    assert found.by_name()[found.nodes[-1].name].flops == 5 * 4
    assert found.value_bytes["all"] == 5 * 4 * 4


@pytest.mark.parametrize("model", [loop(None), loop(5, ends_itself=True)])
def test_count_is_none_when_number_of_trips_depends_on_values(model: onnx.ModelProto) -> None:
    found = facts(Graph.load(model))
    assert found.nodes[-1].flops is None
    assert "all" not in found.value_bytes
    assert found.value_bytes["y"] == 16


def choice(condition: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[4] x, bool c) => (float[m] y) {{
            which = {condition}
            y = If(which) <
                then_branch = t () => (float[4] a) {{ a = Add(x, x) }},
                else_branch = e () => (float[8] b) {{ z = Exp(x) b = Concat<axis = 0>(z, z) }}>
        }}""")


def test_count_is_of_the_branch_taken_when_condition_is_constant() -> None:
    for value, flops, n_bytes in ((1, 4, 16), (0, 32, 32)):
        found = facts(Graph.load(choice(f"Constant<value = bool {{{value}}}>()")))
        assert (found.nodes[-1].flops, found.value_bytes["y"]) == (flops, n_bytes)


def test_count_is_none_when_branches_differ_and_condition_is_a_value() -> None:
    found = facts(Graph.load(choice("Identity(c)")))
    assert found.nodes[-1].flops is None
    assert "y" not in found.value_bytes
    assert found.nodes[-1].reads == ("which", "x")


def test_count_is_of_all_rows_when_node_scans() -> None:
    found = facts(
        Graph.load(
            onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[4] s, float[9, 4] x) => (float[4] t, float[k, 4] all) {
            t, all = Scan(s, x) <num_scan_inputs = 1, body = body (float[4] a, float[4] b)
                => (float[4] c, float[4] d) { c = Add(a, b) d = Mul(c, b) }>
        }""")
        )
    )
    assert found.nodes[0].flops == 9 * (4 + 4)
    assert found.value_bytes["all"] == 9 * 4 * 4


# --- a whole network ----------------------------------------------------------------------------


def resnet50() -> onnx.ModelProto:
    """ResNet-50 without normalisations, weights not set: sizes are all that counts.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", table 1, with the stride in the
    3x3 convolution, as in torchvision.
    """
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.ValueInfoProto] = []

    def weight(shape: tuple[int, ...]) -> str:
        weights.append(helper.make_tensor_value_info(f"w{len(weights)}", FLOAT, shape))
        return weights[-1].name

    def step(op: str, *names: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, names, [f"v{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def conv(x: str, c_in: int, c_out: int, kernel: int, stride: int = 1) -> str:
        pads = [kernel // 2] * 4
        return step("Conv", x, weight((c_out, c_in, kernel, kernel)), pads=pads, strides=[stride] * 2)

    x = step("MaxPool", conv("x", 3, 64, 7, 2), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            by = stride if block == 0 else 1
            inner = conv(conv(x, channels, width, 1), width, width, 3, by)
            inner = conv(inner, width, 4 * width, 1)
            x = step("Add", inner, conv(x, channels, 4 * width, 1, by) if block == 0 else x)
            channels = 4 * width
    x = step("Flatten", step("GlobalAveragePool", x))
    y = step("Gemm", x, weight((2048, 1000)))
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("x", FLOAT, (1, 3, 224, 224)), *weights],
        [helper.make_tensor_value_info(y, FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_count_is_the_published_one_when_model_is_resnet50() -> None:
    found = facts(Graph.load(resnet50()))
    products = sum(node.flops or 0 for node in found.nodes if node.op in ("Conv", "Gemm"))
    # Source: torchvision, ResNet50_Weights, "_ops": 4.089 (10^9 multiply-adds at 224 x 224).
    assert round(products / 2e9, 3) == 4.089
    assert all(node.flops is not None for node in found.nodes)
