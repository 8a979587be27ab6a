"""Compiling a module with Inductor, and telling which nodes each of its kernels computes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    """Compile now, by running once on examples; at the first run where those do not suit the model.

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
        with recorded(module if observed else None) as graphs, _without_advice():
            call(*examples)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not observed and not _suit(module, examples):
            return call, []
        raise BackendError(
            f"Inductor cannot compile the model: {reason(error)}\n"
            "Use mode=eager, or see `hal doctor` for what Inductor needs"
        ) from error
    finally:
        shutdown_compile_workers()
    return call, graphs


def _suit(module: torch.fx.GraphModule, examples: Sequence[torch.Tensor]) -> bool:
    """Whether made-up inputs can be trusted to fail only where real ones would.

    They may take a branch that real ones of these shapes never take, or be no legal shape or index.
    """
    if any(node.op == "call_module" for node in module.graph.nodes):  # If and Loop, by the bridge
        return False
    try:
        module(*examples)
    except Exception:  # noqa: BLE001  the reason does not matter: the examples are not the user's
        return False
    return True


@contextmanager
def _without_advice() -> Iterator[None]:
    """Dynamo logs how the code of a module, here the bridge's, could be written to compile better."""
    log = logging.getLogger("torch._dynamo")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
