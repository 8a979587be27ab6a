"""Types of ``ml_dtypes`` at the edge of an executable, and what cannot cross it.

PyTorch holds float8 bit for bit, the integers and floats below 8 bits by value in a wider type (see
``bridge.narrow``); DLPack has codes for none of them in the version that numpy and hal speak. Inputs are read
from arrays of ``ml_dtypes``, and results become such arrays, which ``hal.tensor.HostTensor`` carries.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from hal.errors import InputError
from hal.graph.model import Graph
from hal.tensor import HostTensor, as_numpy
from hal_torch.bridge.dtypes import CARRIED, SAME_BITS

Array = np.ndarray[Any, np.dtype[Any]]

BY_VALUE: dict[str, torch.dtype] = {kind.numpy().name: dtype for kind, dtype in CARRIED.items()}
"""The PyTorch type that carries the values of a type, by hal's name of it."""

_BY_BITS: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype for dtype in SAME_BITS if dtype is not torch.bfloat16
}
"""Types that PyTorch has too, by hal's name of them."""


def is_foreign(name: str) -> bool:
    """Whether a type, by hal's name of it, crosses the edge as an array of ``ml_dtypes``."""
    return name in BY_VALUE or name in _BY_BITS


def read(array: Array) -> torch.Tensor | None:
    """An array of a foreign type as a tensor, sharing its memory where the bits are the same.

    Returns:
        None when the type is not foreign.
    """
    name = array.dtype.name
    if name in _BY_BITS:
        bits = array if array.flags.writeable else array.copy()
        return torch.from_numpy(np.ascontiguousarray(bits).view(np.uint8)).view(_BY_BITS[name])
    if name in BY_VALUE:
        wide = str(BY_VALUE[name]).removeprefix("torch.")
        return torch.from_numpy(np.ascontiguousarray(array.astype(wide)))
    return None


def refuse_plain(tensor: Any, name: str) -> None:
    """Refuse a tensor of the carrying type where one of the type itself is expected.

    Args:
        tensor: What was given.
        name: hal's name of the type that is expected.

    Raises:
        InputError: It is of another type.
    """
    if name in BY_VALUE:
        given = getattr(tensor.array if isinstance(tensor, HostTensor) else tensor, "dtype", type(tensor))
        if str(given) != name:
            raise InputError(f"{given} array; expected one of ml_dtypes.{name}")


def written(tensor: torch.Tensor, name: str) -> HostTensor:
    """A tensor as an array of a foreign type."""
    wanted = np.dtype(getattr(ml_dtypes, name))
    host = tensor.cpu().contiguous()
    if name in _BY_BITS:
        return HostTensor(host.view(torch.uint8).numpy().view(wanted))
    return HostTensor(host.numpy().astype(wanted))


def is_array(output: Any, name: str) -> bool:
    """Whether what a caller bound has to be written as an array: a tensor may be a copy of it."""
    return name in BY_VALUE or (name in _BY_BITS and isinstance(output, np.ndarray | HostTensor))


def check_bound(tensor: torch.Tensor, name: str, output: Any) -> None:
    """Check that a tensor can be copied into what a caller bound.

    Raises:
        InputError: The output has another type or shape, or cannot be written.
    """
    array = as_numpy(output)
    if array.dtype.name != name or array.shape != tensor.shape or not array.flags.writeable:
        raise InputError(
            f"bound to {array.dtype.name}{list(array.shape)}; "
            f"expected {name}{list(tensor.shape)} that can be written"
        )


def write(tensor: torch.Tensor, name: str, output: Any) -> None:
    """Copy a tensor into an array of a foreign type that `check_bound` allows."""
    np.copyto(as_numpy(output), written(tensor, name).array)


def refusals(graph: Graph, on_host: bool) -> dict[str, str]:
    """Nodes that read or make what cannot cross the edge, with the reason.

    Args:
        graph: The graph.
        on_host: Whether results lie on the host.
    """
    found: dict[str, str] = {}
    ends = graph.model.graph
    for value in ends.outputs:
        producer = value.producer()
        if producer is None or producer.name is None:
            continue
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            kind = "an optional value" if isinstance(value.type, ir.OptionalType) else "a sequence"
            found[producer.name] = (
                f"{producer.op_type}: output {value.name} is {kind}; only tensors can come out"
            )
        elif not on_host and value.dtype is not None and is_foreign(value.dtype.numpy().name):
            found[producer.name] = (
                f"{producer.op_type}: output {value.name} is {value.dtype.name}, which stays on the host"
            )
    return found
