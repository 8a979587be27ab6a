"""The error figures of an answer against its reference."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hal.graph.difference import TensorError, tensor_errors

LAW = settings(max_examples=200, deadline=None, derandomize=True, database=None)
FINITE = st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda v: round(v, 3))
ARRAYS = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=4), elements=FINITE)
ANY = hnp.arrays(np.float64, hnp.array_shapes(max_dims=2, max_side=4), elements=st.floats())
EQUAL = TensorError(0.0, 0.0, math.inf, 0)


@LAW
@given(ANY)
def test_a_tensor_equals_itself_when_it_holds_anything(x):
    assert tensor_errors(x, x.copy()) == EQUAL


@LAW
@given(ARRAYS, st.randoms(use_true_random=False))
def test_figures_equal_their_formulas_when_numbers_are_finite(r, random):
    a = r + np.array([random.uniform(0.25, 1) for _ in range(r.size)]).reshape(r.shape)
    found = tensor_errors(r, a)
    assert found.max_abs == pytest.approx(np.abs(a - r).max(), rel=1e-12)
    if np.any(r):
        want = np.linalg.norm((a - r).ravel()) / np.linalg.norm(r.ravel())
        assert found.relative_l2 == pytest.approx(want, rel=1e-9)
        power = np.sum(r**2) / np.sum((r - a) ** 2)
        assert found.sqnr_db == pytest.approx(10 * math.log10(power), rel=1e-6, abs=1e-6)
    else:
        assert found.relative_l2 == math.inf
        assert found.sqnr_db == -math.inf


@LAW
@given(ARRAYS, st.integers(-900, 900))
def test_relative_error_stays_the_same_when_both_sides_are_scaled(r, exponent):
    a = r * 1.25
    if not np.any(r):
        return
    scale = 2.0**exponent
    assert tensor_errors(r * scale, a * scale).relative_l2 == pytest.approx(0.25, rel=1e-12)


@LAW
@given(ARRAYS)
def test_relative_error_is_tiny_and_not_zero_when_one_element_moves_by_little(r):
    a, largest = r.copy(), np.abs(r).argmax()
    a.flat[largest] = np.nextafter(a.flat[largest], np.inf)
    if not np.any(r):
        return
    found = tensor_errors(r, a)
    assert found.relative_l2 > 0.0
    assert found.max_abs > 0.0


def test_nonfinite_numbers_count_as_equal_when_both_sides_have_them():
    r = np.array([np.nan, np.inf, -np.inf, 2.0])
    assert tensor_errors(r, r.copy()) == EQUAL
    found = tensor_errors(r, np.array([np.nan, np.inf, -np.inf, 3.0]))
    assert (found.relative_l2, found.max_abs, found.n_nonfinite) == (0.5, 1.0, 0)


@pytest.mark.parametrize(
    ("reference", "answer", "n"),
    [
        ([1.0, 2.0], [np.nan, 2.0], 1),
        ([np.nan, 2.0], [1.0, 2.0], 1),
        ([np.inf, 2.0], [-np.inf, 2.0], 1),
        ([np.inf, np.nan], [np.nan, np.inf], 2),
        ([np.inf, 2.0], [3e38, 2.0], 1),
    ],
)
def test_error_is_infinite_when_only_one_side_is_not_finite(reference, answer, n):
    found = tensor_errors(np.array(reference), np.array(answer))
    assert found == TensorError(math.inf, math.inf, -math.inf, n)


def test_error_is_infinite_when_the_reference_is_zero_and_the_answer_is_not():
    found = tensor_errors(np.zeros(3), np.array([0.0, 1e-30, 0.0]))
    assert (found.relative_l2, found.max_abs, found.sqnr_db) == (math.inf, 1e-30, -math.inf)
    assert tensor_errors(np.zeros(3), -np.zeros(3)) == EQUAL


def test_shapes_are_never_broadcast_when_they_differ():
    found = tensor_errors(np.zeros((2, 1)), np.zeros((2, 2)))
    assert (found.relative_l2, found.max_abs, found.same_shape) == (math.inf, math.inf, False)
    assert tensor_errors(np.zeros(1), np.zeros(())).same_shape is False


def test_values_are_compared_when_only_the_floating_type_differs():
    r = np.array([1.0, 2.0, 3.0], np.float32)
    found = tensor_errors(r, r.astype(ml_dtypes.bfloat16))
    assert found == TensorError(0.0, 0.0, math.inf, 0, same_dtype=False)
    assert tensor_errors(r.astype(ml_dtypes.float8_e4m3fn), r.astype(np.float16)).relative_l2 == 0.0


def test_nothing_is_compared_when_one_side_is_whole_and_the_other_is_not():
    found = tensor_errors(np.array([1, 2]), np.array([1.0, 2.0]))
    assert found == TensorError(math.inf, math.inf, -math.inf, 0, same_dtype=False)


@pytest.mark.parametrize(
    ("reference", "answer", "share", "largest"),
    [
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9]), 0.25, 5.0),
        (np.array([0, 255], np.uint8), np.array([255, 255], np.uint8), 0.5, 255.0),
        (np.array([-(2**63), 5]), np.array([2**63 - 1, 5]), 0.5, float(2**64)),
        (np.array([-8, 7], ml_dtypes.int4), np.array([7, 7], ml_dtypes.int4), 0.5, 15.0),
        (np.array([True, False]), np.array([False, True]), 1.0, 1.0),
        (np.array(["a", "b"], object), np.array(["a", "c"]), 0.5, 1.0),
        (np.array([b"a"], object), np.array(["a"], object), 0.0, 0.0),
    ],
)
def test_share_of_differing_elements_is_reported_when_there_are_no_fractions(
    reference, answer, share, largest
):
    found = tensor_errors(reference, answer)
    assert (found.relative_l2, found.max_abs) == (share, largest)
    assert found.sqnr_db == (math.inf if share == 0 else pytest.approx(-20 * math.log10(share)))
    assert found.same_dtype


def test_types_of_integers_are_told_apart_when_values_agree():
    assert tensor_errors(np.array([1], np.int32), np.array([1], np.int64)) == TensorError(
        0.0, 0.0, math.inf, 0, same_dtype=False
    )


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.bool_, object])
def test_empty_tensors_are_equal_when_shapes_agree(kind):
    empty = np.zeros((0, 3), kind)
    assert tensor_errors(empty, empty.copy()) == EQUAL


def test_complex_numbers_are_compared_by_magnitude_when_they_differ():
    found = tensor_errors(np.array([3 + 4j]), np.array([3 + 4.5j]))
    assert (found.relative_l2, found.max_abs) == (pytest.approx(0.1), pytest.approx(0.5))


def test_no_norm_overflows_or_vanishes_when_numbers_are_extreme():
    big = np.array([1e308, -1e308])
    assert tensor_errors(big, big / 2).relative_l2 == pytest.approx(0.5)
    assert tensor_errors(big, -big).relative_l2 == pytest.approx(2.0)
    small = np.array([1e-300, 2e-300])
    assert tensor_errors(small, small * 1.5).relative_l2 == pytest.approx(0.5)
