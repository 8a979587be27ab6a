"""Facts per node: bytes, weights, shapes, modules, lines, signatures, and the work of sets of nodes."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from hal.graph import origin
from hal.graph.facts import facts
from hal.graph.model import Graph
from hal.graph.shapes import MAX_ELEMENTS, known
from hal.records.facts import ModelFacts, NodeFact, Work, WorkIndex


def parsed(body: str, opset: int = 21, **weights: tuple[int, ...]) -> Graph:
    """A graph in ONNX's text form, weights of ones added by their shapes."""
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "my.own" : 1]>'
    model = onnx.parser.parse_model(f"{head} {body}")
    for name, shape in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    return Graph.load(model)


# --- bytes, weights, reads and writes -------------------------------------------------------------


def test_facts_name_reads_and_writes_when_graph_is_small() -> None:
    found = facts(parsed("g (float[2, 3] x) => (float[2, 4] y) { p = MatMul(x, w) y = Relu(p) }", w=(3, 4)))
    first, second = found.nodes
    assert (first.op, first.domain, first.reads, first.writes) == ("MatMul", "", ("x", "w"), ("p",))
    assert (second.op, second.reads, second.writes) == ("Relu", ("p",), ("y",))
    assert found.value_bytes == {"x": 24, "w": 48, "p": 32, "y": 32}
    assert (found.inputs, found.outputs, found.weights) == (("x",), ("y",), frozenset({"w"}))


@pytest.mark.parametrize(
    ("dtype", "n_bytes"),
    [
        (TensorProto.FLOAT, 28),
        (TensorProto.BFLOAT16, 14),
        (TensorProto.BOOL, 7),
        (TensorProto.FLOAT8E4M3FN, 7),
        (TensorProto.INT4, 4),
        (TensorProto.UINT4, 4),
        (TensorProto.FLOAT4E2M1, 4),
        (TensorProto.COMPLEX64, 56),
        (TensorProto.STRING, None),
    ],
)
def test_value_bytes_are_packed_when_type_is_below_a_byte(dtype: int, n_bytes: int | None) -> None:
    value = helper.make_tensor_value_info("x", dtype, (7,))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value],
        [helper.make_tensor_value_info("y", dtype, (7,))],
    )
    imports = [helper.make_opsetid("", 23)]
    found = facts(Graph.load(helper.make_model(graph, opset_imports=imports, ir_version=11)))
    assert found.value_bytes.get("x") == n_bytes
    assert found.value_bytes.get("y") == n_bytes


def test_weights_hold_what_follows_from_weights_alone_when_graph_is_quantized() -> None:
    found = facts(
        parsed(
            """g (float[2, 3] x) => (float[2, 4] y)
        <int8[4, 3] q = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float s = {0.5}>
        {
            f = DequantizeLinear(q, s)
            w = Transpose(f)
            b = Constant<value = float[4] {1, 2, 3, 4}>()
            p = MatMul(x, w)
            y = Add(p, b)
        }"""
        )
    )
    assert found.weights == {"q", "s", "f", "w", "b"}
    assert [
        node.flops for node in found.nodes if node.op in ("DequantizeLinear", "Transpose", "Constant")
    ] == [0] * 3


def test_weights_leave_random_and_unknown_operators_out_when_they_read_only_weights() -> None:
    found = facts(
        parsed("""g (float[2] x) => (float[2] y)
        <float[2] w = {1, 2}>
        {
            a = RandomNormal<shape = [2]>()
            b = my.own.Draw(w)
            c = Add(a, w)
            d = Add(b, c)
            y = Add(x, d)
        }""")
    )
    assert found.weights == {"w"}


def test_reads_hold_outer_values_when_a_branch_reads_them() -> None:
    found = facts(
        parsed("""g (bool c, float[2] x, float[2] z) => (float[2] y)
        {
            y = If(c) <
                then_branch = t () => (float[2] a) { a = Identity(x) },
                else_branch = e () => (float[2] b) {
                    n = Not(c)
                    b = If(n) <
                        then_branch = tt () => (float[2] aa) { aa = Add(z, z) },
                        else_branch = ee () => (float[2] bb) { bb = Identity(z) }>
                }>
        }""")
    )
    assert found.nodes[0].reads == ("c", "x", "z")
    assert found.nodes[0].writes == ("y",)


