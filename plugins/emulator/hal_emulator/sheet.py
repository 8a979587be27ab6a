"""A machine profile, as far as an emulator needs it; profiles/README.md describes the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hal.backend import Device
from hal.errors import BackendError

#: The end of a link that is the host's memory.
HOST = "host"
#: A launch of a kernel and a call of a device, where the profile does not tell.
#: Source: what hal's own estimates assume, fits over what was measured on processors.
_LAUNCH_NS, _CALL_NS = 2_000, 10_000


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """Attainable rates of a device in a precision."""

    device: str
    precision: str
    flops_per_s: float
    bytes_per_s: float


class Handoff(msgspec.Struct, frozen=True, kw_only=True):
    """Time of a tensor of one size."""

    n_bytes: int
    median_ns: int


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """Times between two ends, ``DEVICE/BACKEND`` or :data:`HOST`, by rising size."""

    source: str
    destination: str
    points: tuple[Handoff, ...] = ()

    def cost_ns(self, n_bytes: int) -> int:
        """Time of a tensor of any size: straight lines between and beyond the points.

        Source: R. W. Hockney, "The communication challenge for MPP", Parallel Computing 20 (1994).
        """
        points = self.points
        if len(points) == 1:
            return points[0].median_ns
        at = next((at for at, point in enumerate(points) if point.n_bytes >= n_bytes), len(points) - 1)
        low, high = points[max(at, 1) - 1], points[max(at, 1)]
        slope = (high.median_ns - low.median_ns) / (high.n_bytes - low.n_bytes)
        return max(round(low.median_ns + slope * (n_bytes - low.n_bytes)), 0)


class _File(msgspec.Struct, frozen=True, kw_only=True):
    devices: tuple[Device, ...]
    ceilings: tuple[Ceiling, ...]
    links: tuple[Link, ...] = ()


class Sheet:
    """Devices, what they can do, and what it costs to move tensors between them.

    Args:
        machine: Path of a machine profile, or its content; None for no devices.

    Attributes:
        devices: Those that can be used and have a ceiling, once each, with the precisions of their ceilings.

    Raises:
        BackendError: The file cannot be read or is no machine profile.
    """

    def __init__(self, machine: str | Mapping[str, Any] | None) -> None:
        found = _read(machine) if machine else _File(devices=(), ceilings=())
        self._ceilings = {(one.device, one.precision): one for one in found.ceilings}
        devices: dict[str, Device] = {}
        for device in found.devices:
            precisions = tuple(one.precision for one in found.ceilings if one.device == device.id)
            if precisions and not device.unavailable:
                plain = msgspec.structs.replace(device, precisions=precisions, variant="")
                devices.setdefault(device.id, plain)
        self.devices: Mapping[str, Device] = devices
        self._links: dict[tuple[str, str], Link] = {}
        for link in found.links:
            pair = (link.source.partition("/")[0], link.destination.partition("/")[0])
            if link.points and pair[0] != pair[1]:
                self._links.setdefault(pair, link)

    def ceiling(self, device: str, precision: str) -> Ceiling:
        """The ceiling of a device in one of its precisions."""
        return self._ceilings[device, precision]

    def launch_ns(self, device: str) -> int:
        """What each kernel takes beside its roofline."""
        return int(self.devices[device].properties.get("launch_ns", _LAUNCH_NS))

    def call_ns(self, device: str) -> int:
        """What each run takes beside its kernels."""
        return int(self.devices[device].properties.get("call_ns", _CALL_NS))

    def handoff_ns(self, source: str, destination: str, n_bytes: int) -> int:
        """Time of a tensor between two devices, or one and :data:`HOST`; through the host where no link is.

        Nothing for a processor and the host, whose memory is one.
        """
        direct = self._links.get((source, destination))
        if direct is not None:
            return direct.cost_ns(n_bytes)
        if HOST in (source, destination):
            return 0
        return self.handoff_ns(source, HOST, n_bytes) + self.handoff_ns(HOST, destination, n_bytes)


def _read(machine: str | Mapping[str, Any]) -> _File:
    what = repr(machine) if isinstance(machine, str) else "the machine of the configuration"
    try:
        if isinstance(machine, str):
            return msgspec.json.decode(Path(machine).read_bytes(), type=_File)
        return msgspec.convert(dict(machine), _File)
    except OSError as error:
        raise BackendError(
            f"the machine to emulate, {what}, cannot be read: {error.strerror}; name a machine profile, such "
            "as hal devices --measure writes"
        ) from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BackendError(
            f"{what} is no machine profile: {error}; expected a file such as hal devices --measure writes"
        ) from error
