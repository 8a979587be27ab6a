"""Machines that are put together from several profiles, with links between them from a small file.

Devices keep their kind and get new numbers: the profile named first keeps its own, those of the next go on
behind them. What was ``cuda:0`` in the second profile and is ``cuda:4`` now says so in its properties:
``profile`` and ``was``.

The file of links, in which the first rule that fits a pair of devices holds::

    {"links": [
        {"source": "h100/cuda:*", "destination": "a100/cuda:*", "latency_ns": 12000, "bytes_per_s": 25e9},
        {"source": "a100/cuda:*", "destination": "h100/cuda:*", "latency_ns": 12000, "bytes_per_s": 25e9}
    ]}

A pattern is a shell pattern of ``PROFILE/DEVICE``, of the device's new number (``cuda:4``), or of
``PROFILE/host``, which is the memory of the host. Where no rule fits, a link of the profiles is kept; where
there is none, a tensor goes through the host, or the two hosts. Two hosts without a rule are one.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from hal.errors import UserError, problems
from hal.records.files import from_json
from hal.records.machine import Ceiling, Environment, Handoff, Link, MachineProfile, interpolate
from hal.records.targets import Device, OptionValue

#: The end of a link that is the host's memory.
HOST = "host"
#: Sizes between which a link's time is a straight line, so that :func:`interpolate` is exact.
_LINE = (0, 1 << 30)

#: Time (ns) of a tensor by its size.
_Cost = Callable[[int], float]


class LinkRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it costs to hand a tensor from some devices to others, one way.

    Source: R. W. Hockney, "The communication challenge for MPP", Parallel Computing 20 (1994): time is
    latency + size / bandwidth.

    Attributes:
        source: Pattern of what makes the tensor.
        destination: Pattern of what reads it.
        latency_ns: Of an empty tensor.
        bytes_per_s: Of a large one.
    """

    source: str
    destination: str
    latency_ns: float
    bytes_per_s: float

    def cost_ns(self, n_bytes: int) -> float:
        """Time of a tensor."""
        return self.latency_ns + n_bytes / self.bytes_per_s * 1e9


class LinkFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of links holds."""

    links: tuple[LinkRule, ...]


def read_links(data: bytes, what: str) -> tuple[LinkRule, ...]:
    """Read a file of links.

    Args:
        data: JSON.
        what: Names the text in errors, for example the file.

    Raises:
        UserError: It is no such file, or a figure cannot be; all bad figures are named.
    """
    rules = from_json(data, LinkFile, what).links
    found = []
    for number, rule in enumerate(rules):
        name = f"link {number} ({rule.source} to {rule.destination})"
        if not 0 <= rule.latency_ns < math.inf:
            found.append(f"{name} has a latency_ns of {rule.latency_ns}; expected 0 or more")
        if not 0 < rule.bytes_per_s < math.inf:
            found.append(f"{name} has {rule.bytes_per_s} bytes_per_s; expected more than 0")
    if found:
        raise UserError(problems(f"{what} cannot be used", found))
    return rules


def combine(machines: Sequence[tuple[str, MachineProfile]], rules: Sequence[LinkRule] = ()) -> MachineProfile:
    """One machine with the devices of several, each pair of which has a link.

    Devices that cannot be used where they were measured are left out.

    Args:
        machines: Names, which the rules use, and profiles; the same profile may come twice, and its second
            copy is then named ``NAME#2``.
        rules: Links, see the head of this module.

    Raises:
        UserError: There is no profile or no device, a rule fits no pair, or nothing tells what it costs to
            get from one device to another; all faults are named.
    """
    parts = _numbered(machines)
    if not any(part.devices for part in parts):
        given = ", ".join(name for name, _ in machines) or "none"
        raise UserError(f"no profile has a device that can be used; profiles given: {given}")
    spots = [spot for part in parts for spot in part.spots]
    used: set[int] = set()
    links, found = [], []
    for source in [_host(parts[0]), *spots]:
        for destination in [_host(parts[0]), *spots]:
            if source.end == destination.end:
                continue
            link = _link(source, destination, rules, used)
            if link is None:
                found.append(
                    f"nothing tells what it costs to get from {source.title} to {destination.title}; give a "
                    "link between them, or links of both with their hosts"
                )
            else:
                links.append(link)
    places = ", ".join(dict.fromkeys(spot.title for spot in spots))
    found += [
        f"the link from {rule.source} to {rule.destination} fits no two devices; there are {places}"
        for number, rule in enumerate(rules)
        if number not in used
    ]
    if found:
        raise UserError(problems("the machine cannot be put together", found))
    first = machines[0][1]
    return MachineProfile(
        schema_version=first.schema_version,
        hal_version=first.hal_version,
        created=max(profile.created for _, profile in machines),
        environment=_environment([profile.environment for _, profile in machines]),
        devices=tuple(device for part in parts for device in part.devices),
        ceilings=tuple(ceiling for part in parts for ceiling in part.ceilings),
        links=tuple(links),
        notes=_notes(parts),
    )


def _notes(parts: Sequence[_Part]) -> tuple[str, ...]:
    """Notes of the profiles, each once."""
    named: dict[str, list[str]] = {}
    for part in parts:
        for note in part.notes:
            named.setdefault(note, []).append(part.name)
    return tuple(f"{', '.join(names)}: {note}" for note, names in named.items())


@dataclass(frozen=True)
class _Spot:
    """An end of links.

    Attributes:
        end: ``DEVICE/BACKEND[-VARIANT]`` with the new number, or :data:`HOST`.
        device: With the new number; :data:`HOST` for a host.
        title: ``PROFILE/DEVICE`` with the number in the profile, then the new one.
        names: What a pattern may fit.
        silicon: Of the device.
        part: Profile it belongs to.
    """

    end: str
    device: str
    title: str
    names: tuple[str, ...]
    silicon: str
    part: _Part


@dataclass(frozen=True)
class _Part:
    """A profile with new numbers."""

    name: str
    devices: tuple[Device, ...]
    ceilings: tuple[Ceiling, ...]
    links: Mapping[tuple[str, str], Link]
    notes: tuple[str, ...]
    spots: list[_Spot]


def _numbered(machines: Sequence[tuple[str, MachineProfile]]) -> list[_Part]:
    parts: list[_Part] = []
    free: dict[str, int] = {}
    names: dict[str, int] = {}
    taken: set[str] = set()
    for given, profile in machines:
        names[given] = names.get(given, 0) + 1
        name = given if names[given] == 1 else f"{given}#{names[given]}"
        usable = [device for device in profile.devices if not device.unavailable]
        numbers: dict[str, str] = {}
        for device in usable:
            if device.id not in numbers:
                kind = device.id.partition(":")[0]
                numbers[device.id] = device.id if not parts else f"{kind}:{free.get(kind, 0)}"
                free[kind] = max(free.get(kind, 0), int(numbers[device.id].partition(":")[2]) + 1)
        words = {old: new for old, new in numbers.items() if old != new}
        identities = {word for device in usable for word in (device.silicon, device.memory_pool)}
        for identity in sorted(identities - words.keys()):
            if identity in taken:
                words[identity] = f"{identity}@{name}"
        devices = tuple(_renamed(device, name, numbers, words) for device in usable)
        taken |= {word for device in devices for word in (device.silicon, device.memory_pool)}
        part = _Part(
            name,
            devices,
            tuple(
                msgspec.structs.replace(
                    ceiling,
                    device=numbers[ceiling.device],
                    compute_target=_moved(ceiling.compute_target, numbers),
                    copy_target=_moved(ceiling.copy_target, numbers),
                )
                for ceiling in profile.ceilings
                if ceiling.device in numbers
            ),
            {
                (_moved(link.source, numbers), _moved(link.destination, numbers)): link
                for link in profile.links
                if link.points
            },
            profile.notes,
            [],
        )
        part.spots.extend(_spots(part, numbers))
        parts.append(part)
    return parts


def _renamed(device: Device, name: str, numbers: Mapping[str, str], words: Mapping[str, str]) -> Device:
    properties: dict[str, OptionValue] = {**device.properties, "profile": name, "was": device.id}
    return msgspec.structs.replace(
        device,
        id=numbers[device.id],
        silicon=words.get(device.silicon, device.silicon),
        memory_pool=words.get(device.memory_pool, device.memory_pool),
        properties=properties,
    )


def _moved(text: str, numbers: Mapping[str, str]) -> str:
    """A target or an end of a link with its device's new number."""
    device, slash, rest = text.partition("/")
    return f"{numbers.get(device, device)}{slash}{rest}"


