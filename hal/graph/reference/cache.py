"""Keeps reference answers on disk, under a digest of everything they depend on."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from hal.graph.reference.evaluator import Progress, reference_outputs
from hal.graph.reference.operator import Array

#: Raise it whenever an answer may change: it is part of every key.
REFERENCE_VERSION = 2

_log = logging.getLogger("hal")


def _raw(array: Array) -> tuple[dict[str, Any], Array]:
    """Describe an array in JSON and return its bytes: ``uint8[n]``; strings go into the JSON."""
    if array.dtype.kind in "OUS":
        texts = [
            t.decode("utf-8", "surrogateescape") if isinstance(t, bytes) else str(t) for t in array.ravel()
        ]
        return {"kind": "text", "shape": array.shape, "texts": texts}, np.empty(0, dtype=np.uint8)
    described = {"kind": "numbers", "dtype": array.dtype.name, "shape": array.shape}
    return described, np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8)


def _array(described: Mapping[str, Any], raw: Array) -> Array:
    shape = tuple(described["shape"])
    if described["kind"] == "text":
        return np.array(described["texts"], dtype=object).reshape(shape)
    name = described["dtype"]
    # numpy does not find the types of ml_dtypes by name.
    kind = np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
    return np.frombuffer(raw.tobytes(), dtype=kind).reshape(shape).copy()


def reference_key(model_digest: str, inputs: Mapping[str, Array]) -> str:
    """Return the digest that names the answers of a model to inputs.

    Args:
        model_digest: Digest of the model with its weights.
        inputs: Arrays by input name; their order does not matter.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    head = {"model": model_digest, "reference": REFERENCE_VERSION, "onnx": onnx.__version__}
    digest.update(json.dumps(head, sort_keys=True).encode())
    for name in sorted(inputs):
        described, raw = _raw(np.asarray(inputs[name]))
        digest.update(json.dumps([name, described], sort_keys=True).encode())
        digest.update(hashlib.sha256(raw.tobytes()).digest())
    return digest.hexdigest()


def _read(path: pathlib.Path) -> dict[str, Array]:
    # numpy leaves a file open that it opened itself and cannot read.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        packed = stored["entries"].tobytes()
        arrays = [stored[f"data{i}"] for i in range(len(json.loads(packed)))]
        if stored["checksum"].tobytes() != _checksum(packed, arrays):
            raise ValueError("its checksum is wrong")
        return {e["name"]: _array(e, raw) for e, raw in zip(json.loads(packed), arrays, strict=True)}


def _checksum(packed: bytes, arrays: Iterable[Array]) -> bytes:
    digest = hashlib.sha256(packed)
    for array in arrays:
        digest.update(str(array.dtype).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _write(path: pathlib.Path, outputs: Mapping[str, Array]) -> None:
    entries, arrays = [], {}
    for i, (name, value) in enumerate(outputs.items()):
        described, arrays[f"data{i}"] = _raw(value)
        entries.append({"name": name, **described})
    packed = json.dumps(entries).encode()
    checksum = _checksum(packed, list(arrays.values()))
    arrays["entries"] = np.frombuffer(packed, dtype=np.uint8)
    arrays["checksum"] = np.frombuffer(checksum, dtype=np.uint8)
    held = io.BytesIO()
    np.savez(held, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".reference-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(held.getbuffer())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def cached_reference(
    model_digest: str,
    model_loader: Callable[[], onnx.ModelProto],
    inputs: Mapping[str, Array],
    cache_dir: pathlib.Path,
    *,
    progress: Progress | None = None,
    limit_s: float = math.inf,
) -> dict[str, Array]:
    """Return the reference's answers, from ``cache_dir`` if they are there.

    A file that cannot be read is logged as a warning on the logger ``hal`` and its answers are computed
    again; a file that cannot be written is logged too, and the answers are returned all the same.

    Args:
        model_digest: Digest of the model with its weights.
        model_loader: Returns the model with its weights; called only when the answers are not there.
        inputs: Arrays by input name.
        cache_dir: Folder of the cache; made if needed. Safe to share between processes.
        progress: As for ``reference_outputs``.
        limit_s: As for ``reference_outputs``.

    Returns:
        The outputs by name, in the order of the model. Tensors of strings come as arrays of ``object``.

    Raises:
        InputError: An input is missing or unknown.
        ReferenceUnavailable: The reference has no answer for this model.
    """
    path = cache_dir / f"{reference_key(model_digest, inputs)}.npz"
    try:
        return _read(path)
    except FileNotFoundError:
        pass  # the usual first time
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        _log.warning(
            "the cached reference %s cannot be read (%s: %s); it is computed again and replaced",
            path.name,
            type(error).__name__,
            error,
        )
    outputs = reference_outputs(model_loader(), inputs, progress=progress, limit_s=limit_s)
    try:
        _write(path, outputs)
    except OSError as error:
        _log.warning(
            "the reference could not be cached as %s (%s); it will be computed again next time; "
            "free space or choose another cache folder",
            path.name,
            error,
        )
    return outputs
