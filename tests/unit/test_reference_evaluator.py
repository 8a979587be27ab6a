"""How the reference runs a model: subgraphs, functions, memory, and what it refuses."""

import gc
import weakref

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from hal.errors import HalError, InputError
from hal.graph.reference import ReferenceUnavailable, reference_outputs
from hal.graph.reference.evaluator import Evaluator


def parse(text, header='ir_version: 8, opset_import: ["" : 17]'):
    return parser.parse_model(f"<{header}>\n{text}")


def test_reference_gives_up_when_the_time_is_over():
    model = parse("g (float[2] x) => (float[2] y) { y = Neg (x) }")
    with pytest.raises(ReferenceUnavailable, match="no reference for this model within -1 s; give"):
        reference_outputs(model, {"x": np.zeros(2, np.float32)}, limit_s=-1)


def test_a_subgraph_reads_values_around_it_when_they_are_used_nowhere_else():
    model = parse(
        """g (float[2] x, bool c) => (float[2] y) {
            a = Neg (x)
            b = Abs (x)
            unused = Exp (x)
            y = If (c) <
                then_branch = t () => (float[2] p) {
                    p = If (c) <
                        then_branch = u () => (float[2] q) { q = Add (a, b) },
                        else_branch = v () => (float[2] r) { r = Identity (b) }
                    >
                },
                else_branch = e () => (float[2] s) { s = Identity (a) }
            >
        }"""
    )
    x = np.array([1.0, -2.0], np.float32)
    assert reference_outputs(model, {"x": x, "c": np.array(True)})["y"].tolist() == [0.0, 4.0]
    assert reference_outputs(model, {"x": x, "c": np.array(False)})["y"].tolist() == [-1.0, 2.0]


def loop(limit, condition):
    return parse(
        f"""g (int64 n, bool go, float[2] x) => (float[2] y, float[k, 2] s) {{
            y, s = Loop ({limit}, {condition}, x) <
                body = b (int64 i, bool keep, float[2] v) => (bool more, float[2] w, float[2] z) {{
                more = Identity (keep)
                w = Add (v, x)
                z = Identity (v)
            }}>
        }}"""
    )


@pytest.mark.parametrize(("limit", "condition"), [("n", "go"), ("n", "")])
def test_loop_stacks_scan_outputs_when_its_limit_or_condition_is_missing(limit, condition):
    x = np.array([1.0, 2.0], np.float32)
    feeds = {"n": np.array(3), "go": np.array(True), "x": x}
    outputs = reference_outputs(loop(limit, condition), feeds)
    assert outputs["y"].tolist() == [4.0, 8.0]
    assert outputs["s"].tolist() == [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]
    feeds["n"] = np.array(0)
    outputs = reference_outputs(loop(limit, condition), feeds)
    assert outputs["y"].tolist() == [1.0, 2.0]
    assert outputs["s"].shape == (0, 2)


def test_loop_ends_when_its_condition_turns_false_without_a_limit():
    model = parse(
        """g (bool go, float x) => (float y, float[k] s) {
            four = Constant <value_float = 4.0> ()
            y, s = Loop (, go, x) <body = b (int64 i, bool keep, float v) => (bool more, float w, float z) {
                w = Add (v, x)
                more = Less (w, four)
                z = Cast <to = 1> (i)
            }>
        }"""
    )
    outputs = reference_outputs(model, {"go": np.array(True), "x": np.array(1.0, np.float32)})
    assert outputs["y"] == 4.0
    assert outputs["s"].tolist() == [0.0, 1.0, 2.0]


def test_scan_runs_backwards_along_an_axis_when_told_so():
    model = parse(
        """g (float start, float[2, 3] x) => (float y, float[2, 3] s) {
            y, s = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
                         scan_output_axes = [1], scan_output_directions = [1],
                body = b (float total, float[2] column) => (float next, float[2] seen) {
                    zero = Constant <value_ints = [0]> ()
                    top = ReduceMax <keepdims = 0> (column)
                    next = Add (total, top)
                    seen = Add (column, total)
                }> (start, x)
        }"""
    )
    x = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], np.float32)
    outputs = reference_outputs(model, {"start": np.array(0.0, np.float32), "x": x})
    assert outputs["y"] == 6.0
    # Columns are read from the last to the first, and written the same way.
    assert outputs["s"].tolist() == [[6.0, 5.0, 3.0], [5.0, 3.0, 0.0]]


