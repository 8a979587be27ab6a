"""Conversions to types that PyTorch lacks, over the values of float16 and random ones of float32."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from hal_torch.bridge.dtypes import CARRIED
from hal_torch.bridge.narrow import FLOAT8, to_float8, to_float8e8m0, to_narrow
from hal_torch.bridge.unsigned import quotient, remainder, shifted_right

HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
BITS = np.random.default_rng(0).integers(0, 2**32, 300_000, dtype=np.uint32)
FLOATS = np.concatenate([HALVES, BITS.view(np.float32)])
SMALL_FLOATS = [ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT6E2M3, ir.DataType.FLOAT6E3M2]


def same(found: torch.Tensor, expected: np.ndarray) -> bool:
    """Whether all values are equal, NaN equal to NaN."""
    return np.array_equal(found.to(torch.float32).numpy(), expected.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize("saturate", [True, False])
def test_float8_has_the_values_of_the_reference_when_cast_from_any_float(
    dtype: torch.dtype, saturate: bool
) -> None:
    wanted = getattr(ml_dtypes, str(dtype).removeprefix("torch."))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = numpy_helper.saturate_cast(FLOATS, np.dtype(wanted)) if saturate else FLOATS.astype(wanted)
    assert same(to_float8(torch.from_numpy(FLOATS), dtype, saturate), expected)


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
@pytest.mark.parametrize("saturate", [True, False])
def test_float8e8m0_has_the_bits_of_the_reference_when_cast_from_any_float(mode: str, saturate: bool) -> None:
    found = to_float8e8m0(torch.from_numpy(FLOATS), saturate, mode)
    expected = numpy_helper.to_float8e8m0(FLOATS, saturate, mode)
    assert np.array_equal(found.view(torch.uint8).numpy(), expected.view(np.uint8))


@pytest.mark.parametrize("kind", SMALL_FLOATS)
def test_small_floats_have_the_values_of_ml_dtypes_when_cast_from_any_float(kind: ir.DataType) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = FLOATS.astype(kind.numpy())
    assert same(to_narrow(torch.from_numpy(FLOATS), kind), expected)


@pytest.mark.parametrize("kind", [kind for kind in CARRIED if kind not in SMALL_FLOATS])
def test_small_integers_keep_the_low_bits_when_cast_from_integers(kind: ir.DataType) -> None:
    whole = np.arange(-300, 300, dtype=np.int64)
    assert same(to_narrow(torch.from_numpy(whole), kind), whole.astype(np.int8).astype(kind.numpy()))


def test_uint64_is_divided_and_shifted_as_numpy_does_when_values_exceed_int64() -> None:
    rng = np.random.default_rng(1)
    edges = np.array([0, 1, 2, 3, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1], np.uint64)
    left = np.concatenate([edges, rng.integers(0, 2**64, 500, dtype=np.uint64)])
    right = np.concatenate(
        [edges, rng.integers(0, 2**64, 100, dtype=np.uint64), left[-100:] >> np.uint64(40)]
    )
    right = right[right > 0]
    a, b = left[:, None], right[None]
    x, y = torch.from_numpy(left)[:, None], torch.from_numpy(right)[None]
    assert np.array_equal(quotient(x, y).numpy(), a // b)
    assert np.array_equal(remainder(x, y).numpy(), a % b)
    by = np.arange(64, dtype=np.uint64)
    assert np.array_equal(shifted_right(x, torch.from_numpy(by)).numpy(), a >> by)
