"""Pictures as model inputs: resized to the input, channels where the input has them, values in 0..1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hal.errors import InputError
from hal.tensor import Array

if TYPE_CHECKING:
    from hal.records.targets import TensorSpec

#: Endings of the files that are read as pictures.
SUFFIXES = (".png", ".jpg", ".jpeg")

_MODES = {1: "L", 3: "RGB"}
_SCALED_TYPES = ("float16", "float32", "float64")


def read_picture(
    path: Path, name: str, shape: Sequence[int] | None, specs: Mapping[str, TensorSpec]
) -> Array:
    """A picture as one input.

    The picture is turned as its camera noted, made grey (1 channel) or RGB (3 channels), resized to
    the input's height and width (bilinear, aspect not kept), repeated over the batch, and scaled
    from 0..255 to 0..1 for floating-point inputs. No mean is subtracted: a model that wants one
    needs an ``.npy`` made by its own preprocessing.

    Args:
        path: A file that exists.
        name: The input.
        shape: What ``--shape`` gave for it, or None.
        specs: The model's inputs by name.

    Returns:
        ``float16|float32|float64|uint8[batch, channels, height, width]``, or with channels last
        where the input has them last.

    Raises:
        InputError: Pillow is not installed, the file is no picture, the input is unknown, is not of
            four dimensions with 1 or 3 channels, has free dimensions, or is of another type.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InputError(
            f"{str(path)!r} is a picture, and reading pictures needs Pillow, which is not installed; "
            "run: pip install hal-runtime[images]"
        ) from error
    if name not in specs:
        raise InputError(f"input {name!r} is unknown; the model takes {', '.join(specs) or 'none'}")
    n_batch, n_channels, height, width, channels_last = _layout(specs[name], shape)
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            picture = ImageOps.exif_transpose(opened).convert(_MODES[n_channels])
            resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    except PermissionError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for broken PNG chunks.
        raise InputError(
            f"{str(path)!r} is not a whole PNG or JPEG picture ({error}); "
            "open and save it with an image editor"
        ) from error
    pixels: Array = np.asarray(resized, dtype=np.uint8).reshape(height, width, n_channels)
    if specs[name].dtype in _SCALED_TYPES:
        pixels = (pixels.astype(np.float32) / np.float32(255)).astype(specs[name].dtype)
    if not channels_last:
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(np.broadcast_to(pixels, (n_batch, *pixels.shape)))


def _layout(spec: TensorSpec, given: Sequence[int] | None) -> tuple[int, int, int, int, bool]:
    """Batch, channels, height, width, and whether the channels come last."""
    sizes: list[int | str] = list(spec.shape if given is None else given)
    if len(sizes) != 4 or len(spec.shape) != 4:
        raise InputError(f"{spec} takes no picture: expected 4 dimensions, it has {len(sizes)}; give an .npy")
    if spec.dtype not in (*_SCALED_TYPES, "uint8"):
        raise InputError(
            f"{spec} takes no picture: expected {', '.join(_SCALED_TYPES)} or uint8, it is {spec.dtype}; "
            "give an .npy"
        )
    if isinstance(sizes[0], str):
        sizes[0] = 1  # one picture, one row of the batch
    numbers = [size for size in sizes if isinstance(size, int)]
    if len(numbers) < 4:
        raise InputError(
            f"{spec} has free dimensions, so the picture's size there is not known; "
            f"add --shape {spec.name}=1,3,640,640 with the sizes you want"
        )
    if 0 in numbers:
        raise InputError(f"{spec} with shape {numbers} holds no pixels; give sizes above 0")
    if numbers[1] in _MODES:
        return numbers[0], numbers[1], numbers[2], numbers[3], False
    if numbers[3] in _MODES:
        return numbers[0], numbers[3], numbers[1], numbers[2], True
    raise InputError(
        f"{spec} with shape {numbers} takes no picture: expected 1 or 3 channels in the second or the last "
        "dimension; give an .npy"
    )
