"""ONNX element types as PyTorch dtypes, and ONNX tensors as PyTorch tensors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from hal_torch.bridge.node import Refused

TORCH: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.FLOAT8E8M0: torch.float8_e8m0fnu,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
}
"""Every ONNX element type that PyTorch holds with the same values."""

CARRIED: dict[ir.DataType, torch.dtype] = {
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.FLOAT4E2M1: torch.float16,
    ir.DataType.FLOAT6E2M3: torch.float16,
    ir.DataType.FLOAT6E3M2: torch.float16,
}
"""Element types that PyTorch has no tensors of, with the type that holds their values; see narrow.py."""

SAME_BITS: dict[torch.dtype, type[np.generic]] = {
    torch.bfloat16: np.uint16,
    torch.float8_e4m3fn: np.uint8,
    torch.float8_e4m3fnuz: np.uint8,
    torch.float8_e5m2: np.uint8,
    torch.float8_e5m2fnuz: np.uint8,
    torch.float8_e8m0fnu: np.uint8,
}
"""The integers with the bits of the types that numpy lacks."""


_NUMPY = {torch.int8: np.int8, torch.uint8: np.uint8, torch.float16: np.float16}


def holder(dtype: ir.DataType | None) -> torch.dtype | None:
    """The PyTorch dtype that holds the values of an element type, None when unknown or there is none."""
    if dtype is None:
        return None
    return TORCH.get(dtype) or CARRIED.get(dtype)


def carried(dtype: ir.DataType | None) -> ir.DataType | None:
    """The element type when another one has to hold its values, else None."""
    return dtype if dtype in CARRIED else None


def torch_dtype(dtype: ir.DataType) -> torch.dtype:
    """The PyTorch dtype with the same values.

    Raises:
        Refused: PyTorch has no such dtype (strings, 2 and 4 bit integers, ...).
    """
    found = TORCH.get(dtype)
    if found is None:
        raise Refused(f"element type {dtype.name} has no PyTorch dtype")
    return found


def torch_dtype_of(code: int) -> torch.dtype:
    """The dtype for the number that ONNX gives an element type."""
    return torch_dtype(ir.DataType(code))


def to_torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    """Copy an ONNX tensor into a PyTorch tensor on the CPU, bit for bit (CARRIED by value).

    Raises:
        Refused: PyTorch has no dtype for its elements.
    """
    if tensor.dtype in CARRIED:
        values = tensor.numpy().astype(_NUMPY[CARRIED[tensor.dtype]])
        return torch.from_numpy(values).reshape(tuple(tensor.shape.numpy()))
    dtype = torch_dtype(tensor.dtype)
    array = np.ascontiguousarray(tensor.numpy())
    same_bits = SAME_BITS.get(dtype)
    if same_bits is not None:
        bits = torch.from_numpy(array.view(same_bits).copy())
        return bits.view(dtype).reshape(tuple(tensor.shape.numpy()))
    return torch.from_numpy(array.copy()).reshape(tuple(tensor.shape.numpy()))
