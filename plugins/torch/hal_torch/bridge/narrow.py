"""Element types that PyTorch lacks or converts otherwise: small integers, small floats, float8.

Values of INT4, UINT4, INT2 and UINT2 are carried as int8 or uint8, those of FLOAT4E2M1, FLOAT6E2M3 and
FLOAT6E3M2 as float16, one element each: every value of the small type is one of the carrier's, so that
moving, comparing and converting from them is what the carrier does. Only what is converted to them is rounded
here.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

RANGES: dict[ir.DataType, tuple[int, int]] = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT2: (0, 3),
}
"""Least and greatest value of the small integers."""

_FORMATS: dict[ir.DataType, tuple[int, int, float]] = {
    ir.DataType.FLOAT4E2M1: (1, 0, 6.0),
    ir.DataType.FLOAT6E2M3: (3, 0, 7.5),
    ir.DataType.FLOAT6E3M2: (2, -2, 28.0),
}
"""Bits of the mantissa, least exponent, largest value. Source: OCP Microscaling Formats 1.0, section 5.3."""

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)
"""The float8 dtypes, whose overflow needs care."""

_LAST_ROUNDED_DOWN = 464.0
"""What is larger than this, half way from the largest float8_e4m3fn (448) to the next (480), overflows."""


def to_float8(x: torch.Tensor, dtype: torch.dtype, saturate: bool = True) -> torch.Tensor:
    """Cast to a float8 dtype.

    Args:
        x: Any numbers.
        dtype: One of FLOAT8.
        saturate: Whether what lies beyond the range, infinities too, becomes the largest value; else it
            becomes infinite, or NaN where the type has no infinity.
    """
    wide = x.to(torch.float32)
    if saturate:
        largest = torch.finfo(dtype).max
        return wide.clamp(-largest, largest).to(dtype)
    if dtype == torch.float8_e4m3fn:  # PyTorch saturates this one
        wide = torch.where(wide.abs() > _LAST_ROUNDED_DOWN, torch.nan, wide)
    return wide.to(dtype)


def to_float8e8m0(x: torch.Tensor, saturate: bool, mode: str) -> torch.Tensor:
    """Cast to powers of two without sign.

    Args:
        x: Any numbers; the sign is dropped.
        saturate: Whether what rounds beyond the largest power stays there; else it becomes NaN.
        mode: `up`, `down` or `nearest`.

    Source: `onnx.numpy_helper.to_float8e8m0`, the reference of Cast from operator set 24 on.
    """
    bits = x.to(torch.float32).view(torch.int32)
    exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    special = exponent == 0xFF
    if mode == "nearest":
        up = (fraction > 0x400000) | ((fraction == 0x400000) & (exponent > 0))
    elif mode == "up":
        up = fraction > 0
    else:
        up = torch.zeros_like(special)
    up = up & ~special
    if saturate:
        up = up & (exponent != 0xFE)
    return (exponent + up.to(torch.int32)).to(torch.uint8).view(torch.float8_e8m0fnu)


def to_small_int(x: torch.Tensor, kind: ir.DataType) -> torch.Tensor:
    """Cast to an integer of 2 or 4 bits: fractions are cut, then the low bits are kept."""
    low, high = RANGES[kind]
    whole = x.to(torch.int64)
    return ((whole - low) % (high - low + 1) + low).to(torch.uint8 if low == 0 else torch.int8)


def to_small_float(x: torch.Tensor, kind: ir.DataType) -> torch.Tensor:
    """Cast to a float of 4 or 6 bits, halves to even; these types have neither infinity nor NaN."""
    mantissa, least, largest = _FORMATS[kind]
    wide = x.to(torch.float64)
    # From the bits of float32: Inductor cannot compile torch.frexp.
    exponent = ((x.to(torch.float32).view(torch.int32) >> 23) & 0xFF) - 127
    step = torch.exp2(exponent.clamp(min=least).to(torch.float64) - mantissa)
    rounded = (torch.round(wide / step) * step).clamp(-largest, largest)
    # The types have no NaN: the reference makes it a zero of the other sign.
    return torch.where(wide.isnan(), torch.zeros_like(wide).copysign(-wide), rounded).to(torch.float16)


def to_narrow(x: torch.Tensor, kind: ir.DataType) -> torch.Tensor:
    """Cast to any of the types that are carried by another."""
    return to_small_int(x, kind) if kind in RANGES else to_small_float(x, kind)
