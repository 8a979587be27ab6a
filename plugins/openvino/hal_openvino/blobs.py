"""Compiled models as bytes: OpenVINO's export behind a header that tells damage and mismatch."""

from __future__ import annotations

import hashlib

import msgspec

from hal.backend import Signature
from hal.errors import BackendError
from hal_openvino.atlas import Atlas

_MAGIC = b"hal-openvino-blob-2\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_LENGTH_BYTES = 8


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """What a blob was made by and for; it loads where all of it is equal."""

    openvino: str
    device: str
    precision: str


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """A blob taken apart."""

    stamp: Stamp
    signature: Signature
    atlas: Atlas


def pack(stamp: Stamp, signature: Signature, atlas: Atlas, content: bytes) -> bytes:
    """Header and content in one; the digest covers both."""
    header = msgspec.json.encode(Blob(stamp=stamp, signature=signature, atlas=atlas))
    body = len(header).to_bytes(_LENGTH_BYTES, "little") + header + content
    return _MAGIC + hashlib.sha256(body).digest() + body


def unpack(data: bytes, stamp: Stamp) -> tuple[Blob, bytes]:
    """Check and take apart; OpenVINO itself would read damaged bytes as far as it can.

    Raises:
        BackendError: Damaged, not one of ours, or made by another version, device or precision.
    """
    if not data.startswith(_MAGIC):
        raise BackendError(
            f"these {len(data)} bytes are no compiled model of openvino's; "
            "expected what blob() returned: compile the model again"
        )
    start = len(_MAGIC) + _DIGEST_BYTES
    body = data[start:]
    if hashlib.sha256(body).digest() != data[len(_MAGIC) : start]:
        raise BackendError(
            f"the compiled model ({len(data)} bytes) is damaged: its checksum differs; compile it again"
        )
    length = int.from_bytes(body[:_LENGTH_BYTES], "little")
    header = body[_LENGTH_BYTES : _LENGTH_BYTES + length]
    blob = msgspec.json.decode(header, type=Blob)
    different = [
        f"{field} {getattr(blob.stamp, field)!r} instead of {getattr(stamp, field)!r}"
        for field in Stamp.__struct_fields__
        if getattr(blob.stamp, field) != getattr(stamp, field)
    ]
    if different:
        raise BackendError(f"the compiled model was made for {', '.join(different)}; compile it again here")
    return blob, body[_LENGTH_BYTES + length :]