# --- shapes ---------------------------------------------------------------------------------------


def test_shapes_are_found_when_they_go_through_arithmetic_on_shapes() -> None:
    graph = parsed("""g (float[n, 3, h, w] x) => (float[a, b, c] y)
        <float[1] half = {0.5}, int64[1] at = {2}, int64[1] minus = {-1}>
        {
            s = Shape(x)
            h1 = Gather(s, at)
            f = Cast<to = 1>(h1)
            g1 = Mul(f, half)
            r = Floor(g1)
            i = Cast<to = 7>(r)
            t = Concat<axis = 0>(i, minus)
            p = Reshape(x, t)
            u = Constant<value = int64[1] {0}>()
            y = Unsqueeze(p, u)
        }""")
    assert "y" not in facts(graph).value_bytes
    bound = facts(graph.bind({"x": (2, 3, 8, 5)}))
    assert bound.value_bytes["y"] == 2 * 3 * 8 * 5 * 4
    model = graph.bind({"x": (2, 3, 8, 5)}).model
    assert known(model).shape(model.graph.outputs[0]) == (1, 4, 60)
    assert {"s", "h1", "t"} <= bound.weights
    assert "p" not in bound.weights


def test_shapes_stay_unknown_when_they_depend_on_values() -> None:
    found = facts(parsed("g (float[4] x) => (int64[1, n] y) { y = NonZero(x) }"))
    assert "y" not in found.value_bytes
    assert found.nodes[0].flops == 4


def test_constants_are_not_computed_when_they_are_large() -> None:
    graph = parsed(f"""g (float[2] x) => (float[k] y)
        <int64[1] many = {{{MAX_ELEMENTS + 1}}}, int64[1] few = {{3}}>
        {{ a = ConstantOfShape(many) b = ConstantOfShape(few) y = Concat<axis = 0>(x, a, b) }}""")
    found = known(graph.model)
    values = {value.name: value for node in graph.model.graph for value in node.outputs}
    assert found.constant(values["a"]) is None
    assert found.is_fixed(values["a"])
    np.testing.assert_array_equal(found.constant(values["b"]), np.zeros(3, np.float32))


def test_sizes_that_grow_stay_unknown_when_a_loop_carries_them() -> None:
    graph = parsed("""g (float[4] x) => (float[m] y, float[4] z)
        {
            five = Constant<value = int64 {5}>()
            begin = Constant<value = bool {1}>()
            y, z = Loop(five, begin, x, x) <body = b (int64 i, bool go, float[p] v, float[4] u)
                => (bool more, float[q] w, float[4] t) {
                more = Identity(go)
                w = Concat<axis = 0>(v, u)
                t = Neg(u)
            }>
        }""")
    found = facts(graph)
    assert "y" not in found.value_bytes
    assert found.value_bytes["z"] == 16


def test_shapes_are_known_when_operators_are_microsofts() -> None:
    graph = parsed(
        """g (float[2, 5, 8] x, float[2, 5, 8] k, float[8] one) => (float[d, e, f] y)
        {
            a = com.microsoft.SkipLayerNormalization(x, k, one)
            b = com.microsoft.Attention<num_heads = 2>(a, w)
            c = com.microsoft.FusedMatMul<transB = 1>(b, k)
            y = com.microsoft.MatMulNBits<N = 6, K = 8, bits = 4, block_size = 16>(b, packed, scales)
        }""",
        w=(8, 24),
        packed=(6, 1, 4),
        scales=(6,),
    )
    found = facts(graph)
    assert {name: found.value_bytes[name] for name in "abcy"} == {"a": 320, "b": 320, "c": 200, "y": 240}


# --- where nodes come from ------------------------------------------------------------------------


