from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hal.errors import InputError, ModelError
from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal.profiling.sources import random_inputs, resolve


def model(
    *, dims: tuple[int | str, ...] = ("batch", 4), opset: int = 18, op: str = "Relu"
) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "tiny", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def with_external(folder: Path, location: str, **fields: int) -> Path:
    weights = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        weights.external_data.add(key=key, value=str(value))
    proto = model()
    proto.graph.node[0].op_type = "Add"
    proto.graph.node[0].input.append("w")
    proto.graph.initializer.append(weights)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_load_names_nodes_when_the_file_does_not() -> None:
    graph = Graph.load(model())
    assert list(graph.nodes) == ["Relu_0"]
    assert graph.unbound == ("x[batch, 4]",)


def test_bind_fills_in_shapes_when_given_one_input() -> None:
    graph = Graph.load(model()).bind({"x": (2, 4)})
    assert graph.unbound == ()
    assert graph.signature.outputs[0].shape == (2, 4)
    assert graph.digest != Graph.load(model()).bind({"x": (3, 4)}).digest


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"z": (1, 4)}, "input 'z' is unknown; the model takes x"),
        ({"x": (1, 4, 1)}, r"has 2 dimensions, \[1, 4, 1\] has 3"),
        ({"x": (1, 5)}, r"is fixed to 4 where \[1, 5\] has 5"),
        ({"x": (-1, 4)}, "cannot have a size of -1"),
        ({}, r"dimensions without a number: x\[batch, 4\]; bind them with --shape"),
    ],
)
def test_bind_says_what_is_wrong_when_shapes_do_not_fit(
    shapes: dict[str, tuple[int, ...]], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        Graph.load(model()).bind(shapes)


def test_bind_refuses_when_a_shared_dimension_gets_two_sizes() -> None:
    proto = model()
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ("batch",)))
    with pytest.raises(InputError, match="dimension 'batch' is 2 for one input and 3 for 'z'"):
        Graph.load(proto).bind({"x": (2, 4), "z": (3,)})
    assert Graph.load(proto).bind({"x": (2, 4)}).signature.inputs[1].shape == (2,)


def test_save_keeps_the_answers_when_weights_lie_beside_the_model(tmp_path: Path) -> None:
    proto = model(dims=(2, 4096))
    weights = np.random.default_rng(0).random((4096, 4200), np.float32)
    proto.graph.node[0].op_type = "MatMul"
    proto.graph.node[0].input.append("w")
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 4200)))
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    graph = Graph.load(proto)
    path = graph.save(tmp_path)
    assert (tmp_path / "model.data").stat().st_size >= weights.nbytes
    again = Graph.load_prepared(path, name=graph.name, digest=graph.digest)
    assert again.serialized() == path
    inputs = {"x": np.ones((2, 4096), np.float32)}
    np.testing.assert_array_equal(
        reference_outputs(again.to_proto(), inputs)["y"], reference_outputs(graph.to_proto(), inputs)["y"]
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty; expected an ONNX model"),
        (b"\x00" * 100, "is not a whole ONNX model"),
        (b"garbage, no protobuf at all", "is not a whole ONNX model|has no graph with outputs"),
        (b"PK\x03\x04rest", "a zip archive .PyTorch .pt or Keras.: export it to ONNX first"),
        (b"\x80\x02rest", "a Python pickle"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"GGUFrest", "a GGUF file"),
        (b"\x00\x00\x00\x00TFL3", "a TFLite file"),
        (b"<?xml version='1.0'?>", "OpenVINO IR"),
    ],
)
def test_load_says_what_the_file_is_when_it_is_not_onnx(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=text):
        Graph.load(path)


def test_load_says_so_when_the_file_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"there is no file '.*nothing.onnx'; expected an ONNX model or demo:NAME"
    ):
        Graph.load(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match="is a folder; expected an ONNX file"):
        Graph.load(tmp_path)


def test_load_says_so_when_the_file_is_truncated_anywhere(tmp_path: Path) -> None:
    proto = model()
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(50, np.float32), "unused"))
    whole = proto.SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            Graph.load(path)
        except ModelError:
            continue
        # A cut between two fields leaves a valid, smaller model; protobuf has no end mark.
        assert onnx.ModelProto.FromString(whole[:length]).graph.output


