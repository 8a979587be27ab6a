"""The optimised graph as bytes: opening it skips ONNX Runtime's graph rewrites.

The bytes are only good for the version, processor and options that made them: blocked layouts
depend on the processor. The head says all of that and a digest, so that nothing else is opened.
"""

from __future__ import annotations

import hashlib

import msgspec

from hal import host
from hal.backend import Configuration, Signature
from hal.errors import BackendError
from hal_onnxruntime.runtime import onnxruntime

_MAGIC = b"hal-onnxruntime 1\n"


class Head(msgspec.Struct, frozen=True):
    """What the bytes behind it are, and for whom."""

    version: str
    processor: str
    configuration: Configuration
    signature: Signature
    digest: str


def pack(model: bytes, configuration: Configuration, signature: Signature) -> bytes:
    """Put a head before an optimised model."""
    head = Head(
        onnxruntime().__version__, _processor(), configuration, signature, hashlib.sha256(model).hexdigest()
    )
    return _MAGIC + msgspec.json.encode(head) + b"\n" + model


def _code(configuration: Configuration) -> str:
    """What the optimised graph depends on: all but how idle threads wait."""
    options = {name: value for name, value in configuration.options if name != "spinning"}
    return str(Configuration.of(configuration.precision, options))


def unpack(blob: bytes, configuration: Configuration) -> tuple[bytes, Signature]:
    """The optimised model and its signature.

    Raises:
        BackendError: The bytes are damaged, or made by another version, processor or configuration.
    """
    start, _, rest = blob.partition(b"\n")
    encoded, _, model = rest.partition(b"\n")
    try:
        if start + b"\n" != _MAGIC:
            raise ValueError("it does not begin as one")
        head = msgspec.json.decode(encoded, type=Head)
        if hashlib.sha256(model).hexdigest() != head.digest:
            raise ValueError("its digest does not match its content")
    except (ValueError, msgspec.MsgspecError) as error:
        raise BackendError(
            f"the blob is damaged or not one of onnxruntime's ({error}); compile the model again"
        ) from error
    for what, made, here in (
        ("onnxruntime", head.version, onnxruntime().__version__),
        ("the processor", head.processor, _processor()),
        ("configuration", _code(head.configuration), _code(configuration)),
    ):
        if made != here:
            raise BackendError(
                f"the blob was made for {what} {made}, this is {here}; compile the model again"
            )
    return model, head.signature


def _processor() -> str:
    features = hashlib.sha256(" ".join(host.cpu_features()).encode()).hexdigest()[:12]
    return f"{host.cpu_name()} ({features})"