def node(name: str = "n", **metadata: str) -> ir.Node:
    made = ir.node("Relu", [ir.Value(name="x")], name=name)
    made.metadata_props.update({f"pkg.torch.onnx.{key}": text for key, text in metadata.items()})
    return made


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("/encoder/layer.0/attention/MatMul", "encoder.layer.0.attention"),
        ("functional_1/conv/Conv2D", "functional_1.conv"),
        ("StatefulPartitionedCall/model/dense/MatMul", "model.dense"),
        ("If_0_then_branch__Inline_0__/decoder/rnn/LSTM", "decoder.rnn"),
        ("p2o.Conv.0", ""),
        ("Conv_17", ""),
        ("/Relu", ""),
    ],
)
def test_module_is_the_scope_of_the_name_when_nothing_else_tells(name: str, module: str) -> None:
    assert origin.module_of(node(name)) == module


def test_module_is_the_innermost_one_when_pytorch_tells() -> None:
    scopes = "['', 'encoder', 'encoder.layer.0', 'encoder.layer.0.attention', 'linear_1']"
    assert origin.module_of(node("/a/b/c", name_scopes=scopes)) == "encoder.layer.0.attention"
    assert origin.module_of(node("/a/b/c", name_scopes="['', 'add_1']")) == ""
    older = node("/a/b/c")
    older.metadata_props["namespace"] = (
        ": my.Net/layers.0: my.Layer/layers.0.out: torch.nn.Linear/add: aten.add"
    )
    assert origin.module_of(older) == "layers.0.out"


def test_levels_keep_a_number_with_its_name_when_module_is_in_a_list() -> None:
    fact = NodeFact(name="n", op="Add", module="encoder.layer.0.attention")
    assert fact.levels == ("encoder", "layer.0", "attention")
    assert NodeFact(name="n", op="Add").levels == ()


TRACE = """File "/home/me/src/proj/model.py", line 12, in forward
    return self.encoder(x)
  File "/venv/lib/python3.12/site-packages/transformers/models/bert/modeling_bert.py", line 290, in forward
    x = self.dense(x)
  File "<eval_with_key>.7", line 3, in forward
    y = linear(x)
  File "/venv/lib/python3.12/site-packages/torch/nn/modules/linear.py", line 134, in forward
    return F.linear(input, self.weight, self.bias)"""


def test_source_is_the_innermost_line_outside_pytorch_when_there_is_a_trace() -> None:
    assert origin.source_of(node(stack_trace=TRACE)) == "transformers/models/bert/modeling_bert.py:290"
    outer = "\n".join(TRACE.splitlines()[:2])
    assert origin.source_of(node(stack_trace=outer)) == "model.py:12"
    classes = "['proj.model.Net', 'torch.nn.modules.linear.Linear']"
    assert origin.source_of(node(stack_trace=outer, class_hierarchy=classes)) == "proj/model.py:12"
    windows = 'File "C:\\\\Users\\\\me\\\\proj\\\\model.py", line 3, in forward'.replace("\\\\", "\\")
    assert origin.source_of(node(stack_trace=windows)) == "model.py:3"
    assert origin.source_of(node(stack_trace=windows, class_hierarchy=classes)) == "proj/model.py:3"


def test_source_is_empty_when_the_trace_has_only_pytorchs_lines() -> None:
    own = "\n".join(TRACE.splitlines()[-2:])
    assert origin.source_of(node(stack_trace=own)) == ""
    checkout = 'File "/build/pytorch/torch/nn/modules/linear.py", line 3, in forward'
    assert origin.source_of(node(stack_trace=checkout)) == ""
    assert origin.source_of(node()) == ""


def test_source_is_named_from_the_root_when_a_helper_lies_beside_the_classes() -> None:
    trace = 'File "/src/proj/net.py", line 1, in forward\n  File "/src/proj/ops/helpers.py", line 2, in f'
    assert (
        origin.source_of(node(stack_trace=trace, class_hierarchy="['proj.net.Net']"))
        == "proj/ops/helpers.py:2"
    )