def _spots(part: _Part, numbers: Mapping[str, str]) -> Iterable[_Spot]:
    """Every end that the profile's ceilings and links name."""
    targets = [c.compute_target for c in part.ceilings] + [c.copy_target for c in part.ceilings]
    ends = [target.rpartition("/")[0] for target in targets]
    ends += [end for pair in part.links for end in pair if end != HOST]
    by_id = {device.id: device for device in part.devices}
    old = {new: was for was, new in numbers.items()}
    for end in dict.fromkeys(ends):
        new = end.partition("/")[0]
        if new in by_id:
            title = f"{part.name}/{old[new]}" + (f" (now {new})" if new != old[new] else "")
            yield _Spot(end, new, title, (f"{part.name}/{old[new]}", new), by_id[new].silicon, part)


def _host(part: _Part) -> _Spot:
    return _Spot(HOST, HOST, f"{part.name}/host", (f"{part.name}/host",), HOST, part)


def _link(source: _Spot, destination: _Spot, rules: Sequence[LinkRule], used: set[int]) -> Link | None:
    same = source.silicon == destination.silicon
    rule = None if same else _rule(source, destination, rules, used)
    own = source.part.links.get((source.end, destination.end)) if source.part is destination.part else None
    if rule is None and own is not None:
        return msgspec.structs.replace(own, source=source.end, destination=destination.end)
    cost = rule.cost_ns if rule else _through_hosts(source, destination, rules, used)
    if cost is None:
        return None
    sizes = sorted({*_LINE, *_sizes(source), *_sizes(destination)})
    return Link(
        source=source.end,
        destination=destination.end,
        same_silicon=same,
        points=tuple(_point(n_bytes, cost(n_bytes)) for n_bytes in sizes),
    )


def _rule(source: _Spot, destination: _Spot, rules: Sequence[LinkRule], used: set[int]) -> LinkRule | None:
    for number, rule in enumerate(rules):
        if _fits(rule.source, source) and _fits(rule.destination, destination):
            used.add(number)
            return rule
    return None


def _fits(pattern: str, spot: _Spot) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in spot.names)


def _through_hosts(
    source: _Spot, destination: _Spot, rules: Sequence[LinkRule], used: set[int]
) -> _Cost | None:
    """To the source's host, from there to the destination's, and on."""
    out, back = _to_host(source), _from_host(destination)
    if out is None or back is None:
        return None
    between: LinkRule | None = None
    if source.part is not destination.part:
        between = _rule(_host(source.part), _host(destination.part), rules, used)
    return lambda n_bytes: out(n_bytes) + (between.cost_ns(n_bytes) if between else 0) + back(n_bytes)


def _to_host(spot: _Spot) -> _Cost | None:
    return _leg(spot, spot.part.links.get((spot.end, HOST)))


def _from_host(spot: _Spot) -> _Cost | None:
    return _leg(spot, spot.part.links.get((HOST, spot.end)))


def _leg(spot: _Spot, link: Link | None) -> _Cost | None:
    if link is not None:
        return lambda n_bytes: interpolate(link, n_bytes)
    kinds = {device.kind for device in spot.part.devices if device.id == spot.device}
    # The memory of a processor is the host's.
    return (lambda n_bytes: 0.0) if spot.device == HOST or kinds == {"cpu"} else None


def _sizes(spot: _Spot) -> set[int]:
    """Where the lines of its links to the host bend."""
    legs = (spot.part.links.get((spot.end, HOST)), spot.part.links.get((HOST, spot.end)))
    return {point.n_bytes for leg in legs if leg is not None for point in leg.points}


def _point(n_bytes: int, cost_ns: float) -> Handoff:
    taken = round(cost_ns)
    return Handoff(n_bytes=n_bytes, median_ns=taken, p10_ns=taken, p90_ns=taken, n=0)


def _environment(found: Sequence[Environment]) -> Environment:
    """Of one machine its own; of several what they have together."""
    if len(found) == 1:
        return found[0]
    return Environment(
        system="imagined",
        machine=" + ".join(dict.fromkeys(one.machine for one in found)),
        cpu=" + ".join(one.cpu for one in found),
        cpu_features=(),
        n_cpus=sum(one.n_cpus for one in found),
        n_usable_cpus=sum(one.n_usable_cpus for one in found),
        memory_bytes=sum(one.memory_bytes for one in found),
        python="",
        packages={},
        settings={},
    )
