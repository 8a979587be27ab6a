"""One run of a target as a line: its kernels end to end, each with the module it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hal.records.facts import NodeFact
from hal.records.profile import KernelCost, KernelTable, Profile


@dataclass(frozen=True)
class Step:
    """A kernel in a run made of medians.

    Attributes:
        start_ns: Sum of the medians before it.
        module: Names of the modules around it, outermost first; empty where they are not known.
        sources: ``file.py:line`` of its nodes, each once.
    """

    kernel: KernelCost
    start_ns: int
    module: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def end_ns(self) -> int:
        """Start plus median."""
        return self.start_ns + self.kernel.median_ns


def facts_of(profile: Profile) -> Mapping[str, NodeFact]:
    """The model's nodes by name; none where the profile has no facts."""
    return profile.facts.by_name() if profile.facts is not None else {}


def has_order(table: KernelTable) -> bool:
    """Whether the order of execution was recorded; older profiles have 0 everywhere."""
    return len(table.kernels) < 2 or any(kernel.order for kernel in table.kernels)


def steps(table: KernelTable, facts: Mapping[str, NodeFact]) -> Iterator[Step]:
    """Kernels in their order of execution, or most expensive first where that was not recorded."""
    start_ns = 0
    for kernel in sorted(table.kernels, key=lambda kernel: kernel.order):
        known = [facts[name] for name in kernel.nodes if name in facts]
        yield Step(
            kernel=kernel,
            start_ns=start_ns,
            module=shared_module([node.module for node in known if node.module]),
            sources=tuple(dict.fromkeys(node.source for node in known if node.source)),
        )
        start_ns += kernel.median_ns


def shared_module(modules: Sequence[str]) -> tuple[str, ...]:
    """The deepest module that holds all of them: a kernel that fuses two modules belongs to their parent."""
    if not modules:
        return ()
    paths = [module.split(".") for module in modules]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return tuple(shared)
