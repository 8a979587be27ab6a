"""What a bundle holds, judged as a stranger's: records, graphs and options."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hal import plugins as registry
from hal.backend import OptionSpec
from hal.errors import BundleError
from hal.graph import interface
from hal.graph.reference import reference_outputs
from hal.profiling import environment
from hal.records.plan import Plan
from hal.records.profile import Profile
from hal.session import bundle
from hal.session.bundle_contents import (
    Contents,
    Provenance,
    check_options,
    contents_of,
    graph_of,
    judged,
    members_of,
)
from tests.unit.bundled import graph, plan_of, profile_of

replace = msgspec.structs.replace
CPU = "cpu:0/fake/fp32"
GRAPH = graph()
NODES = tuple(GRAPH.nodes)


def contents(**changes: object) -> Contents:
    """Of a small model, on one target."""
    made = {
        "model": GRAPH.to_proto().SerializeToString(),
        "plan": plan_of(GRAPH, (CPU, NODES)),
        "profile": profile_of(GRAPH, CPU),
        "provenance": Provenance(
            hal_version="0.1.0",
            created="2026-01-01T00:00:00+00:00",
            model_name=GRAPH.name,
            model_digest=GRAPH.digest,
            environment=environment.describe(registry.installed()),
            plugins=(),
            places={},
        ),
    }
    return Contents(**{**made, **changes})  # type: ignore[arg-type]  # fields of all types


def proto_with(change: Callable[[onnx.ModelProto], object]) -> Contents:
    """Contents whose model has been changed."""
    proto = GRAPH.to_proto()
    change(proto)
    return contents(model=proto.SerializeToString())


def refused(what: Contents) -> str:
    with pytest.raises(BundleError) as raised:
        graph_of(what, "'m.hal'")
    assert "in 'm.hal'" in raised.value.message
    return raised.value.message


# --- records ---------------------------------------------------------------------------------------------


def test_records_come_back_when_they_are_read():
    made = contents()
    assert contents_of(members_of(made), "'m.hal'") == made


def record(name: str, data: bytes) -> str:
    with pytest.raises(BundleError) as raised:
        contents_of({**members_of(contents()), name: data}, "'m.hal'")
    return raised.value.message


@pytest.mark.parametrize("name", [bundle.PLAN, bundle.PROFILE, bundle.PROVENANCE])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\x80\x04.",
        b'{"schema_version": 1, "hal_version": "\xff"}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_records_are_refused_when_they_are_none(name, data):
    told = record(name, data)
    assert f"{name!r} in 'm.hal'" in told
    assert "get the bundle again from where it came" in told


@pytest.mark.parametrize("name", [bundle.PLAN, bundle.PROFILE])
def test_records_are_refused_when_a_newer_hal_wrote_them(name):
    newer = {"schema_version": 99, "hal_version": "9.0"}
    assert "was written by hal 9.0 in version 99 of the format" in record(name, msgspec.json.encode(newer))


def test_records_are_refused_when_they_are_of_different_models():
    other = graph(scale=2.0)
    told = record(bundle.PROFILE, msgspec.json.encode(profile_of(other, CPU)))
    assert "plan, profile and provenance in 'm.hal' are of different models" in told
    assert GRAPH.digest[:12] in told
    assert other.digest[:12] in told


@pytest.mark.parametrize("target", ["os.system", "cpu:0/../fp32", "cpu:0/fake/fp32+x", "cpu:0/fake/fp13"])
def test_records_are_refused_when_a_target_is_none(target):
    plan = msgspec.json.encode(plan_of(GRAPH, (target, NODES)))
    assert "'m.hal' names no target: " in record(bundle.PLAN, plan)
    made = profile_of(GRAPH, CPU)
    profile = replace(made, targets=(replace(made.targets[0], target=target),))
    assert "'m.hal' names no target: " in record(bundle.PROFILE, msgspec.json.encode(profile))


# --- graphs ----------------------------------------------------------------------------------------------


def test_a_graph_computes_the_same_when_it_comes_out_of_a_bundle():
    found = graph_of(contents(), "'m.hal'")
    assert (found.name, found.digest, found.signature) == (GRAPH.name, GRAPH.digest, GRAPH.signature)
    assert tuple(found.nodes) == NODES
    inputs = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
    expected = reference_outputs(GRAPH.to_proto(), inputs)
    for proto in (found.to_proto(), onnx.ModelProto.FromString(found.serialized())):
        np.testing.assert_array_equal(reference_outputs(proto, inputs)["y"], expected["y"])
    found.release()
    again = onnx.ModelProto.FromString(found.serialized())
    np.testing.assert_array_equal(reference_outputs(again, inputs)["y"], expected["y"])


def test_the_bytes_are_handed_on_as_they_came_until_they_are_released():
    made = contents()
    found = graph_of(made, "'m.hal'")
    assert found.serialized() is made.model
    found.release()
    assert found.serialized() is not made.model


def _external(tensor: TensorProto) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    for key, value in {"location": "../../etc/passwd", "offset": "0", "length": "64"}.items():
        tensor.external_data.add(key=key, value=value)


def external_weight(proto: onnx.ModelProto) -> None:
    _external(proto.graph.initializer[0])


def external_constant(proto: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.ones(4, np.float32), "c")
    _external(value)
    proto.graph.node.append(helper.make_node("Constant", [], ["unused"], value=value))


def external_in_a_branch(proto: onnx.ModelProto) -> None:
    inner = numpy_helper.from_array(np.ones(4, np.float32), "deep")
    _external(inner)
    ends = [helper.make_tensor_value_info("deep", TensorProto.FLOAT, (4,))]
    branch = helper.make_graph([], "branch", [], ends, initializer=[inner])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    proto.graph.node.append(
        helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch)
    )


def external_in_a_function(proto: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.ones(4, np.float32), "hidden")
    _external(value)
    node = helper.make_node("Constant", [], ["y"], value=value)
    opset = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("mine", "f", [], ["y"], [node], opset))


def external_and_sparse(proto: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.ones(1, np.float32), "thin")
    _external(value)
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "at")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(value, indices, [4]))


@pytest.mark.parametrize(
    "change",
    [external_weight, external_constant, external_in_a_branch, external_in_a_function, external_and_sparse],
)
def test_a_model_is_refused_when_its_data_lies_in_another_file(change):
    told = refused(proto_with(change))
    assert "the model in 'm.hal' cannot be used" in told
    assert "lies in another file" in told or "cannot be found from bytes" in told


def native(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(
        helper.make_node(
            "EPContext", [], ["unused"], name="ctx", domain="com.microsoft", ep_cache_context="/tmp/x.so"
        )
    )


def native_in_a_function(proto: onnx.ModelProto) -> None:
    node = helper.make_node("EPContext", [], ["y"], name="ctx", domain="com.microsoft")
    opset = [helper.make_opsetid("com.microsoft", 1)]
    proto.functions.append(helper.make_function("mine", "f", [], ["y"], [node], opset))


@pytest.mark.parametrize("change", [native, native_in_a_function])
def test_a_model_is_refused_when_it_holds_native_code(change):
    assert "node 'ctx' is a EPContext, which holds or names native code" in refused(proto_with(change))


def test_a_model_is_refused_when_it_has_parts_for_training():
    assert "it has parts for training" in refused(proto_with(lambda proto: proto.training_info.add()))


@pytest.mark.parametrize("model", [b"", b"\x80\x04.", b"PK\3\4", b"\x08\x09", bytes(1000)])
def test_a_model_is_refused_when_it_is_none(model):
    assert "the model in 'm.hal' cannot be used: " in refused(contents(model=model))


def test_a_model_is_refused_when_its_graph_is_broken():
    def cut(proto):
        del proto.graph.node[1]

    assert "which nothing before it writes" in refused(proto_with(cut))


def test_a_model_is_refused_when_it_is_not_the_plans():
    told = refused(contents(model=_wider().SerializeToString()))
    assert "the model in 'm.hal' is not the plan's: it has 3 nodes, inputs x: float32[2, 5]" in told
    assert "the plan was made for 3 nodes, x: float32[2, 4] and y: float32[2, 4]" in told


def _wider() -> onnx.ModelProto:
    proto = GRAPH.to_proto()
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 5
    return proto


def test_a_model_is_refused_when_it_says_wrongly_how_it_is_called():
    def lie(proto):
        proto.metadata_props.add(key=interface.KEY, value='{"parameters": [], "outputs": 3}')

    assert "how the model is to be called cannot be read" in refused(proto_with(lie))


# --- options ---------------------------------------------------------------------------------------------

OFFERED = {
    "cpu:0/fake": (
        OptionSpec(name="cache_dir", kind="str", default="", help="A folder."),
        OptionSpec(name="mode", kind="str", default="plain", choices=("plain", "fast"), help="How."),
        OptionSpec(name="threads", kind="int", default=1, help="How many."),
    )
}


def with_target(name: str) -> tuple[Plan, Profile]:
    return plan_of(GRAPH, (name, NODES)), profile_of(GRAPH, CPU, name)


@pytest.mark.parametrize(
    ("options", "is_fine"),
    [
        ("+mode=fast", True),
        ("+threads=4", True),
        ("+mode=other", False),
        ("+cache_dir=x", False),
        ("+cache_dir=%2Ftmp%2Fx", False),
        ("+unknown=text", False),
        ("+unknown=4", True),
    ],
)
def test_options_are_refused_when_they_are_free_text(options, is_fine):
    plan, profile = with_target(CPU + options)
    assert len(judged(profile, OFFERED).targets) == 1 + is_fine
    if is_fine:
        check_options(plan, OFFERED, "'m.hal'")
        return
    with pytest.raises(BundleError) as raised:
        check_options(plan, OFFERED, "'m.hal'")
    name = options[1:].partition("=")[0]
    assert f"'m.hal' sets the option {name!r} of {CPU}" in raised.value.message
    assert "compile without the option" in raised.value.message


def test_options_of_other_places_are_left_out_of_the_profile_when_they_are_text():
    plan, profile = with_target("npu:0/other/fp32+mode=fast")
    check_options(plan, OFFERED, "'m.hal'")  # it is not here, so that it cannot be compiled
    assert [one.target for one in judged(profile, OFFERED).targets] == [CPU]
