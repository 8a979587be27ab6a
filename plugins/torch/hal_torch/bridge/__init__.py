"""ONNX models as PyTorch modules: one fx node per ONNX node, constants folded."""

from hal_torch.bridge import (
    activations,
    attention,
    contrib,
    contrib_quantized,
    control,
    conv,
    deform,
    elementwise,
    fourier,
    indexing,
    linear,
    losses,
    matmul,
    ngrams,
    norm,
    padding,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    sequences,
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
    contrib,
    contrib_quantized,
    control,
    conv,
    deform,
    elementwise,
    fourier,
    indexing,
    linear,
    losses,
    matmul,
    ngrams,
    norm,
    padding,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    sequences,
    shape,
    vision,
)
"""The modules that fill the table when they are imported."""
