"""Text as pictures, for the PP-OCR models, with Pillow's own font: the same pixels on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LINE = "Hello 2048 world"
SHORT_LINE = "Hello 2048"
PAGE = ("Measured, not assumed", "one line of text", "2048 bytes")

Box = tuple[int, int, int, int]


def line(text: str, width: int, height: int = 48) -> Image.Image:
    """One line of black text on white, centred vertically, 8 pixels from the left."""
    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).text((8, height // 2), text, fill="black", font=_font(), anchor="lm")
    return picture


def page(size: int) -> tuple[Image.Image, list[Box]]:
    """A square page of the lines in PAGE, and the box (left, top, right, bottom) of each, in pixels."""
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    boxes: list[Box] = []
    for row, text in enumerate(PAGE):
        corner = (size // 16, size // 8 + row * size // 4)
        draw.text(corner, text, fill="black", font=_font())
        left, top, right, bottom = draw.textbbox(corner, text, font=_font())
        boxes.append((int(left), int(top), int(right), int(bottom)))
    return picture, boxes


def pixels(picture: Image.Image) -> NDArray[np.float32]:
    """float32[1, 3, height, width], blue first, in -1..1.

    Source: rapidocr's config.yaml (mean and standard deviation 0.5) and its text recogniser.
    """
    scaled = (np.asarray(picture, dtype=np.float32)[:, :, ::-1] / 255 - 0.5) / 0.5
    return np.asarray(scaled.transpose(2, 0, 1)[np.newaxis], np.float32)


def read(scores: NDArray[np.float32], alphabet: str) -> str:
    """The text in float32[steps, classes]: best class per step, repeats joined, blanks (class 0) dropped.

    Args:
        scores: The recogniser's output for one line.
        alphabet: Its metadata property `character`, one character a line.

    Source: A. Graves et al., "Connectionist Temporal Classification", ICML 2006, best path decoding.
    """
    characters = ["", *alphabet.splitlines(), " "]
    best = scores.argmax(axis=-1)
    starts = np.flatnonzero(np.diff(best, prepend=-1))
    return "".join(characters[best[at]] for at in starts)


def _font() -> Any:
    return ImageFont.load_default(26)