def test_load_names_versions_when_the_opset_is_too_new() -> None:
    with pytest.raises(
        ModelError, match=r"needs operator set 9999, onnx .* knows up to \d+; export with a lower"
    ):
        Graph.load(model(opset=9999))


def test_load_names_the_operator_when_no_version_has_it() -> None:
    with pytest.raises(
        ModelError, match=r"operator 'Wonder' is not in the ai.onnx domain of any known version"
    ):
        Graph.load(model(op="Wonder"))
    with pytest.raises(ModelError, match=r"operator 'Gelu' does not exist in ai.onnx version 11"):
        Graph.load(model(op="Gelu", opset=11))


def test_load_names_all_problems_at_once_when_there_are_several() -> None:
    proto = model(op="Wonder")
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match=r"(?s)Wonder.*reads 'nowhere', which nothing before it writes"):
        Graph.load(proto)


def test_load_names_the_output_when_no_node_writes_it() -> None:
    proto = model()
    proto.graph.output[0].name = "other"
    with pytest.raises(ModelError, match="output 'other' is written by no node"):
        Graph.load(proto)


@pytest.mark.parametrize(
    ("location", "fields", "text"),
    [
        ("weights.bin", {}, r"\('weights.bin'\) is missing; expected the file beside the model"),
        ("../outside.bin", {}, "lies outside the model's folder"),
        ("/etc/hostname", {}, "lies outside the model's folder"),
        ("", {}, "lies outside the model's folder"),
        ("short.bin", {"offset": 0, "length": 16}, "is 8 bytes; the model wants 16 bytes at offset 0"),
        ("short.bin", {"offset": -4, "length": 4}, "is 8 bytes; the model wants 4 bytes at offset -4"),
        ("short.bin", {"offset": "many", "length": 4}, "offset or length that is no number"),
        ("link.bin", {}, "lies outside the model's folder"),
    ],
)
def test_load_refuses_external_data_when_it_is_absent_or_outside(
    tmp_path: Path, location: str, fields: dict[str, int], text: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(b"\0" * 16)
    (folder / "short.bin").write_bytes(b"\0" * 8)
    os.symlink(tmp_path / "outside.bin", folder / "link.bin")
    with pytest.raises(ModelError, match=text):
        Graph.load(with_external(folder, location, **fields))


def damage_output_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))


def damage_input_twice(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(proto.graph.input[0])


def damage_element_type(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = 99


def damage_kind(proto: onnx.ModelProto) -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    proto.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(element))


def damage_weights(proto: onnx.ModelProto) -> None:
    weights = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    weights.raw_data = weights.raw_data[:-1]
    proto.graph.initializer.append(weights)


def damage_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.add(name="untyped")


def damage_branch(proto: onnx.ModelProto) -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["nowhere"], ["z"])], "inner", [], [proto.graph.output[0]]
    )
    inner.output[0].name = "z"
    proto.graph.node.append(helper.make_node("If", ["x"], ["q"], then_branch=inner, else_branch=inner))


def damage_location(proto: onnx.ModelProto) -> None:
    weights = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="a\0b")
    proto.graph.initializer.append(weights)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (damage_output_twice, "writes 'y', which is written before"),
        (damage_input_twice, "input 'x' is declared twice"),
        (damage_element_type, "element type 99, which onnx does not define"),
        (damage_kind, "input 'x' is declared as sequence; only tensors can be given"),
        (damage_weights, r"weights 'w' have 15 bytes; \[4\] of type 1 need 16"),
        (damage_attribute, "has an attribute 'untyped' without a type"),
        (damage_branch, "reads 'nowhere', which nothing before it writes"),
        (damage_location, "has a zero byte in its name"),
    ],
)
def test_load_gives_one_clear_error_when_the_graph_is_damaged(
    tmp_path: Path, damage: Callable[[onnx.ModelProto], None], text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    proto = model()
    damage(proto)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=text):
        Graph.load(path)
    assert capfd.readouterr() == ("", "")


def test_load_counts_the_rest_when_problems_are_many() -> None:
    proto = model()
    proto.graph.node.extend(helper.make_node("Relu", [f"no{i}"], [f"o{i}"]) for i in range(50))
    with pytest.raises(ModelError, match="and 30 more of the kind"):
        Graph.load(proto)


