"""Convolution and pooling against loops over every window, written from the standard's formulas."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from hal.graph.reference import ReferenceUnavailable, reference_outputs

LAW = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def run(op_type, opset, *arrays, n_outputs=1, **attributes):
    names = ["" if array is None else f"x{i}" for i, array in enumerate(arrays)]
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if name}
    results = [f"y{i}" for i in range(n_outputs)]
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    graph = helper.make_graph(
        [helper.make_node(op_type, names, results, **attributes)],
        "one",
        [helper.make_tensor_value_info(name, kind, feeds[name].shape) for name, kind in kinds.items()],
        [helper.make_empty_tensor_value_info(name) for name in results],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    outputs = list(reference_outputs(model, feeds).values())
    return outputs[0] if n_outputs == 1 else outputs


@st.composite
def layouts(draw):
    """Attributes of a window over 1 to 3 axes, with an input size it fits into."""
    n = draw(st.integers(1, 3))
    many = lambda low, high: st.lists(st.integers(low, high), min_size=n, max_size=n)  # noqa: E731
    kernel = draw(many(1, 3))
    attributes = {"strides": draw(many(1, 3)), "dilations": draw(many(1, 2))}
    padding = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if padding == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    else:
        attributes["auto_pad"] = padding
    return kernel, attributes, draw(many(5, 7)), draw(st.integers(0, 2**31))


def geometry(size, kernel, attributes, ceil_mode=False):
    """Per axis: padding before, padding after, windows."""
    n, result = len(size), []
    pads = attributes.get("pads", [0] * (2 * n))
    for i in range(n):
        stride, dilation = attributes["strides"][i], attributes["dilations"][i]
        span = (kernel[i] - 1) * dilation + 1
        mode = attributes.get("auto_pad", "NOTSET")
        if mode.startswith("SAME"):
            count = int(np.ceil(size[i] / stride))
            total = max(0, (count - 1) * stride + span - size[i])
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
            result.append((before, total - before, count))
            continue
        count = (size[i] + pads[i] + pads[n + i] - span) / stride + 1
        count = int(np.ceil(count)) if ceil_mode else int(np.floor(count))
        if ceil_mode and (count - 1) * stride >= size[i] + pads[i]:
            count -= 1
        result.append((pads[i], pads[n + i], count))
    return result


def window_taps(position, kernel, attributes, geo):
    """Yield each tap and where it reads the unpadded input for one window."""
    for tap in itertools.product(*map(range, kernel)):
        where = tuple(
            position[i] * attributes["strides"][i] + tap[i] * attributes["dilations"][i] - geo[i][0]
            for i in range(len(kernel))
        )
        yield tap, where


def inside(where, size):
    return all(0 <= w < s for w, s in zip(where, size, strict=True))


@LAW
@given(layouts(), st.sampled_from([(1, 2, 3), (2, 1, 1), (2, 1, 2), (3, 2, 1)]))
def test_conv_equals_a_loop_over_windows_when_attributes_vary(layout, channels):
    kernel, attributes, size, seed = layout
    group, depth, width = channels
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, group * depth, *size)).astype(np.float32)
    w = rng.standard_normal((group * width, depth, *kernel)).astype(np.float32)
    b = rng.standard_normal(group * width).astype(np.float32)
    geo = geometry(size, kernel, attributes)
    want = np.zeros((2, group * width, *(g[2] for g in geo)))
    for position in itertools.product(*(range(g[2]) for g in geo)):
        for tap, where in window_taps(position, kernel, attributes, geo):
            if inside(where, size):
                seen = x[(slice(None), slice(None), *where)].astype(np.float64).reshape(2, group, depth)
                taps = w[(slice(None), slice(None), *tap)].astype(np.float64).reshape(group, width, depth)
                want[(..., *position)] += np.einsum("ngd,gwd->ngw", seen, taps).reshape(2, -1)
    want += b.reshape(1, -1, *(1 for _ in kernel))
    got = run("Conv", 11, x, w, b, group=group, **attributes)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@LAW
@given(layouts(), st.sampled_from([(1, 2, 3), (2, 1, 1), (2, 1, 2), (3, 2, 1)]), st.booleans())
def test_conv_transpose_is_the_adjoint_of_conv_when_attributes_vary(layout, channels, extra):
    # <conv(x), y> = <x, conv_transpose(y)> for the output padding that restores the size of x.
    kernel, attributes, size, seed = layout
    attributes = {key: value for key, value in attributes.items() if key != "auto_pad"}
    attributes.setdefault("pads", [0] * (2 * len(size)))
    group, depth, width = channels
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, group * depth, *size))
    w = rng.standard_normal((group * width, depth, *kernel))
    forward = run("Conv", 11, x, w, group=group, **attributes)
    y = rng.standard_normal(forward.shape)
    fitting = {"output_shape": size} if extra and not any(attributes["pads"]) else {"output_padding": []}
    for i, n in enumerate(size):
        span = (kernel[i] - 1) * attributes["dilations"][i] + 1
        pads = attributes["pads"][i] + attributes["pads"][len(size) + i]
        natural = (forward.shape[2 + i] - 1) * attributes["strides"][i] + span - pads
        if "output_padding" in fitting:
            fitting["output_padding"].append(n - natural)
    back = run("ConvTranspose", 11, y, w, group=group, **attributes, **fitting)
    assert back.shape == x.shape
    assert np.vdot(forward, y) == pytest.approx(np.vdot(x, back), rel=1e-9, abs=1e-9)


@LAW
@given(layouts(), st.booleans(), st.booleans())
def test_pooling_equals_a_loop_over_windows_when_attributes_vary(layout, ceil_mode, with_padding):
    kernel, attributes, size, seed = layout
    x = np.random.default_rng(seed).standard_normal((2, 3, *size)).astype(np.float32)
    geo = geometry(size, kernel, attributes, ceil_mode)
    shape = (2, 3, *(g[2] for g in geo))
    largest, index, mean, norm = np.zeros(shape), np.zeros(shape, int), np.zeros(shape), np.zeros(shape)
    for position in itertools.product(*(range(g[2]) for g in geo)):
        places = [where for _, where in window_taps(position, kernel, attributes, geo)]
        real = [where for where in places if inside(where, size)]
        padded = [
            where
            for where in places
            if all(-g[0] <= w < s + g[1] for w, s, g in zip(where, size, geo, strict=True))
        ]
        values = np.stack([x[(..., *where)] for where in real], axis=-1).astype(np.float64)
        at = (..., *position)
        largest[at] = values.max(axis=-1)
        flat = np.array([np.ravel_multi_index(where, size) for where in real])
        planes = np.arange(6).reshape(2, 3) * int(np.prod(size))
        index[at] = flat[values.argmax(axis=-1)] + planes
        mean[at] = values.sum(axis=-1) / len(padded if with_padding else real)
        norm[at] = np.sqrt((values**2).sum(axis=-1))
    options = {"kernel_shape": kernel, "ceil_mode": int(ceil_mode), **attributes}
    values, indices = run("MaxPool", 12, x, n_outputs=2, **options)
    np.testing.assert_array_equal(values, largest.astype(np.float32))
    np.testing.assert_array_equal(indices, index)
    np.testing.assert_array_equal(run("MaxPool", 12, x, **options), values)
    got = run("AveragePool", 19, x, count_include_pad=int(with_padding), **options)
    np.testing.assert_allclose(got, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(run("LpPool", 18, x, **options), norm, rtol=1e-6, atol=1e-6)


def test_max_pool_numbers_columns_first_when_storage_order_is_one():
    x = np.array([[[[1, 5], [7, 2], [3, 4]]]], dtype=np.float32)
    _, rows = run("MaxPool", 12, x, n_outputs=2, kernel_shape=[3, 1])
    _, columns = run("MaxPool", 12, x, n_outputs=2, kernel_shape=[3, 1], storage_order=1)
    assert rows.ravel().tolist() == [2, 1]
    assert columns.ravel().tolist() == [1, 3]


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16, np.int8, np.uint8])
def test_max_pool_keeps_the_type_when_numbers_are_not_float32(kind):
    x = np.array([[[3, 1, 2, 0]]]).astype(kind)
    got = run("MaxPool", 12, x, kernel_shape=[2], strides=[2], pads=[1, 1])
    assert got.dtype == x.dtype
    assert got.astype(int).tolist() == [[[3, 2, 0]]]


def test_conv_keeps_the_digits_of_float32_when_a_float32_sum_would_lose_them():
    x = np.array([[[1e8, 1.0, -1e8]]], dtype=np.float32)
    assert run("Conv", 11, x, np.ones((1, 1, 3), np.float32)).item() == 1.0


def test_conv_integer_subtracts_zero_points_when_they_are_given():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (1, 2, 5, 5)).astype(np.uint8)
    w = rng.integers(-128, 128, (4, 1, 3, 3)).astype(np.int8)
    got = run("ConvInteger", 10, x, w, np.array(128, np.uint8), np.array(3, np.int8), group=2, pads=[1] * 4)
    centred, taps = x.astype(np.float64) - 128, w.astype(np.float64) - 3
    np.testing.assert_array_equal(got, run("Conv", 11, centred, taps, group=2, pads=[1] * 4))
    assert got.dtype == np.int32


def test_conv_says_which_axis_is_too_short_when_the_kernel_does_not_fit():
    with pytest.raises(ReferenceUnavailable) as caught:
        run("Conv", 11, np.zeros((1, 1, 5, 2), np.float32), np.zeros((1, 1, 3, 3), np.float32))
    assert "Conv" in str(caught.value)
    assert "a window of 3 elements does not fit into 2 elements" in str(caught.value)
    assert "spatial axis 1" in str(caught.value)


def test_conv_transpose_grows_at_the_end_when_output_shape_exceeds_what_the_kernel_reaches():
    x = np.ones((1, 1, 2), np.float32)
    got = run("ConvTranspose", 11, x, np.ones((1, 1, 1), np.float32), strides=[2], output_shape=[5])
    assert got.tolist() == [[[1.0, 0.0, 1.0, 0.0, 0.0]]]
