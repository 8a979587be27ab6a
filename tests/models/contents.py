"""Bytes of files whose type is known because they were just made, and what magika is to be fed of them."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

N_BEGIN = N_END = 1024  # beg_size and end_size. Source: magika's config.min.json
BLOCK_BYTES = 4096  # block_size, same source
PADDING = 256  # padding_token, same source

PYTHON = b'''"""Count words."""

import sys
from collections import Counter


def count(lines):
    """How often each word occurs in an iterable of lines."""
    words = Counter()
    for line in lines:
        words.update(line.lower().split())
    return words


if __name__ == "__main__":
    for word, n in count(sys.stdin).most_common(10):
        print(f"{n:6d} {word}")
'''

HTML = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Measured</title>
<link rel="stylesheet" href="style.css"></head>
<body><h1>Measured, not assumed</h1><p>One <em>paragraph</em> of text.</p>
<ul><li>first</li><li>second</li></ul></body></html>
"""


def files() -> dict[str, bytes]:
    """Content by its magika label."""
    records = [
        {"name": f"item {n}", "price": n * 1.5, "tags": ["a", "b"], "sold": n % 2 == 0} for n in range(30)
    ]
    ramp = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3) % 251
    picture, archive = io.BytesIO(), io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(picture, format="PNG")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for n in range(3):
            target.writestr(zipfile.ZipInfo(f"part{n}.bin"), bytes(range(256)) * 8)
    return {
        "python": PYTHON,
        "html": HTML,
        "json": json.dumps(records, indent=2).encode(),
        "png": picture.getvalue(),
        "zip": archive.getvalue(),
    }


def features(content: bytes) -> NDArray[np.int32]:
    """int32[1, 2048]: the first and the last 1,024 bytes without white space at the ends, padded with 256.

    Source: magika/magika.py, feature extraction version 2.
    """
    begin = content[:BLOCK_BYTES].lstrip()[:N_BEGIN]
    end = content[-BLOCK_BYTES:].rstrip()[-N_END:]
    row = np.full(N_BEGIN + N_END, PADDING, np.int32)
    row[: len(begin)] = np.frombuffer(begin, np.uint8)
    row[len(row) - len(end) :] = np.frombuffer(end, np.uint8)
    return row[np.newaxis]
