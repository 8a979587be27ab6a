"""Lower the precision of weights once, instead of at every call under autocast."""

from __future__ import annotations

import torch

LOWERABLE = "hal_lowerable"
"""Key in GraphModule.meta: names of the parameters that products read as weights."""


def lower_weights(module: torch.fx.GraphModule, dtype: torch.dtype) -> list[str]:
    """Cast in place the weights that convolutions, matrix products and recurrent cells read.

    Run the module under `torch.autocast` of the same dtype afterwards: autocast then finds the weights
    already cast, and everything else keeps its float32 constants.

    Args:
        module: What `bridge` returned.
        dtype: torch.bfloat16 or torch.float16.

    Returns:
        The names of the parameters that were cast, as `module.named_parameters()` gives them.

    Raises:
        ValueError: dtype is not one that autocast knows.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"weights cannot be lowered to {dtype}: expected torch.bfloat16 or torch.float16, "
            "the dtypes that torch.autocast knows"
        )
    lowered: dict[str, None] = {}
    for prefix, child in module.named_modules():
        if not isinstance(child, torch.fx.GraphModule):
            continue
        for name in child.meta.get(LOWERABLE, ()):
            parameter = child.get_parameter(name)
            if parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(dtype)
                lowered[f"{prefix}.{name}" if prefix else name] = None
    return list(lowered)