def test_bind_gives_a_rank_when_the_file_has_none() -> None:
    proto = model()
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    graph = Graph.load(proto)
    assert graph.unbound == ("x[...]",)
    bound = graph.bind({"x": (2, 3)})
    assert bound.signature.inputs[0].shape == (2, 3)
    assert bound.signature.outputs[0].shape == (2, 3)


def test_check_inputs_finds_nan_when_the_type_is_bfloat16() -> None:
    proto = model(dims=(2,))
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    with pytest.raises(InputError, match="holds 2 NaN of 2 values"):
        Graph.load(proto).check_inputs({"x": np.full(2, np.nan, ml_dtypes.bfloat16)})


def test_load_reads_external_data_when_it_is_beside_the_model(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(values.tobytes())
    path = with_external(tmp_path, "weights.bin", offset=0, length=16)
    graph = Graph.load(path).bind({"x": (1, 4)})
    answer = reference_outputs(graph.to_proto(), {"x": np.zeros((1, 4), np.float32)})["y"]
    np.testing.assert_array_equal(answer[0], values)
    first = graph.digest
    (tmp_path / "weights.bin").write_bytes((values + 1).tobytes())
    assert Graph.load(path).bind({"x": (1, 4)}).digest != first


def test_load_refuses_bytes_when_the_weights_lie_elsewhere(tmp_path: Path) -> None:
    data = with_external(tmp_path, "weights.bin").read_bytes()
    with pytest.raises(ModelError, match="cannot be found from bytes; load the model from its file"):
        Graph.load(data)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((2, 4), np.float64), "input 'x' has type float64; expected float32"),
        (np.zeros((2, 5), np.float32), r"input 'x' has shape \[2, 5\]; expected \[2, 4\]"),
        (np.zeros((2, 4), ">f4"), "input 'x' is big-endian; expected the machine's byte order"),
        (np.full((2, 4), np.nan, np.float32), "input 'x' holds 8 NaN of 8 values"),
    ],
)
def test_check_inputs_names_the_input_when_it_does_not_fit(array: np.ndarray, text: str) -> None:
    graph = Graph.load(model(dims=(2, 4)))
    with pytest.raises(InputError, match=text):
        graph.check_inputs({"x": array})


def test_check_inputs_names_all_when_names_do_not_fit() -> None:
    graph = Graph.load(model(dims=(2, 4)))
    with pytest.raises(
        InputError, match=r"(?s)input 'q' is unknown; the model takes x.*input 'x' is missing"
    ):
        graph.check_inputs({"q": np.zeros(1, np.float32)})


def test_random_inputs_stay_inside_a_table_when_they_index_it() -> None:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, (3, 50))
    mask = helper.make_tensor_value_info("mask", TensorProto.INT64, (3,))
    out = [
        helper.make_tensor_value_info(n, t, None)
        for n, t in (("y", TensorProto.FLOAT), ("m", TensorProto.INT64))
    ]
    table = numpy_helper.from_array(np.zeros((7, 2), np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["y"]),
        helper.make_node("Identity", ["mask"], ["m"]),
    ]
    graph = Graph.load(helper.make_model(helper.make_graph(nodes, "g", [ids, mask], out, [table])))
    made = random_inputs(graph)
    assert made["ids"].min() >= 0
    assert 3 < made["ids"].max() < 7
    assert (made["mask"] == 1).all()
    np.testing.assert_array_equal(made["ids"], random_inputs(graph)["ids"])


def test_resolve_names_importers_when_the_object_is_no_model() -> None:
    with pytest.raises(ModelError, match="dict is not a model hal can read"):
        resolve({})


def test_resolve_refuses_when_shape_and_input_disagree() -> None:
    with pytest.raises(InputError, match=r"is given as \[2, 4\] and --shape says \[3, 4\]"):
        resolve(Graph.load(model()), {"x": np.zeros((2, 4), np.float32)}, shapes={"x": (3, 4)})


def test_digest_is_the_same_when_loaded_twice() -> None:
    assert Graph.load(model()).digest == Graph.load(model()).digest
    assert json.dumps(Graph.load(model()).digest)