def test_functions_of_the_model_are_expanded_when_they_take_attributes():
    model = parse(
        """g (float[2, 2] x) => (float[2, 2] y) { y = local.soft <axis = 0> (x) }
        <domain: "local", opset_import: ["" : 17]>
        soft <axis> (a) => (b) { b = Softmax <axis: int = @axis> (a) }""",
        header='ir_version: 8, opset_import: ["" : 17, "local" : 1]',
    )
    y = reference_outputs(model, {"x": np.zeros((2, 2), np.float32) + np.eye(2, dtype=np.float32)})["y"]
    np.testing.assert_allclose(y.sum(axis=0), 1.0, rtol=1e-6)


def test_progress_counts_every_node_when_asked_for():
    model = parse("g (float[1] x) => (float[1] y) { a = Neg (x) b = Neg (a) y = Neg (b) }")
    seen = []
    reference_outputs(model, {"x": np.zeros(1, np.float32)}, progress=lambda done, n: seen.append((done, n)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_values_are_freed_when_no_later_node_needs_them():
    model = parse("g (float[1] x) => (float[1] y) { a = Neg (x) b = Neg (a) c = Neg (b) y = Neg (c) }")
    evaluator = Evaluator(model)
    assert evaluator.freed_ == [["x"], ["a"], ["b"], ["c"]]
    alive, holders = [], []

    def watch(done, n_nodes):
        gc.collect()
        alive.append([name for name, reference in holders if reference() is not None])

    for node in evaluator.rt_nodes_:
        inner = node.run

        def run(*args, inner=inner, name=node.output[0], **options):
            outputs = inner(*args, **options)
            holders.append((name, weakref.ref(outputs[0])))
            return outputs

        node.run = run
    evaluator.progress = watch
    evaluator.run(None, {"x": np.zeros(1, np.float32)})
    assert all(len(names) <= 2 for names in alive)
    assert alive[-1] == ["y"] or alive[-1] == ["c", "y"]


def test_weights_may_be_left_out_or_replaced_when_they_are_inputs_too():
    model = parse(
        "g (float[1] x, float[1] w) => (float[1] y) <float[1] w = {2.0}> { y = Mul (x, w) }",
    )
    x = np.array([3.0], np.float32)
    assert reference_outputs(model, {"x": x})["y"].tolist() == [6.0]
    assert reference_outputs(model, {"x": x, "w": x})["y"].tolist() == [9.0]


def test_an_output_without_a_name_stays_nothing_when_a_later_input_is_left_out():
    # onnx's own evaluator stores it under "", where it is then found as the value of missing inputs.
    model = parse(
        """g (float[1, 1, 2] x, float[1, 8, 2] w, float[1, 8, 2] r) => (float[1, 1, 2] h, float[1, 1, 2] k) {
            , h = LSTM <hidden_size = 2> (x, w, r)
            , k = LSTM <hidden_size = 2> (x, w, r, , , )
        }"""
    )
    rng = np.random.default_rng(0)
    shapes = {"x": (1, 1, 2), "w": (1, 8, 2), "r": (1, 8, 2)}
    outputs = reference_outputs(
        model, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    )
    np.testing.assert_array_equal(outputs["h"], outputs["k"])


def test_reference_names_every_unknown_operator_when_there_are_several():
    model = parse(
        """g (float[1] x, bool c) => (float[1] y) {
            a = vendor.Fast (x)
            b = RandomNormalLike (a)
            y = If (c) <
                then_branch = t () => (float[1] p) { p = vendor.Faster (b) },
                else_branch = e () => (float[1] s) { s = other.Thing (a) }
            >
        }""",
        header='ir_version: 8, opset_import: ["" : 17, "vendor" : 3]',
    )
    with pytest.raises(ReferenceUnavailable) as caught:
        reference_outputs(model, {"x": np.zeros(1, np.float32), "c": np.array(True)})
    text = str(caught.value)
    assert text.startswith("no reference for this model: operators without a reference implementation:")
    assert "ai.onnx::RandomNormalLike (its values are random)" in text
    assert "vendor::Fast (unknown in op set 3)" in text
    assert "vendor::Faster (unknown in op set 3)" in text
    assert "other::Thing (its op set is not imported)" in text
    assert "rewrite the model" in text
    assert isinstance(caught.value, HalError)


def test_reference_says_from_which_op_set_it_starts_when_a_model_is_older():
    model = parse(
        """g (float[1, 1, 2] x, float[1, 8, 2] w) => (float[1, 1, 1, 2] y) {
            y = LSTM <hidden_size = 2> (x, w, w)
        }""",
        header='ir_version: 3, opset_import: ["" : 6]',
    )
    with pytest.raises(ReferenceUnavailable, match=r"LSTM .op set 6 is too old, the reference starts at 7"):
        reference_outputs(model, {"x": np.zeros((1, 1, 2), np.float32), "w": np.zeros((1, 8, 2), np.float32)})


def test_inputs_are_all_named_when_they_are_missing_or_unknown():
    model = parse("g (float[1] x, float[1] z) => (float[1] y) { y = Add (x, z) }")
    with pytest.raises(InputError) as caught:
        reference_outputs(model, {"x": np.zeros(1, np.float32), "q": np.zeros(1, np.float32)})
    text = str(caught.value)
    assert "the model's inputs are x, z" in text
    assert "input 'z' is missing" in text
    assert "there is no input 'q'" in text


def test_reference_names_the_node_when_it_fails():
    model = parse("g (float[a] x, float[b] z) => (float[c] y) { y = Add (x, z) }")
    model.graph.node[0].name = "sum"
    with pytest.raises(ReferenceUnavailable) as caught:
        reference_outputs(model, {"x": np.zeros(2, np.float32), "z": np.zeros(3, np.float32)})
    text = str(caught.value)
    assert "node Add 'sum' (outputs ['y'])" in text
    assert "could not be broadcast" in text
    assert "check the model and the shapes of its inputs" in text


def test_reference_is_refused_when_weights_are_still_in_external_files():
    model = parse("g (float[1] x) => (float[1] y) <float[1] w = {2.0}> { y = Mul (x, w) }")
    weight = model.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    with pytest.raises(
        ReferenceUnavailable, match=r"1 weights are still in external files.*'w'; load the model"
    ):
        reference_outputs(model, {"x": np.zeros(1, np.float32)})


def test_reference_is_refused_when_an_output_is_a_sequence():
    model = parse("g (float[1] x) => (seq(float[1]) y) { y = SequenceConstruct (x, x) }")
    with pytest.raises(ReferenceUnavailable, match="an output is not a tensor: y is a list"):
        reference_outputs(model, {"x": np.zeros(1, np.float32)})


def test_inputs_and_weights_are_left_alone_when_types_are_already_float64():
    rng = np.random.default_rng(1)
    x, w, b = rng.standard_normal((1, 2, 5)), rng.standard_normal((2, 2, 3)), rng.standard_normal(2)
    kept = [array.copy() for array in (x, w, b)]
    for array in (x, w, b):
        array.flags.writeable = False
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"]),
            helper.make_node("Softmax", ["c"], ["s"]),
            helper.make_node("AveragePool", ["s"], ["y"], kernel_shape=[2]),
        ],
        "g",
        [
            helper.make_tensor_value_info(n, TensorProto.DOUBLE, a.shape)
            for n, a in zip("xwb", (x, w, b), strict=True)
        ],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    before = model.SerializeToString()
    reference_outputs(model, {"x": x, "w": w, "b": b})
    for array, copy in zip((x, w, b), kept, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert onnx.ModelProto.FromString(before) == model


def test_reference_says_so_when_no_node_computes_an_output():
    model = parse("g (float[1] x) => (float[1] y) { z = Neg (x) }")
    with pytest.raises(ReferenceUnavailable, match=r"no node computes the outputs \['y'\]; check the model"):
        reference_outputs(model, {"x": np.zeros(1, np.float32)})


def test_reference_keeps_the_reason_when_onnx_cannot_prepare_the_model():
    model = parse("g (float[1] x, bool c) => (float[1] y) { y = Neg (x) }")
    model.graph.node[0].op_type = "If"
    with pytest.raises(ReferenceUnavailable) as caught:
        reference_outputs(model, {"x": np.zeros(1, np.float32), "c": np.array(True)})
    assert "onnx cannot prepare it (RuntimeError: Attribute 'else_branch' is expected" in str(caught.value)
    assert "check the model with onnx.checker" in str(caught.value)


def test_reference_is_refused_when_functions_cannot_be_expanded():
    model = parse(
        """g (float[1] x) => (float[1] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]> f (a) => (b) { b = local.f (a) }""",
        header='ir_version: 8, opset_import: ["" : 17, "local" : 1]',
    )
    with pytest.raises(ReferenceUnavailable):
        reference_outputs(model, {"x": np.zeros(1, np.float32)})
