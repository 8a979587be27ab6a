"""How models are called: by position, by name, nested as their framework has them; and what they return."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from hal.backend import Signature, TensorSpec
from hal.errors import InputError, ModelError
from hal.graph.interface import (
    KEY,
    Constant,
    Fields,
    Interface,
    Items,
    Leaf,
    Parameter,
    Record,
    Tree,
    built,
    read,
    write,
)
from hal.session.calling import Calling
from hal.testing import small_graph

SIGNATURE = Signature(
    (TensorSpec("x", "float32", (2, 3)), TensorSpec("a", "float32", (1,)), TensorSpec("b", "int64", (2,))),
    (TensorSpec("y", "float32", (2, 3)), TensorSpec("z", "float32", (1,))),
)
#: forward(x, scale={"a": ..., "parts": [..., ...]}, mode="fast") -> {"scaled": y, "rest": (z, None)}
NESTED = Interface(
    (
        Parameter("x", Leaf("x")),
        Parameter("scale", Fields("dict", ("a", "parts"), (Leaf("a"), Items("list", (Leaf("b"),))))),
        Parameter("mode", Constant("fast")),
    ),
    Fields("dict", ("scaled", "rest"), (Leaf("y"), Items("tuple", (Leaf("z"), Constant(None))))),
)


def flat() -> Calling:
    return Calling("m", SIGNATURE)


def nested() -> Calling:
    return Calling("m", SIGNATURE, NESTED)


def refusal(calling: Calling, *args: Any, **named: Any) -> str:
    with pytest.raises(InputError) as caught:
        calling.bind(args, named)
    return caught.value.message


# --- by position and by name ----------------------------------------------------------------------------


def test_tensors_are_found_when_given_by_position_by_name_or_in_a_dict() -> None:
    assert flat().bind((1, 2, 3), {}) == [1, 2, 3]
    assert flat().bind((1,), {"b": 3, "a": 2}) == [1, 2, 3]
    assert flat().bind((), {"b": 3, "a": 2, "x": 1}) == [1, 2, 3]
    assert flat().bind(({"b": 3, "a": 2, "x": 1},), {}) == [1, 2, 3]


def test_all_faults_are_told_at_once_when_inputs_do_not_fit() -> None:
    text = refusal(flat(), 1, x=1, c=4)
    assert text.startswith("the inputs do not fit 'm':")
    assert "input 'x' was given by position and by name; give it once" in text
    assert "input 'c' is unknown; the model takes x, a, b" in text
    assert "input 'a' is missing; expected float32[1]" in text
    assert "input 'b' is missing; expected int64[2]" in text


def test_too_many_inputs_are_refused() -> None:
    assert "4 inputs were given by position; expected at most 3: x, a, b" in refusal(flat(), 1, 2, 3, 4)


def test_feeds_are_refused_when_they_are_no_dict() -> None:
    with pytest.raises(InputError, match="the feeds are a list; expected a dict of input name to tensor"):
        flat().feeds([1, 2, 3])


# --- nested ---------------------------------------------------------------------------------------------


def test_tensors_are_found_in_arguments_when_the_model_has_parameters() -> None:
    scale = {"a": 2, "parts": [3]}
    for args, named in (
        ((1, scale), {}),
        ((1,), {"scale": scale}),
        ((), {"scale": scale, "x": 1}),
        (({"scale": scale, "x": 1},), {}),
        ((1, scale, "fast"), {}),
        ((1,), {"scale": scale, "mode": "fast"}),
        ((), {"x": 1, "a": 2, "b": 3}),  # by the names of the graph
    ):
        assert nested().bind(args, named) == [1, 2, 3]


def test_a_dict_is_the_argument_when_the_first_parameter_takes_one() -> None:
    tree = Fields("dict", ("p", "q", "r"), (Leaf("x"), Leaf("a"), Leaf("b")))
    calling = Calling("m", SIGNATURE, Interface((Parameter("batch", tree),), Leaf("y")))
    given = {"r": 3, "p": 1, "q": 2}
    assert calling.bind((given,), {}) == calling.bind(({"batch": given},), {}) == [1, 2, 3]


def test_the_way_to_a_tensor_is_told_when_it_is_nested() -> None:
    text = refusal(nested(), 1, {"parts": [3], "c": 1})
    assert "input 'scale' has 'c', which is unknown; expected a, parts" in text
    assert "input \"scale['a']\" is missing; expected float32[1]" in text
    text = refusal(nested(), 1, {"a": 2, "parts": (3, 4)})
    assert text.endswith("input \"scale['parts']\" is a tuple of 2; expected a list or tuple of 1")
    assert refusal(nested(), 1, 2).endswith("input 'scale' is an int; expected a dict of a, parts")


def test_another_constant_is_refused() -> None:
    scale = {"a": 2, "parts": [3]}
    text = refusal(nested(), 1, scale, mode="slow")
    assert "input 'mode' is 'slow'; the model was exported with 'fast', which is now fixed" in text
    assert "input 'mode' is a ndarray; the model" in refusal(nested(), 1, scale, mode=np.ones(2))


def test_examples_are_nested_as_the_model_takes_them() -> None:
    one, two, three = (np.full(1, number) for number in (1, 2, 3))
    example = nested().example([one, two, three])
    assert example == {"x": one, "scale": {"a": two, "parts": [three]}, "mode": "fast"}
    unnamed = Interface(
        (Parameter("", Items("tuple", (Leaf("x"), Leaf("a")))), Parameter("b", Leaf("b"))), Leaf("y")
    )
    assert Calling("m", SIGNATURE, unnamed).example([one, two, three]) == ((one, two), three)


# --- what is given ----------------------------------------------------------------------------------------


def arrays() -> list[np.ndarray]:
    return [np.ones((2, 3), np.float32), np.ones(1, np.float32), np.ones(2, np.int64)]


def test_arrays_are_passed_as_they_are_when_they_fit() -> None:
    given = arrays()
    fitted, misfit = flat().fit(given)
    assert misfit == ""
    assert all(one is other for one, other in zip(fitted, given, strict=True))


def test_other_shapes_are_told_apart_from_what_never_fits() -> None:
    x, a, b = arrays()
    fitted, misfit = flat().fit([x[:1], a, b])
    assert fitted[0].shape == (1, 3)
    assert misfit == "the inputs do not fit 'm': input 'x' is float32[1, 3]; expected float32[2, 3]"


def test_all_faults_of_tensors_are_told_at_once() -> None:
    x, a, _ = arrays()
    with pytest.raises(InputError) as caught:
        nested().fit([x.astype(">f4"), a.astype(np.float64), [1, 2]])
    text = caught.value.message
    assert "input 'x' is big-endian; expected the machine's byte order" in text
    assert "input \"scale['a']\" is float64[1]; expected float32[1]" in text
    assert "input \"scale['parts'][0]\": list is not a tensor" in text
    assert "expected int64[2]" in text


def test_text_of_fixed_width_becomes_objects() -> None:
    signature = Signature((TensorSpec("s", "string", (2,)),), (TensorSpec("y", "int64", ()),))
    (fitted,), misfit = Calling("m", signature).fit([np.array(["a", "bc"])])
    assert misfit == ""
    assert fitted.dtype == object
    assert list(fitted) == ["a", "bc"]


# --- what is returned -------------------------------------------------------------------------------------


def test_outputs_are_bare_or_a_tuple_when_nothing_is_recorded() -> None:
    assert flat().arrange([1, 2]) == (1, 2)
    one = Signature(SIGNATURE.inputs, SIGNATURE.outputs[:1])
    assert Calling("m", one).arrange([1]) == 1


def test_outputs_have_the_structure_that_was_recorded() -> None:
    assert nested().arrange([1, 2]) == {"scaled": 1, "rest": (2, None)}
    assert nested().output("z") == 1
    with pytest.raises(InputError, match="'m' has no output 'w'; expected some of y, z"):
        nested().output("w")


def test_structures_are_built_of_every_kind() -> None:
    pair = (Leaf("y"), Leaf("z"))
    tensors = {"y": 1, "z": 2}
    assert built(Items("list", pair), tensors) == [1, 2]
    assert built(Fields("dict", ("p", 7), pair), tensors) == {"p": 1, 7: 2}
    point = built(Fields("namedtuple", ("p", "q"), pair, "Point"), tensors)
    assert (point.p, point.q, type(point).__name__) == (1, 2, "Point")
    assert isinstance(point, tuple)


def test_records_are_read_by_name_attribute_and_number() -> None:
    record = built(Fields("record", ("logits", "hidden"), (Leaf("y"), Leaf("z"))), {"y": 1, "z": 2})
    assert isinstance(record, Record)
    assert (record.logits, record["hidden"], record[0], record[1], record[:1]) == (1, 2, 1, 2, (1,))
    assert list(record) == ["logits", "hidden"]
    with pytest.raises(AttributeError, match="there is no output 'loss'; there are logits, hidden"):
        _ = record.loss


# --- in the file ------------------------------------------------------------------------------------------


def add() -> ir.Model:
    return small_graph("add").model.clone()


DEEP = '{"parameters":[],"outputs":' + '{"type":"items","kind":"list","items":[' * 100_000
ADD = Interface((Parameter("x", Leaf("x")), Parameter("y", Leaf("y"))), Items("tuple", (Leaf("z"),)))


def test_an_interface_is_read_as_it_was_written() -> None:
    model = add()
    assert read(model) is None
    write(model, ADD)
    assert read(model) == ADD
    assert read(ir.from_proto(ir.to_proto(model))) == ADD


def test_a_damaged_interface_is_refused() -> None:
    model = add()
    for text in ("{", "[]", '{"parameters": 1}', DEEP):
        model.metadata_props[KEY] = text
        with pytest.raises(ModelError, match="how the model is to be called cannot be read") as caught:
            read(model)
        assert "remove 'hal.interface' from the model's metadata" in caught.value.message


@pytest.mark.parametrize(
    ("parameters", "outputs", "fault"),
    [
        (
            ADD.parameters[:1],
            ADD.outputs,
            "its parameters hold the tensors ['x']; expected each of ['x', 'y'] once",
        ),
        ((*ADD.parameters, *ADD.parameters), ADD.outputs, "expected each of ['x', 'y'] once"),
        (ADD.parameters, Leaf("w"), "it returns ['w']; expected some of ['z']"),
        (ADD.parameters, Fields("dict", (), (Leaf("z"),)), "a dict has the names [] for 1 values"),
        (
            ADD.parameters,
            Fields("namedtuple", ("_replace",), (Leaf("z"),), "import os"),
            "a namedtuple has the names ['import os', '_replace']; expected identifiers",
        ),
    ],
)
def test_an_interface_is_refused_when_it_does_not_fit(
    parameters: tuple[Parameter, ...], outputs: Tree, fault: str
) -> None:
    model = add()
    write(model, Interface(parameters, outputs))
    with pytest.raises(ModelError) as caught:
        read(model)
    assert fault in caught.value.message