def test_without_folders_keeps_lines_and_drops_folders_when_rewriting() -> None:
    made = node(stack_trace=TRACE, class_hierarchy="['proj.model.Net']")
    before = origin.source_of(made)
    origin.without_folders(made)
    text = made.metadata_props["pkg.torch.onnx.stack_trace"]
    assert "/home" not in text
    assert "site-packages" not in text
    assert 'File "proj/model.py", line 12' in text
    assert origin.source_of(made) == before


# --- signatures -----------------------------------------------------------------------------------


def signature(body: str, opset: int = 21) -> str:
    return facts(parsed(body, opset)).nodes[-1].signature


def conv(shape: str = "1, 3, 8, 8", attributes: str = "", names: str = "xwy", value: float = 1.0) -> str:
    x, w, y = names
    return f"""g (float[{shape}] {x}) => (float[a, b, c, d] {y})
        <float[1, 3, 1, 1] {w} = {{{value}, 2, 3}}> {{ {y} = Conv{attributes}({x}, {w}) }}"""


def test_signature_is_equal_when_only_names_and_weights_differ() -> None:
    assert signature(conv()) == signature(conv(names="pqr", value=9.0))
    assert len(signature(conv())) == 32
    assert set(signature(conv())) <= set("0123456789abcdef")


def test_signature_is_equal_when_an_attribute_has_its_default_value() -> None:
    assert signature(conv()) == signature(conv(attributes="<group = 1>"))


def test_signature_is_equal_when_the_operator_did_not_change_between_op_sets() -> None:
    body = "g (float[2] x) => (float[2] y) { y = Softsign(x) }"
    assert signature(body, 18) == signature(body, 21) != signature(body, 22)


@pytest.mark.parametrize("other", [conv(shape="1, 3, 8, 9"), conv(attributes="<strides = [2, 2]>")])
def test_signature_differs_when_shape_or_attribute_does(other: str) -> None:
    assert signature(conv()) != signature(other)


def test_signature_differs_when_an_input_is_a_weight() -> None:
    given = "g (float[2, 2] x, float[2, 2] w) => (float[2, 2] y) { y = MatMul(x, w) }"
    fixed = "g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
    assert signature(given) != signature(fixed)


def test_signature_differs_when_a_deciding_constant_does() -> None:
    def sliced(step: int) -> str:
        return f"""g (float[8] x) => (float[n] y)
            <int64[1] a = {{0}}, int64[1] b = {{4}}, int64[1] ax = {{0}}, int64[1] step = {{{step}}}>
            {{ y = Slice(x, a, b, ax, step) }}"""

    def gathered(index: int) -> str:
        return f"""g (float[8] x) => (float[1] y) <int64[1] i = {{{index}}}> {{ y = Gather(x, i) }}"""

    assert signature(sliced(1)) != signature(sliced(2))
    assert signature(gathered(1)) == signature(gathered(2))


def test_signature_covers_subgraphs_when_node_has_them() -> None:
    def branched(then: str, names: str = "ab") -> str:
        a, b = names
        return f"""g (bool c, float[2] x) => (float[2] y) {{ y = If(c) <
            then_branch = t () => (float[2] {a}) {{ {a} = {then}(x) }},
            else_branch = e () => (float[2] {b}) {{ {b} = Neg(x) }}> }}"""

    assert signature(branched("Exp")) == signature(branched("Exp", "pq")) != signature(branched("Log"))


# --- work of sets ---------------------------------------------------------------------------------


def chain_with_branches(n: int, seed: int) -> ModelFacts:
    """Nodes that read up to three earlier values and a weight; some values are not known in size."""
    draw = random.Random(seed)
    nodes, sizes = [], {"x": 10, "w": 7}
    for index in range(n):
        earlier = ["x", *(f"v{k}" for k in range(index))]
        reads = tuple(dict.fromkeys(draw.choices(earlier, k=3))) + (("w",) if draw.random() < 0.3 else ())
        nodes.append(
            NodeFact(
                name=f"n{index}",
                op="Add",
                flops=draw.choice([3, 5, None]),
                reads=reads,
                writes=(f"v{index}",),
            )
        )
        if draw.random() < 0.95:
            sizes[f"v{index}"] = draw.randrange(1, 100)
    return ModelFacts(
        nodes=tuple(nodes),
        value_bytes=sizes,
        weights=frozenset({"w"}),
        inputs=("x",),
        outputs=(f"v{n - 1}", "v0"),
    )


