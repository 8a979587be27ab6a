"""Fourier transforms and windows."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hal_torch.bridge.dtypes import torch_dtype_of
from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.shape import scalar_int
from hal_torch.bridge.table import add, operator


def as_complex(x: torch.Tensor) -> torch.Tensor:
    """Complex numbers from a last dimension of one (real) or two parts; at least in float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.shape[-1] == 1:
        return torch.complex(x[..., 0], torch.zeros_like(x[..., 0]))
    return torch.view_as_complex(x.contiguous())


def dft(x: torch.Tensor, length: int | None, axis: int, inverse: bool, onesided: bool) -> torch.Tensor:
    """Discrete Fourier transform along an axis; real and imaginary parts in the last dimension."""
    at = axis if axis >= 0 else axis + x.dim()
    y = as_complex(x)
    if inverse and onesided:
        return torch.fft.irfft(y, length, at).unsqueeze(-1)
    y = torch.fft.ifft(y, length, at) if inverse else torch.fft.fft(y, length, at)
    if onesided:
        y = y.narrow(at, 0, y.shape[at] // 2 + 1)
    return torch.view_as_real(y)


@operator("DFT", 17)
def dft_node(node: OpNode) -> Call:
    """Discrete Fourier transform."""
    length = node.const_ints(1, "dft_length")
    if node.version >= 20:
        axes = node.const_ints(2, "axis")
        axis = -2 if axes is None else axes[0]
    else:
        axis = node.integer("axis", 1)
    inverse, onesided = bool(node.integer("inverse", 0)), bool(node.integer("onesided", 0))
    if node.dtype(0) not in (torch.float32, torch.float64):
        raise Refused(f"PyTorch has no Fourier transform of {node.dtype(0)}")
    return call(dft, node.input(0), None if length is None else length[0], axis, inverse, onesided)


def stft(
    x: torch.Tensor, step: int | torch.Tensor, window: torch.Tensor | None, length: int | None, onesided: bool
) -> torch.Tensor:
    """float32[batch, frames, bins, 2], spectra of windowed frames."""
    size = length if length is not None else window.shape[0]  # type: ignore[union-attr]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    real = x.dim() == 2 or x.shape[-1] == 1
    signal = x.reshape(x.shape[0], x.shape[1]) if real else as_complex(x)
    frames = signal.unfold(1, size, int(step))
    if window is not None:
        frames = frames * window
    y = torch.fft.fft(frames, dim=-1)
    return torch.view_as_real(y[..., : size // 2 + 1] if onesided else y)


@operator("STFT", 17)
def stft_node(node: OpNode) -> Call:
    """Short-time Fourier transform."""
    length = node.const_ints(3, "frame_length")
    if length is None and node.optional(2) is None:
        raise Refused("neither window nor frame_length is given")
    return call(
        stft,
        node.input(0),
        scalar_int(node.input(1)),
        node.optional(2),
        None if length is None else length[0],
        bool(node.integer("onesided", 1)),
    )


def window(
    size: torch.Tensor, weights: tuple[float, ...], periodic: bool, dtype: torch.dtype
) -> torch.Tensor:
    """Sum of cosines with given weights over one period."""
    n = int(size.item())
    period = n if periodic else n - 1
    phase = 2 * torch.pi * torch.arange(n, dtype=torch.float64, device=size.device) / max(period, 1)
    y = torch.zeros_like(phase)
    for k, weight in enumerate(weights):
        y = y + weight * torch.cos(k * phase)
    return y.to(dtype)


_WINDOWS: dict[str, tuple[float, ...]] = {
    "HannWindow": (0.5, -0.5),
    "HammingWindow": (25 / 46, -21 / 46),
    "BlackmanWindow": (0.42, -0.5, 0.08),
}
"""Weights of the cosines. Source: ONNX function bodies."""


def _window(weights: tuple[float, ...]) -> Callable[[OpNode], Call]:
    def translate(node: OpNode) -> Call:
        dtype = torch_dtype_of(node.integer("output_datatype", 1))
        return call(window, node.input(0), weights, bool(node.integer("periodic", 1)), dtype)

    return translate


for _name, _weights in _WINDOWS.items():
    add(_name, 17, _window(_weights))


def mel_weights(
    n_mels: torch.Tensor,
    dft_length: torch.Tensor,
    rate: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """float32[bins, mels], triangles that are even on the mel scale.

    Source: ONNX reference implementation.
    """
    n_bins = int(dft_length) // 2 + 1
    mel_low, mel_high = (2595 * torch.log10(1 + f.to(torch.float64) / 700) for f in (low, high))
    steps = torch.arange(int(n_mels) + 2, dtype=torch.float64) * (mel_high - mel_low) / (n_mels + 2) + mel_low
    hertz = 700 * (10 ** (steps / 2595) - 1)
    bins = ((int(dft_length) + 1) * hertz // int(rate)).to(torch.int64).tolist()
    y = torch.zeros(n_bins, int(n_mels), dtype=torch.float64)
    for mel in range(int(n_mels)):
        start, centre, end = bins[mel : mel + 3]
        if centre == start:
            y[centre, mel] = 1
        else:
            for place in range(start, centre + 1):
                y[place, mel] = (place - start) / (centre - start)
        if end > centre:
            for place in range(centre, end):
                y[place, mel] = (end - place) / (end - centre)
    return y.to(dtype)


@operator("MelWeightMatrix", 17)
def mel_weights_node(node: OpNode) -> Call:
    """Weights from spectra to mel bands."""
    dtype = torch_dtype_of(node.integer("output_datatype", 1))
    return call(mel_weights, *(node.input(i) for i in range(5)), dtype)
