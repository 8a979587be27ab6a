"""The cache of reference answers: what survives it, what its keys depend on, and what it does when broken."""

import logging

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, parser

from hal.graph.reference import cache as cache_module
from hal.graph.reference import cached_reference
from hal.graph.reference.cache import reference_key

MODEL = parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]>'
    "g (float[2] x) => (float[2] y, int64[1] n) { y = Neg (x) n = Shape (x) }"
)
X = {"x": np.array([1.0, np.nan], np.float32)}


class Loader:
    """Counts how often the model was needed."""

    def __init__(self, model=MODEL):
        self.model, self.n_calls = model, 0

    def __call__(self):
        self.n_calls += 1
        return self.model


def identity(array):
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y/1:0"])],
        "g",
        [helper.make_tensor_value_info("x", kind, array.shape)],
        [helper.make_tensor_value_info("y/1:0", kind, array.shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])


def test_answers_come_from_the_file_when_asked_twice(tmp_path):
    loader = Loader()
    first = cached_reference("m", loader, X, tmp_path / "new")
    second = cached_reference("m", loader, X, tmp_path / "new")
    assert loader.n_calls == 1
    assert list(first) == list(second) == ["y", "n"]
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == second[name].dtype
    second["y"][0] = 5.0  # the caller owns what it gets
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".npz"]


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, -0.0]], ml_dtypes.bfloat16),
        np.array([1.5, np.nan], ml_dtypes.float8_e4m3fn),
        np.array([1.5, 2.0], ml_dtypes.float8_e5m2),
        np.array([-8, 7], ml_dtypes.int4),
        np.array([0, 15], ml_dtypes.uint4),
        np.array([0.5, 6.0], ml_dtypes.float4_e2m1fn),
        np.array(3, np.int64),
        np.zeros((0, 3), np.float16),
        np.array([True, False]),
        np.array([1 + 2j], np.complex64),
        np.array(["grüße", "", "a\x00"], object),
    ],
    ids=lambda array: array.dtype.name,
)
def test_every_type_survives_when_it_goes_through_the_cache(tmp_path, array):
    loader = Loader(identity(array))
    first = cached_reference("m", loader, {"x": array}, tmp_path)["y/1:0"]
    second = cached_reference("m", loader, {"x": array}, tmp_path)["y/1:0"]
    assert loader.n_calls == 1
    assert (second.dtype, second.shape) == (array.dtype, array.shape)
    assert second.tolist() == first.tolist() or second.tobytes() == first.tobytes()


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        hnp.arrays(
            st.sampled_from([np.float32, np.int8, np.bool_]), hnp.array_shapes(max_dims=2, max_side=3)
        ),
        max_size=3,
    )
)
def test_key_ignores_order_and_layout_when_contents_are_the_same(inputs):
    turned = {name: np.asfortranarray(inputs[name]) for name in reversed(inputs)}
    assert reference_key("m", inputs) == reference_key("m", turned)
    assert reference_key("m", inputs) != reference_key("other", inputs)


def test_key_differs_when_anything_the_answers_depend_on_does(monkeypatch):
    x = np.arange(4, dtype=np.int32)
    keys = [
        reference_key("m", {"x": x}),
        reference_key("n", {"x": x}),
        reference_key("m", {"z": x}),
        reference_key("m", {"x": x.astype(np.int64)}),
        reference_key("m", {"x": x.view(np.float32)}),
        reference_key("m", {"x": x.reshape(2, 2)}),
        reference_key("m", {"x": x + 1}),
        reference_key("m", {"x": x, "z": x}),
        reference_key("m", {"x": np.array(["ab", "c"], object)}),
        reference_key("m", {"x": np.array(["a", "bc"], object)}),
    ]
    monkeypatch.setattr(cache_module, "REFERENCE_VERSION", cache_module.REFERENCE_VERSION + 1)
    keys.append(reference_key("m", {"x": x}))
    monkeypatch.setattr(onnx, "__version__", "0.0")
    keys.append(reference_key("m", {"x": x}))
    assert len(set(keys)) == len(keys)


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "garbage":
        path.write_bytes(b"\x80\x04garbage" * 10)
    elif how == "flipped":
        data[data.index(b'"name"')] ^= 0xFF  # inside a member, not in the archive's padding
        path.write_bytes(data)
    elif how == "exchanged":
        # Sound as an archive, but not what was written: only the checksum can tell.
        with np.load(path) as stored:
            entries = dict(stored)
        entries["data0"] = entries["data0"] + 1
        np.savez(path, **entries)
    else:
        np.savez(path, other=np.zeros(1))


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "flipped", "exchanged", "foreign"])
def test_answers_are_computed_again_and_it_is_said_when_the_file_is_damaged(tmp_path, caplog, how):
    loader = Loader()
    want = cached_reference("m", loader, X, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    damage(path, how)
    with caplog.at_level(logging.WARNING, logger="hal"):
        got = cached_reference("m", loader, X, tmp_path)
    np.testing.assert_array_equal(got["y"], want["y"])
    assert loader.n_calls == 2
    assert f"the cached reference {path.name} cannot be read" in caplog.text
    assert "computed again and replaced" in caplog.text
    assert path.read_bytes() == whole


def test_answers_are_returned_and_it_is_said_when_the_cache_cannot_be_written(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with caplog.at_level(logging.WARNING, logger="hal"):
        got = cached_reference("m", Loader(), X, blocked)
    assert got["n"].tolist() == [2]
    assert "the reference could not be cached" in caplog.text
    assert "choose another cache folder" in caplog.text


def test_no_part_of_a_file_is_left_when_writing_fails(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with caplog.at_level(logging.WARNING, logger="hal"):
        cached_reference("m", Loader(), X, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "No space left on device" in caplog.text


def test_progress_is_reported_when_answers_are_computed(tmp_path):
    seen = []
    cached_reference("m", Loader(), X, tmp_path, progress=lambda done, n: seen.append((done, n)))
    assert seen == [(1, 2), (2, 2)]
