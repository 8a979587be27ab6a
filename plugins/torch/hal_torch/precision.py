"""What PyTorch computes in: IEEE float32 exactly, or bfloat16 and float16 through autocast."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

#: The type that ``torch.autocast`` lowers products to, by hal's name of the precision.
LOWERED = {"bf16": torch.bfloat16, "fp16": torch.float16}


def forbid_reduced_fp32() -> None:
    """Make float32 mean IEEE 754 binary32 in every library that PyTorch calls, process-wide.

    PyTorch's own defaults do not: cuDNN convolutions and recurrent cells use TF32. The settings of
    single operations are written too, because they win over the general one.

    Source: PyTorch documentation, "CUDA semantics", section on TensorFloat-32 and ``fp32_precision``;
    ``allow_*_reduced_precision_reduction`` in the same document.
    """
    backends = torch.backends
    torch.set_float32_matmul_precision("highest")
    # PyTorch refuses to read the older settings where they contradict the newer: write both.
    backends.cuda.matmul.allow_tf32 = False
    backends.cudnn.allow_tf32 = False
    for operation in (
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
    ):
        operation.fp32_precision = "ieee"
    backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def computing(device_type: str, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a model of a precision runs on a device.

    Args:
        device_type: ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """
    if precision not in LOWERED:
        return contextlib.nullcontext()
    # Weights are lowered once (bridge.lower_weights): a cache of casts would only keep copies of them.
    return torch.autocast(device_type, dtype=LOWERED[precision], cache_enabled=False)