def plain_work(found: ModelFacts, names: Collection[str]) -> Work:
    """The definition, word for word."""
    inside = [node for node in found.nodes if node.name in names]
    made = {value for node in inside for value in node.writes}
    read = {value for node in inside for value in node.reads}
    wanted = {v for node in found.nodes if node.name not in names for v in node.reads} | set(found.outputs)

    def total(values: set[str]) -> int | None:
        return sum(found.value_bytes[v] for v in values) if values <= set(found.value_bytes) else None

    flops = [node.flops for node in inside]
    return Work(
        flops=None if None in flops else sum(n or 0 for n in flops),
        moved_bytes=total((read - made) | (made & wanted)),
        weight_bytes=total((read - made) & found.weights) or 0,
        activation_bytes=total(made & wanted),
    )


def test_work_is_as_defined_when_sets_are_drawn_at_random() -> None:
    draw = random.Random(7)
    seen: list[Work] = []
    for seed in range(20):
        found = chain_with_branches(30, seed)
        index = WorkIndex(found)
        for _ in range(20):
            names = set(draw.sample([node.name for node in found.nodes], draw.randrange(1, 12)))
            seen.append(index.work(names))
            assert index.work(names) == found.work(names) == plain_work(found, names)
    assert any(work.flops is None for work in seen)
    assert any(work.flops is not None and work.moved_bytes is not None for work in seen)


def test_work_counts_inner_values_not_at_all_when_nodes_are_fused() -> None:
    found = facts(
        parsed(
            "g (float[2, 3] x) => (float[2, 4] y) { p = MatMul(x, w) q = Add(p, b) y = Relu(q) }",
            w=(3, 4),
            b=(4,),
        )
    )
    names = [node.name for node in found.nodes]
    together = found.work(names)
    assert together == Work(
        flops=48 + 8 + 8, moved_bytes=24 + 48 + 16 + 32, weight_bytes=64, activation_bytes=32
    )
    assert found.work(names[:1]) == Work(
        flops=48, moved_bytes=24 + 48 + 32, weight_bytes=48, activation_bytes=32
    )
    assert found.work(["no such node"]) == Work(flops=0, moved_bytes=0, weight_bytes=0, activation_bytes=0)


def test_facts_are_the_same_when_written_and_read_again() -> None:
    found = chain_with_branches(10, 0)
    found.work(["n1"])  # what it keeps for speed is no part of the record
    again: Any = msgspec.json.decode(msgspec.json.encode(found), type=ModelFacts)
    assert again == found
    assert again.work(["n1", "n2"]) == found.work(["n1", "n2"])


def test_work_counts_only_the_rows_read_when_a_table_is_looked_up() -> None:
    def look_up(**sizes: int) -> ModelFacts:
        return ModelFacts(
            nodes=(
                NodeFact(name="rows", op="Gather", flops=0, reads=("table", "ids"), writes=("found",)),
                NodeFact(name="all", op="Relu", flops=1, reads=("table",), writes=("out",)),
            ),
            value_bytes={"table": 1000, "ids": 8, "found": 20, "out": 1000, **sizes},
            weights=frozenset({"table"}),
            inputs=("ids",),
            outputs=("found", "out"),
        )

    found = look_up().work(["rows"])
    assert (found.moved_bytes, found.weight_bytes) == (20 + 8 + 20, 20)
    # Rows may repeat: no more than the whole table is read, and whoever else reads it reads all of it.
    assert look_up(found=5000).work(["rows"]).weight_bytes == 1000
    assert look_up().work(["rows", "all"]).weight_bytes == 1000
