"""Which operators the reference computes itself, and which of onnx's it only feeds with float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_19

from hal.graph.reference import (
    control,
    convolution,
    functions,
    indexing,
    microsoft,
    normalization,
    pooling,
    recurrent,
    resize,
    sampling,
    shaping,
)
from hal.graph.reference.operator import Array, is_float, widen

#: (domain, operator) -> (first op set, implementation).
OWN: dict[tuple[str, str], tuple[int, type[OpRun]]] = {
    ("", "AveragePool"): (1, pooling.AveragePool),
    ("", "BatchNormalization"): (6, normalization.BatchNormalization),
    ("", "Conv"): (1, convolution.Conv),
    ("", "ConvInteger"): (10, convolution.ConvInteger),
    ("", "ConvTranspose"): (1, convolution.ConvTranspose),
    ("", "Erf"): (9, functions.Erf),
    ("", "GRU"): (7, recurrent.GRU),
    ("", "Gelu"): (20, functions.Gelu),
    ("", "GatherElements"): (11, indexing.GatherElements),
    ("", "GatherND"): (11, indexing.GatherND),
    ("", "GlobalAveragePool"): (1, pooling.GlobalAveragePool),
    ("", "GlobalLpPool"): (2, pooling.GlobalLpPool),
    ("", "GlobalMaxPool"): (1, pooling.GlobalMaxPool),
    ("", "GridSample"): (16, sampling.GridSample),
    ("", "GroupNormalization"): (18, normalization.GroupNormalization),
    ("", "HardSwish"): (14, functions.HardSwish),
    ("", "Hardmax"): (1, normalization.Hardmax),
    ("", "LRN"): (1, normalization.LRN),
    ("", "LSTM"): (7, recurrent.LSTM),
    ("", "LayerNormalization"): (17, normalization.LayerNormalization),
    ("", "LogSoftmax"): (1, normalization.LogSoftmax),
    ("", "Loop"): (1, control.Loop),
    ("", "LpNormalization"): (1, normalization.LpNormalization),
    ("", "LpPool"): (2, pooling.LpPool),
    ("", "MatMulInteger"): (10, functions.MatMulInteger),
    ("", "MaxPool"): (1, pooling.MaxPool),
    ("", "Pad"): (2, shaping.Pad),
    ("", "RNN"): (7, recurrent.RNN),
    ("", "Resize"): (10, resize.Resize),
    ("", "Scan"): (9, control.Scan),
    ("", "Scatter"): (9, indexing.ScatterElements),
    ("", "ScatterElements"): (11, indexing.ScatterElements),
    ("", "ScatterND"): (11, indexing.ScatterND),
    ("", "Shape"): (1, shaping.Shape),
    ("", "Slice"): (1, shaping.Slice),
    ("", "Softmax"): (1, normalization.Softmax),
    ("", "Squeeze"): (1, shaping.Squeeze),
    ("", "Unsqueeze"): (1, shaping.Unsqueeze),
    ("", "Upsample"): (7, resize.Upsample),
    (microsoft.DOMAIN, "BiasGelu"): (1, microsoft.BiasGelu),
    (microsoft.DOMAIN, "FastGelu"): (1, microsoft.FastGelu),
    (microsoft.DOMAIN, "FusedMatMul"): (1, microsoft.FusedMatMul),
    (microsoft.DOMAIN, "Gelu"): (1, microsoft.MicrosoftGelu),
    (microsoft.DOMAIN, "QuickGelu"): (1, microsoft.QuickGelu),
    (microsoft.DOMAIN, "SkipLayerNormalization"): (1, microsoft.SkipLayerNormalization),
}

#: Operators of onnx's own domain whose onnx code is right in float64 once its inputs are.
WIDENED = frozenset(
    {
        "Attention",
        "CausalConvWithState",
        "Col2Im",
        "CumSum",
        "DFT",
        "DeformConv",
        "Einsum",
        "Gemm",
        "InstanceNormalization",
        "LinearAttention",
        "MatMul",
        "Mean",
        "RMSNormalization",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "RoiAlign",
        "RotaryEmbedding",
        "STFT",
        "Sigmoid",
        "Sum",
        "Swish",
    }
)

#: Operators that are refused, with the reason.
REFUSED: dict[tuple[str, str], str] = {
    ("", op_type): "its values are random"
    for op_type in (
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    )
}


def find_own(domain: str, op_type: str, opset: int) -> type[OpRun] | None:
    """Return the reference's own implementation of an operator at an op set, or None."""
    if (domain, op_type) == ("", "DequantizeLinear") and 10 <= opset < 19:
        # onnx starts at 19, which only adds types to what 10 and 13 say.
        return DequantizeLinear_19
    since, implementation = OWN.get((domain, op_type), (0, None))
    return implementation if opset >= since else None


def widened(implementation: type[OpRun]) -> type[OpRun]:
    """Return onnx's ``implementation``, fed with float64 and its outputs rounded back.

    The outputs take the type of the first floating point input.
    """

    def run(self: OpRun, *args: Any, **options: Any) -> tuple[Any, ...]:
        kinds = [a.dtype for a in args if isinstance(a, np.ndarray) and is_float(a)]
        outputs = implementation.run(self, *map(_wide, args), **options)
        return tuple(_narrow(output, kinds[0]) if kinds else output for output in outputs)

    # The name selects the schema of the op set, so it stays.
    return type(implementation.__name__, (implementation,), {"run": run})


def _wide(value: Any) -> Any:
    return widen(value) if isinstance(value, np.ndarray) else value


def _narrow(value: Any, kind: np.dtype[Any]) -> Array | Any:
    return value.astype(kind) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value
