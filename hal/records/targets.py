"""Where a graph can run: devices, configurations and targets, as frozen data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import unquote

import msgspec

from hal.errors import TargetError

#: Number formats a target can compute in; ``fp32`` always means IEEE 754 binary32.
PRECISIONS = ("fp32", "bf16", "fp16")

OptionValue = str | int | float | bool

_DEVICE_ID = re.compile(r"[a-z][a-z0-9]*:[0-9]+")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Compute with memory, as one backend sees it.

    Attributes:
        id: ``kind:index``, for example ``cpu:0`` or ``cuda:1``.
        name: The maker's name of the silicon.
        kind: ``cpu``, ``gpu``, ``npu`` or ``other``.
        silicon: Identity of the chip (PCI address, UUID, NUMA node), the same whichever backend
            names it; devices with equal silicon exclude each other in time.
        memory_pool: Identity of the memory; devices with an equal pool share its capacity.
        memory_bytes: Capacity of the pool, or None where it cannot be told.
        precisions: What the device computes in by itself, best first.
        variant: Distinguishes several ways of one backend on one device (an ONNX Runtime execution
            provider); empty for the backend's default.
        unavailable: Why the device cannot be used now; empty where it can.
        properties: Anything else worth showing: driver, clocks, memory bus.
    """

    id: str
    name: str
    kind: str
    silicon: str
    memory_pool: str
    memory_bytes: int | None = None
    precisions: tuple[str, ...] = ("fp32",)
    variant: str = ""
    unavailable: str = ""
    properties: dict[str, OptionValue] = {}


class OptionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An option that a backend's ``compile`` understands.

    Attributes:
        name: ``snake_case``.
        kind: ``int``, ``str`` or ``bool``.
        default: Used where the caller says nothing.
        choices: Legal values; empty where any value of the kind is.
        help: One sentence.
    """

    name: str
    kind: str
    default: OptionValue
    choices: tuple[OptionValue, ...] = ()
    help: str = ""


class Configuration(msgspec.Struct, frozen=True):
    """How a backend runs a graph: its precision, then the backend's own options.

    Attributes:
        precision: One of :data:`PRECISIONS`.
        options: (name, value) pairs, sorted by name; only what differs from the defaults.
    """

    precision: str = "fp32"
    options: tuple[tuple[str, OptionValue], ...] = ()

    @classmethod
    def of(cls, precision: str, options: Mapping[str, OptionValue] | None = None) -> Self:
        """Build one from a mapping.

        Raises:
            TargetError: The precision is unknown.
        """
        if precision not in PRECISIONS:
            raise TargetError(f"precision {precision!r} is unknown; expected one of {', '.join(PRECISIONS)}")
        return cls(precision, tuple(sorted((options or {}).items())))

    def option(self, name: str, default: OptionValue) -> OptionValue:
        """The value of an option, or ``default`` where the configuration does not set it."""
        return dict(self.options).get(name, default)


def place_name(device: str, backend: str, variant: str = "") -> str:
    """``DEVICE/BACKEND[-VARIANT]``: what targets that differ in their configuration share."""
    return f"{device}/{backend}-{variant}" if variant else f"{device}/{backend}"


class Target(msgspec.Struct, frozen=True):
    """Device x backend x configuration, written ``cpu:0/openvino/bf16``.

    The variant follows the backend after ``-`` and options follow after ``+``:
    ``cuda:0/onnxruntime-tensorrt/fp16``, ``cpu:0/cpu/fp32+mode=compiled``.
    """

    device: str
    backend: str
    configuration: Configuration
    variant: str = ""

    def __str__(self) -> str:
        options = "".join(f"+{name}={_write(value)}" for name, value in self.configuration.options)
        place = place_name(self.device, self.backend, self.variant)
        return f"{place}/{self.configuration.precision}{options}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` writes.

        Raises:
            TargetError: The text is not of the form ``DEVICE/BACKEND[-VARIANT]/PRECISION[+OPTION=VALUE]``.
        """
        head, *rest = text.split("+")
        parts = head.split("/")
        backend, _, variant = parts[1].partition("-") if len(parts) == 3 else ("", "", "")
        options = {name: _read(value) for name, _, value in (option.partition("=") for option in rest)}
        if (
            len(parts) != 3
            or not is_device_id(parts[0])
            or not is_name(backend)
            or not all("=" in option for option in rest)
            or not all(map(is_name, options))
            or len(options) != len(rest)
        ):
            raise TargetError(
                f"{text!r} is not a target; expected DEVICE/BACKEND[-VARIANT]/PRECISION[+OPTION=VALUE], "
                "each option once, for example cpu:0/openvino/bf16"
            )
        return cls(parts[0], backend, Configuration.of(parts[2], options), variant)


class Support(msgspec.Struct, frozen=True):
    """A backend's answer for one node.

    Attributes:
        yes: Whether the node can run there.
        reason: Why not, with the limit and the value; required for a no.
        together: Nodes that must come along for the answer to hold.
    """

    yes: bool
    reason: str = ""
    together: tuple[str, ...] = ()


class Fallback(msgspec.Struct, frozen=True):
    """A node that did not run where it was asked to.

    Attributes:
        node: Its name in the graph, or the runtime's name where it was rewritten.
        asked: The device or provider asked for.
        got: Where it ran.
        reason: Why, where the runtime tells; else empty.
    """

    node: str
    asked: str
    got: str
    reason: str = ""


class BackendRef(msgspec.Struct, frozen=True):
    """Names a backend across a process boundary: an entry point and a JSON configuration.

    Attributes:
        entry_point: ``module:attribute`` of a callable that returns a Backend, or ``plugin:NAME`` for
            an installed plugin's entry point in the group ``hal.plugins``.
        configuration: Keyword arguments of the callable; JSON values only.
    """

    entry_point: str
    configuration: dict[str, Any] = {}


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, element type and shape of a tensor.

    Attributes:
        name: As in the graph.
        dtype: numpy's spelling, plus ``bfloat16``, ``string`` and the float8 family.
        shape: Integers, or the name of a dimension that is not bound (``?`` where it has none).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(size) for size in self.shape)}]"


class Signature(msgspec.Struct, frozen=True):
    """What an executable takes and returns, by position."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def is_device_id(text: str) -> bool:
    """Whether a text is ``kind:index``."""
    return _DEVICE_ID.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether a text can name a backend, a variant or an option."""
    return _NAME.fullmatch(text) is not None


def _write(value: OptionValue) -> str:
    if isinstance(value, float):
        return str(value).replace("e+", "e")  # a plus sign begins the next option
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("%", "%25").replace("+", "%2B")
    # A percent sign also marks a text that would else be read as a number or a truth value.
    return escaped if _read(escaped) == value or not escaped else f"%{ord(escaped[0]):02X}{escaped[1:]}"


def _read(text: str) -> OptionValue:
    if "%" in text:
        return unquote(text)
    if text in ("true", "false"):
        return text == "true"
    try:
        number = int(text)
    except ValueError:
        pass
    else:
        if not -(1 << 63) <= number < 1 << 63:
            raise TargetError(f"the option value {text} does not fit into 64 bits")
        return number
    try:
        return float(text)
    except ValueError:
        return text
