"""Gathering and scattering, vectorised; onnx loops over elements and fails on some shapes."""

from __future__ import annotations

import numpy as np

from hal.graph.reference.operator import Array, ReferenceOp

_UFUNCS = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}


def _elementwise_index(indices: Array, axis: int, size: int) -> tuple[Array, ...]:
    """Return an index where ``axis`` follows ``indices`` and the other axes their own positions."""
    grid: list[Array] = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
    grid[axis] = np.where(indices < 0, indices + size, indices)
    return tuple(grid)


def _scatter(data: Array, where: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    result = data.copy()
    if reduction == "none":
        result[where] = updates
    else:
        _UFUNCS[reduction].at(result, where, updates)
    return result


class GatherElements(ReferenceOp):
    """GatherElements.

    Source: GatherElements-13, ONNX operator reference.
    """

    def _run(self, data: Array, indices: Array, *, axis: int = 0) -> tuple[Array]:
        axis %= data.ndim
        return (data[_elementwise_index(indices, axis, data.shape[axis])],)


class GatherND(ReferenceOp):
    """GatherND.

    Source: GatherND-13, ONNX operator reference.
    """

    def _run(self, data: Array, indices: Array, *, batch_dims: int = 0) -> tuple[Array]:
        outer = indices.shape[:-1]
        grid = np.ogrid[tuple(slice(n) for n in outer)][:batch_dims]
        where = tuple(np.broadcast_to(axis, outer) for axis in grid)
        return (np.asarray(data[where + tuple(np.moveaxis(indices, -1, 0))]),)


class ScatterElements(ReferenceOp):
    """ScatterElements, and Scatter as it was called before op set 11.

    Source: ScatterElements-18, ONNX operator reference.
    """

    def _run(
        self, data: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none"
    ) -> tuple[Array]:
        axis %= data.ndim
        where = _elementwise_index(indices, axis, data.shape[axis])
        return (_scatter(data, where, updates, reduction),)


class ScatterND(ReferenceOp):
    """ScatterND.

    Source: ScatterND-18, ONNX operator reference.
    """

    def _run(self, data: Array, indices: Array, updates: Array, *, reduction: str = "none") -> tuple[Array]:
        return (_scatter(data, tuple(np.moveaxis(indices, -1, 0)), updates, reduction),)
