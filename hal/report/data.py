"""A profile as the columns that the page's script works on.

Everything is a list by position, never an object keyed by a name from a model: names such as ``__proto__``
mean something to JavaScript.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hal.profiling.roofline import OVERHEAD_BELOW, ceiling_for, classify, share_of_roof
from hal.records.machine import Ceiling, Link
from hal.records.profile import KernelCost, KernelTable, Profile, TargetProfile, Unit
from hal.report.text import all_visible
from hal.report.timeline import has_order


def payload(profile: Profile) -> dict[str, Any]:
    """What the script gets, as a JSON value; every text in it is :func:`hal.report.text.visible`."""
    nodes = Nodes(profile)
    targets = shown_order(profile)
    return all_visible(  # type: ignore[no-any-return]
        {
            "model": profile.model.name,
            "overhead_below": OVERHEAD_BELOW,
            "targets": [_target(profile, target, nodes) for target in targets],
            "units": _units(profile.units, targets, nodes),
            "links": [_link(link) for link in profile.links],
            # Last: the parts above add nodes that the facts do not know.
            "nodes": nodes.columns(),
        }
    )


def shown_order(profile: Profile) -> list[TargetProfile]:
    """Targets that answered rightly, fastest first, then the others as they came."""
    ranking = list(profile.ranking)
    return ranking + [target for target in profile.targets if target not in ranking]


class Nodes:
    """The graph's nodes, each with a number that the other parts name it by."""

    def __init__(self, profile: Profile) -> None:
        facts = profile.facts.nodes if profile.facts is not None else ()
        self._numbers: dict[str, int] = {}
        self._ops: list[str] = []
        self._modules: list[str] = []
        self._sources: list[str] = []
        for fact in facts:
            self._add(fact.name, fact.op, fact.module, fact.source)

    def numbers(self, names: Iterable[str], ops: Iterable[str] = ()) -> list[int]:
        """Numbers of nodes; one that the facts do not know is added, with its operator where told."""
        names, ops = tuple(names), tuple(ops)
        told = ops if len(ops) == len(names) else ("",) * len(names)
        return [
            self._numbers[name] if name in self._numbers else self._add(name, op, "", "")
            for name, op in zip(names, told, strict=True)
        ]

    def columns(self) -> dict[str, list[str]]:
        """Name, operator, module and source line, by number."""
        return {
            "name": list(self._numbers),
            "op": self._ops,
            "module": self._modules,
            "source": self._sources,
        }

    def _add(self, name: str, op: str, module: str, source: str) -> int:
        self._numbers[name] = len(self._ops)
        self._ops.append(op)
        self._modules.append(module)
        self._sources.append(source)
        return self._numbers[name]


def _target(profile: Profile, target: TargetProfile, nodes: Nodes) -> dict[str, Any]:
    table, timing, memory = target.kernels, target.timing, target.memory
    ceiling = ceiling_for(profile.ceilings, target.target)
    return {
        "name": target.target,
        "status": target.status,
        "median_ns": timing and timing.median_ns,
        "kernels": table and _kernels(profile, target, table, nodes),
        "missing": target.kernels_missing
        or (target.reason if target.status in ("failed", "refused") else "")
        or "they were not asked for",
        "ceiling": ceiling and _ceiling(ceiling),
        "memory": [[s.at_ns, s.resident_bytes, s.step] for s in memory.samples] if memory else [],
    }


def _kernels(profile: Profile, target: TargetProfile, table: KernelTable, nodes: Nodes) -> dict[str, Any]:
    kernels = table.kernels
    limits = [_limits(profile, target, kernel) for kernel in kernels]
    return {
        "total_ns": table.total_ns,
        "unattributed_ns": table.unattributed_ns,
        "instrumented_ns": table.instrumented_ns,
        "overhead": table.overhead,
        "inflated": table.inflated,
        "folded": table.folded,
        "unknown": table.unknown,
        "ordered": has_order(table),
        "name": [k.name for k in kernels],
        "type": [k.type for k in kernels],
        "device": [k.device for k in kernels],
        "ops": [" + ".join(dict.fromkeys(k.ops)) for k in kernels],
        "nodes": [nodes.numbers(k.nodes, k.ops) for k in kernels],
        "order": [k.order for k in kernels],
        "median_ns": [k.median_ns for k in kernels],
        "p10_ns": [k.p10_ns for k in kernels],
        "p90_ns": [k.p90_ns for k in kernels],
        "n": [k.n for k in kernels],
        "flops": [k.flops for k in kernels],
        "moved_bytes": [k.moved_bytes for k in kernels],
        "weight_bytes": [k.weight_bytes for k in kernels],
        "activation_bytes": [k.activation_bytes for k in kernels],
        "bound": [bound for bound, _ in limits],
        "of_roof": [share for _, share in limits],
    }


def _limits(profile: Profile, target: TargetProfile, kernel: KernelCost) -> tuple[str | None, float | None]:
    ceiling = ceiling_for(profile.ceilings, target.target, kernel.device)
    if ceiling is None:
        return None, None
    return classify(kernel, ceiling), share_of_roof(kernel, ceiling)


def _ceiling(ceiling: Ceiling) -> dict[str, Any]:
    return {
        "name": f"{ceiling.device} {ceiling.precision}",
        "flops_per_s": ceiling.flops_per_s,
        "bytes_per_s": ceiling.bytes_per_s,
        "from": [ceiling.compute_target, ceiling.copy_target],
    }


def _units(units: Iterable[Unit], targets: list[TargetProfile], nodes: Nodes) -> dict[str, Any]:
    units = tuple(units)
    names = [target.target for target in targets]
    return {
        "name": [unit.name for unit in units],
        "nodes": [nodes.numbers(unit.nodes) for unit in units],
        "flops": [unit.flops for unit in units],
        # By target, as [median, p10, p90]; null where the target's kernels do not tell.
        "costs": [
            [
                [cost.median_ns, cost.p10_ns, cost.p90_ns] if (cost := unit.costs.get(name)) else None
                for name in names
            ]
            for unit in units
        ],
    }


def _link(link: Link) -> dict[str, Any]:
    return {
        "source": link.source,
        "destination": link.destination,
        "points": [[p.n_bytes, p.median_ns, p.p10_ns, p.p90_ns] for p in link.points],
    }
