"""What passes between a worker's parent and child: msgpack structs, tensors by reference."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from hal import errors
from hal.backend import BackendRef, Configuration, Device, Signature
from hal.errors import BackendError, ContractViolation, HalError
from hal.sampling import Policy

R = TypeVar("R")


class Tensor(msgspec.Struct, frozen=True):
    """A tensor in the sender's arena, or, for strings, in the message itself."""

    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    n_bytes: int = 0
    strings: tuple[str, ...] | None = None


class Tensors(msgspec.Struct, frozen=True):
    """Tensors, and the file of the arena they lie in (empty where none needs it)."""

    arena: str
    n_arena_bytes: int
    tensors: tuple[Tensor, ...]

    @property
    def is_plain(self) -> bool:
        """Whether all of them lie in the arena, so that equal messages mean the same places."""
        return all(tensor.strings is None for tensor in self.tensors)


class Model(msgspec.Struct, frozen=True):
    """A prepared model file."""

    path: str
    name: str
    digest: str


class Open(msgspec.Struct, frozen=True, tag=True):
    """Open the backend."""

    ref: BackendRef


class Opened(msgspec.Struct, frozen=True):
    """The backend is open."""

    name: str
    api_version: int
    abilities: tuple[str, ...]


class Discover(msgspec.Struct, frozen=True, tag=True):
    """``Backend.discover``."""


class Options(msgspec.Struct, frozen=True, tag=True):
    """``Backend.options``."""

    device: Device


class Capability(msgspec.Struct, frozen=True, tag=True):
    """``Backend.capability``."""

    device: Device
    model: Model
    precision: str


class Compile(msgspec.Struct, frozen=True, tag=True):
    """``Backend.compile``."""

    device: Device
    model: Model
    configuration: Configuration


class LoadBlob(msgspec.Struct, frozen=True, tag=True):
    """``BlobLoader.load_blob``; the blob lies in a file."""

    device: Device
    path: str
    configuration: Configuration


class Compiled(msgspec.Struct, frozen=True):
    """An executable in the child."""

    handle: int
    signature: Signature
    abilities: tuple[str, ...]
    compile_ns: int


class Run(msgspec.Struct, frozen=True, tag=True):
    """``Executable.run``."""

    handle: int
    inputs: Tensors


class TimedRun(msgspec.Struct, frozen=True, tag=True):
    """``DeviceTime.timed_run``."""

    handle: int
    inputs: Tensors


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Keep these inputs for the measuring calls that follow."""

    handle: int
    inputs: Tensors


class WarmUp(msgspec.Struct, frozen=True, tag=True):
    """``sampling.warm_up`` on the prepared inputs."""

    handle: int
    policy: Policy


class Burst(msgspec.Struct, frozen=True, tag=True):
    """``sampling.burst`` on the prepared inputs."""

    handle: int
    policy: Policy


class Kernels(msgspec.Struct, frozen=True, tag=True):
    """``KernelTimes.kernel_runs``."""

    handle: int
    inputs: Tensors
    n_runs: int


class Blob(msgspec.Struct, frozen=True, tag=True):
    """``CompiledBlob.blob``, written into a file."""

    handle: int
    path: str


class MemoryBytes(msgspec.Struct, frozen=True, tag=True):
    """``MemoryUse.memory_bytes``."""

    handle: int


class Fallbacks(msgspec.Struct, frozen=True, tag=True):
    """``Placements.fallbacks``."""

    handle: int


class ReadTelemetry(msgspec.Struct, frozen=True, tag=True):
    """``Telemetry.telemetry``."""

    device: Device


class Diagnose(msgspec.Struct, frozen=True, tag=True):
    """``Diagnosis.diagnose``."""


class Resident(msgspec.Struct, frozen=True, tag=True):
    """Memory of the child."""


class ResidentBytes(msgspec.Struct, frozen=True):
    """Resident memory of the child, now and at its highest."""

    now_bytes: int
    peak_bytes: int


class Close(msgspec.Struct, frozen=True, tag=True):
    """``Executable.close``."""

    handle: int


Request = (
    Open
    | Discover
    | Options
    | Capability
    | Compile
    | LoadBlob
    | Run
    | TimedRun
    | Prepare
    | WarmUp
    | Burst
    | Kernels
    | Blob
    | MemoryBytes
    | Fallbacks
    | ReadTelemetry
    | Diagnose
    | Resident
    | Close
)


class Answer(msgspec.Struct, frozen=True):
    """A result, or the error that took its place."""

    result: msgspec.Raw = msgspec.Raw(b"\xc0")  # msgpack nil
    error: str = ""
    message: str = ""


_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_answers = msgspec.msgpack.Decoder(Answer)


def encode(message: Any) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def decode_request(data: bytes) -> Any:
    """A request from bytes."""
    return _requests.decode(data)


def answer(result: Any) -> bytes:
    """A result as an answer's bytes."""
    return encode(Answer(result=msgspec.Raw(encode(result))))


def failure(error: BaseException) -> bytes:
    """An error as an answer's bytes; strangers' errors keep their type's name in the text."""
    known = [kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind]
    name = known[0] if known and isinstance(error, HalError) else BackendError.__name__
    message = error.message if isinstance(error, HalError) else f"{type(error).__name__}: {error}"
    # File names that are not UTF-8 reach texts as lone surrogates, which msgpack does not take.
    return encode(Answer(error=name, message=message.encode(errors="replace").decode()))


def unpack(data: bytes, kind: Any) -> Any:
    """The result of an answer, converted to ``kind``.

    Raises:
        HalError: The error the child met, as the same class.
        ContractViolation: The backend's answer is not of this kind.
    """
    received = _answers.decode(data)
    if received.error:
        error_type = getattr(errors, received.error, BackendError)
        raise error_type(received.message)
    try:
        return msgspec.msgpack.decode(received.result, type=kind)
    except msgspec.ValidationError as error:
        raise ContractViolation(
            f"the backend answered with a wrong type: {error}; expected {getattr(kind, '__name__', kind)}"
        ) from error
