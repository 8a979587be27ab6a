"""ONNX models as PyTorch modules: one fx node per ONNX node, constants folded."""

from hal_torch.bridge import (
    activations,
    attention,
    control,
    conv,
    elementwise,
    fourier,
    indexing,
    losses,
    matmul,
    norm,
    padding,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    shape,
    vision,
)
from hal_torch.bridge.build import bridge, refusals
from hal_torch.bridge.table import TABLE, unsupported
from hal_torch.bridge.weights import lower_weights

__all__ = ["TABLE", "bridge", "lower_weights", "refusals", "unsupported"]

_FAMILIES = (
    activations,
    attention,
    control,
    conv,
    elementwise,
    fourier,
    indexing,
    losses,
    matmul,
    norm,
    padding,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    shape,
    vision,
)
"""The modules that fill the table when they are imported."""
