"""Ways to run a placement under load: how many runs at once, with which threads and streams, how gathered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec

from hal.backend import Configuration, OptionSpec, OptionValue, Target
from hal.choosing.finalists import Candidate
from hal.profiling.discovery import Discovery
from hal.records.plan import Plan
from hal.records.targets import Device

#: Most requests in one run. Source: ours; a request waits for all of its run, and only models that take
#: microseconds still gained from more.
MOST_BATCH = 32


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        candidate: The placement, its targets with the options of this way.
        n_in_flight: Runs at once.
        batch: Most requests in a run.
    """

    candidate: Candidate
    n_in_flight: int
    batch: int = 1

    @property
    def name(self) -> str:
        """In words: the targets with their options, and what is done at once."""
        plan = self.candidate.plan
        where = f"only {plan.targets[0]}" if len(plan.partitions) == 1 else self.candidate.name
        gathered = f", {self.batch} requests a run" if self.batch > 1 else ""
        return f"{where}, {self.n_in_flight} in flight{gathered}"

    def gathering(self, batch: int) -> Way:
        """The same with so many requests in a run."""
        return replace(self, batch=batch)


def ways_of(candidate: Candidate, discovery: Discovery) -> list[Way]:
    """Ways of a placement that are worth measuring, without gathering.

    As it is, with one request at once and with a second one on its way, so that nothing waits for Python.
    Where all is on one target: with fewer threads a run and as many more runs, so that together they are as
    many as the processor has (``threads``); where the runtime divides its threads itself, in as many streams
    as runs (``streams``). Options that the target has already stay. Where parts are on several silicons: with
    one request for each and one on its way, and with two for each.

    Args:
        candidate: The placement.
        discovery: Says what the backends offer.
    """
    plan = candidate.plan
    if len(plan.targets) > 1 or len(plan.partitions) > 1:
        n = len({device.silicon for device in plan.devices})
        return [Way(candidate, at_once) for at_once in ((1 + n, 2 * n) if n > 1 else (1, 2))]
    target = Target.parse(plan.targets[0])
    offered = _offered(target, discovery)
    device = discovery.device(target)
    found = [Way(candidate, 1), Way(candidate, 2)]
    for options, n_in_flight in _divided(offered, target, device):
        changed = Configuration.of(
            target.configuration.precision, {**dict(target.configuration.options), **options}
        )
        name = str(msgspec.structs.replace(target, configuration=changed))
        found.append(Way(replace(candidate, plan=_on(plan, name)), n_in_flight))
    return found


def _divided(
    offered: Mapping[str, OptionSpec], target: Target, device: Device
) -> Iterator[tuple[dict[str, OptionValue], int]]:
    """Options that divide a device among runs, and how many runs."""
    given = dict(target.configuration.options)
    if "streams" in offered and "streams" not in given and "hint" not in given:
        hint: dict[str, OptionValue] = {}
        if "hint" in offered and "throughput" in offered["hint"].choices:
            hint["hint"] = "throughput"
        for n in _powers(2, _cores(offered, device) if device.kind == "cpu" else 4):
            yield {**hint, "streams": n}, n
        return
    cores = _cores(offered, device)
    if device.kind == "cpu" and "threads" in offered and "threads" not in given:
        for n_threads in _powers(1, cores // 2):
            yield {"threads": n_threads}, cores // n_threads


def _cores(offered: Mapping[str, OptionSpec], device: Device) -> int:
    return int(offered["threads"].default) if "threads" in offered else 1


def _powers(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


def _offered(target: Target, discovery: Discovery) -> dict[str, OptionSpec]:
    return next(
        (
            {spec.name: spec for spec in found.options}
            for found in discovery.found
            if (found.backend, found.device.id, found.device.variant)
            == (target.backend, target.device, target.variant)
        ),
        {},
    )


def _on(plan: Plan, target: str) -> Plan:
    parts = tuple(msgspec.structs.replace(part, target=target) for part in plan.partitions)
    return msgspec.structs.replace(plan, partitions=parts)


__all__ = ["MOST_BATCH", "Way", "ways_of"]
