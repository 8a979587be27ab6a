"""Compiling a module with Inductor, and telling which nodes each of its kernels computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._inductor.async_compile import shutdown_compile_workers

from hal.errors import BackendError
from hal_torch.failures import reason
from hal_torch.provenance import Launch, recorded

Call = Callable[..., Sequence[torch.Tensor]]


def compiled(
    module: torch.fx.GraphModule, examples: Sequence[torch.Tensor], n_workers: int, *, observed: bool = False
) -> tuple[Call, list[list[Launch]]]:
    """Compile now, by running once on examples.

    Call it, and later what it returns, in the same context (inference mode, autocast): PyTorch
    compiles again where that changed.

    Args:
        module: What the bridge made.
        examples: One tensor per input, of the shapes and types that will be run.
        n_workers: Processes that compile at once; all are gone when this returns.
        observed: Make the kernels visible to the profiler and tell their nodes. They run slower.

    Returns:
        The compiled module; and, where observed, per compiled graph, in order of execution, the
        kernels launched as (name, names of fx nodes).

    Raises:
        BackendError: Inductor failed.
    """
    options: dict[str, Any] = {"compile_threads": n_workers}
    if observed:
        module = copy.copy(module)  # its own code object: PyTorch keeps compiled code by code object
        options |= {
            "cpp.enable_kernel_profile": True,
            "trace.provenance_tracking_level": 1,
            "fx_graph_cache": False,  # what is found in the cache may have been compiled unobserved
        }
    call: Call = torch.compile(module, dynamic=False, options=options)
    try:
        with recorded(observed) as graphs:
            call(*examples)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BackendError(
            f"Inductor cannot compile the model: {reason(error)}\n"
            "Use mode=eager, or see `hal doctor` for what Inductor needs"
        ) from error
    finally:
        shutdown_compile_workers()
    return call, graphs
