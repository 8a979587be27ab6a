"""What a machine can do, measured once per environment: ceilings of its devices and links between targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from hal.errors import TargetError
from hal.records.targets import Device

#: Version of the JSON. Readers refuse newer ones and read all older ones.
MACHINE_SCHEMA_VERSION = 1


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and software of a profile. Holds no host, user or path name."""

    system: str
    machine: str
    cpu: str
    cpu_features: tuple[str, ...]
    n_cpus: int
    n_usable_cpus: int
    memory_bytes: int
    python: str
    packages: dict[str, str]
    settings: dict[str, str]


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """The most a device was seen to do in a precision: the two lines of its roofline.

    Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 2009.

    Attributes:
        device: Device id.
        precision: What it computed in.
        flops_per_s: Operations per second of a large matrix product (multiply-add counted as two).
        bytes_per_s: Bytes read and written per second by the best of a large copy and a large reduction; the
            best of the device in any precision, for memory moves bytes whatever they mean.
        compute_target: Target that reached ``flops_per_s``.
        copy_target: Target that reached ``bytes_per_s``.
    """

    device: str
    precision: str
    flops_per_s: float
    bytes_per_s: float
    compute_target: str
    copy_target: str


class Handoff(msgspec.Struct, frozen=True, kw_only=True):
    """Passing one tensor of a size from one backend to the next, beyond what both take anyway.

    Attributes:
        n_bytes: Size of the tensor.
        median_ns: Median over rounds; not below 0.
        p10_ns: 10th percentile; may be negative where the handoff drowns in noise.
        p90_ns: 90th percentile.
        n: Rounds.
        alone_ns: Median time of each end alone on such a tensor, source first, the host not among them;
            at the smallest size it is what a call of the backend costs. Empty in older profiles.
    """

    n_bytes: int
    median_ns: int
    p10_ns: int
    p90_ns: int
    n: int
    alone_ns: tuple[int, ...] = ()


class Switching(msgspec.Struct, frozen=True, kw_only=True):
    """What a part of a model takes longer because another backend computed just before, handoff aside.

    It grows with both: with what ran before, which fills the caches with its own code and data, and with the
    part, whose code and data come back from further away. See :mod:`hal.profiling.switching`.

    Attributes:
        n_nodes: Of the parts that were measured, rising.
        source_ns: Durations of these parts where they ran before, rising.
        destination_ns: Durations of these parts at the end alone, in a row, rising.
        extra_ns: By source, then destination: what the part took longer than alone.
    """

    n_nodes: tuple[int, ...]
    source_ns: tuple[int, ...]
    destination_ns: tuple[int, ...]
    extra_ns: tuple[tuple[int, ...], ...]

    def at(self, source: Load, destination: Load) -> float:
        """The extra time (ns) between the parts measured, and of the nearest one beyond them.

        How much of the caches a part needs goes by its nodes, each with code of its own, or by its duration,
        for large weights take long: whichever says more. Linear in the logarithms.
        """
        before = max(_place(self.n_nodes, source.n_nodes), _place(self.source_ns, source.ns))
        part = max(_place(self.n_nodes, destination.n_nodes), _place(self.destination_ns, destination.ns))
        return _between([_between(extras, part) for extras in self.extra_ns], before)


class Load(NamedTuple):
    """What a backend computes in a row.

    Attributes:
        n_nodes: How many nodes.
        ns: How long that takes.
    """

    n_nodes: int
    ns: float


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of passing tensors from one device and backend to another, by size.

    Attributes:
        source: ``DEVICE/BACKEND[-VARIANT]`` that makes the tensor.
        destination: The one that reads it.
        same_silicon: Whether both compute on the same chip.
        points: By rising size; empty where it could not be measured.
        reason: Why it could not be.
        switching: What alternating costs beyond handoffs; None where it was not measured.
    """

    source: str
    destination: str
    same_silicon: bool
    points: tuple[Handoff, ...] = ()
    reason: str = ""
    switching: Switching | None = None


class MachineProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Devices, ceilings and links of a machine. Holds no host, user or path name."""

    schema_version: int
    hal_version: str
    created: str
    environment: Environment
    devices: tuple[Device, ...]
    ceilings: tuple[Ceiling, ...]
    links: tuple[Link, ...]
    notes: tuple[str, ...] = ()

    def ceiling(self, device: str, precision: str) -> Ceiling | None:
        """The roofline of a device in a precision, where it was measured."""
        found = (c for c in self.ceilings if (c.device, c.precision) == (device, precision))
        return next(found, None)


def interpolate(link: Link, n_bytes: int) -> int:
    """Handoff time (ns) of a tensor of any size: straight lines between the sizes measured.

    Beyond either end the line of the nearest two points goes on; a single point holds for all sizes. Never
    below 0.

    Source: R. W. Hockney, "The communication challenge for MPP", Parallel Computing 20 (1994): transfer time
    is linear in size; piecewise here, because caches and page faults bend the line.

    Args:
        link: Measured.
        n_bytes: Size of the tensor.

    Raises:
        TargetError: The link was not measured; says why.
    """
    points = link.points
    if not points:
        raise TargetError(
            f"the handoff from {link.source} to {link.destination} was not measured: "
            f"{link.reason or 'no reason was recorded'}; measure again with hal devices --measure"
        )
    if len(points) == 1:
        return points[0].median_ns
    above = next((at for at, point in enumerate(points) if point.n_bytes >= n_bytes), len(points) - 1)
    low, high = points[max(above, 1) - 1], points[max(above, 1)]
    slope = (high.median_ns - low.median_ns) / (high.n_bytes - low.n_bytes)
    return max(round(low.median_ns + slope * (n_bytes - low.n_bytes)), 0)


def _place(known: Sequence[int], value: float) -> float:
    """Where a value is among known ones, from 0 to the number of the last: by logarithms."""
    above = next((at for at, one in enumerate(known) if one >= value), len(known) - 1)
    if above == 0 or value >= known[above]:
        return float(above)
    low, high = math.log(known[above - 1]), math.log(known[above])
    return above - 1 + (math.log(value) - low) / (high - low)


def _between(values: Sequence[float], place: float) -> float:
    """A value between two of a row."""
    low = min(int(place), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])
