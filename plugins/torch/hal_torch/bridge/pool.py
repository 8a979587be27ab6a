"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from hal_torch.bridge.conv import CONV, pads_of, spatial, torch_pads
from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.table import add, operator

MAX_POOL: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
"""Maximum pooling by number of spatial dimensions."""

AVG_POOL: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
"""Average pooling by number of spatial dimensions."""

Sizes = tuple[int, ...]


class Window:
    """How a pooling window moves, as read from a node.

    Attributes:
        kernel: Kernel sizes.
        stride: Strides.
        dilation: Dilations.
        begin: Padding before each dimension.
        end: Padding after each dimension, as the node says.
        reach: Padding after each dimension that makes the last window end exactly at the border;
            more than `end` where ceil_mode adds a window, less where the end is never reached.
        plain: Whether PyTorch's own padding gives the same windows.
    """

    def __init__(self, node: OpNode) -> None:
        self.kernel = node.integers("kernel_shape") or ()
        n_dims = len(self.kernel)
        if n_dims not in CONV:
            raise Refused(f"pooling over {n_dims} dimensions has no PyTorch function, 1 to 3 have")
        self.stride = node.integers("strides") or (1,) * n_dims
        self.dilation = node.integers("dilations") or (1,) * n_dims
        begin, end = pads_of(node, spatial(node), self.kernel, self.stride, self.dilation)
        self.begin, self.end = tuple(begin), tuple(end)
        ceil = bool(node.integer("ceil_mode", 0)) and not _auto(node)
        if _auto(node):
            self._check_auto(node)
        fits = all(2 * p <= k for p, k in zip(begin, self.kernel, strict=True))
        self.plain = begin == end and fits and not ceil
        if self.plain:
            self.reach = self.end
            return
        self.reach = self._reach(node.shape(0)[2:], ceil)
        self.plain = begin == end and fits and all(r <= e for r, e in zip(self.reach, self.end, strict=True))

    def _check_auto(self, node: OpNode) -> None:
        """Refuse what runtimes read differently.

        Raises:
            Refused: auto_pad with ceil_mode or dilations, or with windows that leave elements out.
        """
        mode = node.text("auto_pad", "NOTSET")
        if node.integer("ceil_mode", 0):
            raise Refused(f"auto_pad `{mode}` with ceil_mode is read differently by different runtimes")
        if mode == "VALID":
            return
        if set(self.dilation) != {1}:
            raise Refused(f"auto_pad `{mode}` with dilations is read differently by different runtimes")
        for size, k, stride in zip(spatial(node), self.kernel, self.stride, strict=True):
            if (-(-size // stride) - 1) * stride + k < size:
                raise Refused(
                    f"auto_pad `{mode}` with kernel {self.kernel} and strides {self.stride}, which leave "
                    "elements out, is read differently by different runtimes"
                )

    def _reach(self, sizes: Sequence[int], ceil: bool) -> Sizes:
        """Source: output size formulas in the ONNX specification of MaxPool and AveragePool."""
        reach = []
        for i, size in enumerate(sizes):
            span = (self.kernel[i] - 1) * self.dilation[i] + 1
            steps = (size + self.begin[i] + self.end[i] - span) / self.stride[i]
            n_out = (math.ceil(steps) if ceil else math.floor(steps)) + 1
            # A last window that would start in the padding at the end is left out.
            if ceil and (n_out - 1) * self.stride[i] >= size + self.begin[i]:
                n_out -= 1
            reach.append((n_out - 1) * self.stride[i] + span - size - self.begin[i])
        return tuple(reach)


def padded_max_pool(
    x: torch.Tensor, pads: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes
) -> torch.Tensor:
    """Maximum pooling of windows that PyTorch's own padding cannot make."""
    least = -math.inf if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
    return MAX_POOL[len(kernel)](functional.pad(x, pads, value=least), kernel, stride, 0, dilation)


def max_pool_with_places(
    x: torch.Tensor, pads: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes, begin: Sizes, by_column: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maximum pooling, and int64 places in the flattened input."""
    least = -math.inf if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
    padded = functional.pad(x, pads, value=least)
    # return_indices is looked up by name: it is the only function that PyTorch spells that way.
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    values, index = pool(padded, kernel, stride, 0, dilation, return_indices=True)
    sizes, wide = x.shape[2:], padded.shape[2:]
    coordinates = []
    for i in range(len(kernel) - 1, -1, -1):
        coordinates.append(index % wide[i] - begin[i])
        index = index // wide[i]
    coordinates.reverse()
    order = range(len(kernel) - 1, -1, -1) if by_column else range(len(kernel))
    place = torch.zeros_like(coordinates[0])
    for i in order:
        place = place * sizes[i] + coordinates[i]
    n, c = x.shape[:2]
    image = torch.arange(n * c, device=x.device).reshape(n, c, *([1] * len(kernel)))
    return values, image * math.prod(sizes) + place


@operator("MaxPool")
def max_pool(node: OpNode) -> Call:
    """Maximum pooling."""
    window = Window(node)
    moves = (window.kernel, window.stride, window.dilation)
    pads = torch_pads(window.begin, window.reach)
    if not node.single:
        if window.plain:
            pads = torch_pads(window.begin, window.end)
        by_column = bool(node.integer("storage_order", 0))
        return call(max_pool_with_places, node.input(0), pads, *moves, window.begin, by_column)
    if window.plain:
        function = MAX_POOL[len(window.kernel)]
        return call(function, node.input(0), window.kernel, window.stride, window.begin, window.dilation)
    return call(padded_max_pool, node.input(0), pads, *moves)


def window_sums(x: torch.Tensor, pads: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> torch.Tensor:
    """Sum over each window, zeros around."""
    n, c = x.shape[:2]
    padded = functional.pad(x, pads)
    flat = padded.reshape(n * c, 1, *padded.shape[2:])
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    sums = CONV[len(kernel)](flat, ones, None, stride, 0, dilation)
    return sums.reshape(n, c, *sums.shape[2:])


def padded_avg_pool(
    x: torch.Tensor,
    pads: Sizes,
    counted: Sizes,
    kernel: Sizes,
    stride: Sizes,
    dilation: Sizes,
) -> torch.Tensor:
    """Average pooling that divides by the elements of each window that count.

    Args:
        x: float32[batch, channels, ...].
        pads: Padding in functional.pad order that makes all windows fit.
        counted: The part of the padding, in functional.pad order, that counts as elements of value zero.
        kernel: Kernel sizes.
        stride: Strides.
        dilation: Dilations.
    """
    ones = functional.pad(torch.ones_like(x[:1, :1]), counted, value=1.0)
    rest = tuple(p - q for p, q in zip(pads, counted, strict=True))
    counts = window_sums(ones, rest, kernel, stride, dilation)
    return window_sums(x, pads, kernel, stride, dilation) / counts


@operator("AveragePool")
def average_pool(node: OpNode) -> Call:
    """Average pooling."""
    window = Window(node)
    include = bool(node.integer("count_include_pad", 0))
    if window.plain and set(window.dilation) == {1}:
        function = AVG_POOL[len(window.kernel)]
        moves = (window.kernel, window.stride, window.begin)
        return call(function, node.input(0), *moves, False, include)
    window.reach = window._reach(node.shape(0)[2:], bool(node.integer("ceil_mode", 0)) and not _auto(node))
    counted = (0,) * (2 * len(window.kernel))
    if include:
        # Never count what a window of ceil_mode reaches beyond the padding.
        ends = [min(r, e) for r, e in zip(window.reach, window.end, strict=True)]
        counted = torch_pads(window.begin, ends)
    pads = torch_pads(window.begin, window.reach)
    return call(padded_avg_pool, node.input(0), pads, counted, window.kernel, window.stride, window.dilation)


def _auto(node: OpNode) -> bool:
    return node.text("auto_pad", "NOTSET") not in ("NOTSET", "")


def lp_pool(
    x: torch.Tensor, pads: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes, p: int
) -> torch.Tensor:
    """Lp norm over each window."""
    return window_sums(x.abs().pow(p), pads, kernel, stride, dilation).pow(1.0 / p)


@operator("LpPool", 2)
def lp_pool_node(node: OpNode) -> Call:
    """Lp pooling."""
    window = Window(node)
    pads = torch_pads(window.begin, window.reach)
    moves = (window.kernel, window.stride, window.dilation)
    return call(lp_pool, node.input(0), pads, *moves, node.integer("p", 2))


def global_average(x: torch.Tensor) -> torch.Tensor:
    """Mean over all spatial dimensions, kept with size 1."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def global_max(x: torch.Tensor) -> torch.Tensor:
    """Largest element over all spatial dimensions, kept with size 1."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


def global_lp(x: torch.Tensor, p: int) -> torch.Tensor:
    """Lp norm over all spatial dimensions, kept with size 1."""
    return torch.linalg.vector_norm(x, p, tuple(range(2, x.dim())), keepdim=True)


add("GlobalAveragePool", 1, lambda node: call(global_average, node.input(0)))
add("GlobalMaxPool", 1, lambda node: call(global_max, node.input(0)))
add("GlobalLpPool", 2, lambda node: call(global_lp, node.input(0), node.integer("p", 2)))
