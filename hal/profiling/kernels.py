"""From a backend's instrumented runs to a table of costs: each kernel's time counts once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hal import stats
from hal.backend import Kernel, KernelRuns
from hal.errors import ContractViolation
from hal.records.facts import ModelFacts, WorkIndex
from hal.records.profile import KernelCost, KernelTable

#: Durations per kernel that go into the record; more would make the file large and tell nothing new.
_KEPT = 20


def table(runs: KernelRuns, facts: ModelFacts, *, plain_ns: int = 0) -> KernelTable:
    """Summarise, most expensive kernel first.

    Args:
        runs: Instrumented.
        facts: Of the graph that ran.
        plain_ns: Median of plain runs beside them; 0 where there were none.

    Raises:
        ContractViolation: The backend told no run, or a kernel's count of durations differs from the
            count of runs.
    """
    n_runs = len(runs.run_ns)
    if not n_runs:
        raise ContractViolation("kernel_runs told of no run; expected one duration per run")
    for kernel in runs.kernels:
        if len(kernel.durations_ns) != n_runs:
            raise ContractViolation(
                f"kernel {kernel.name!r} has {len(kernel.durations_ns)} durations for {n_runs} runs; "
                "expected one per run"
            )
    ops = {node.name: node.op for node in facts.nodes}
    costs = [_cost(order, kernel, ops) for order, kernel in enumerate(runs.kernels)]
    costs = sorted(_with_work(costs, facts), key=lambda cost: -cost.median_ns)
    covered = {node for cost in costs for node in cost.nodes}
    folded = set(runs.folded)
    return KernelTable(
        kernels=tuple(costs),
        total_ns=sum(cost.median_ns for cost in costs),
        unattributed_ns=sum(cost.median_ns for cost in costs if not cost.nodes),
        instrumented_ns=round(stats.median(runs.run_ns)),
        folded=runs.folded,
        unknown=tuple(name for name in ops if name not in covered and name not in folded),
        plain_ns=plain_ns,
        defines_units=runs.defines_units,
    )


def _cost(order: int, kernel: Kernel, ops: dict[str, str]) -> KernelCost:
    known = tuple(name for name in kernel.nodes if name in ops)
    step = -(-len(kernel.durations_ns) // _KEPT)
    return KernelCost(
        name=kernel.name,
        type=kernel.type,
        nodes=known,
        ops=tuple(ops[name] for name in known),
        device=kernel.device,
        median_ns=round(stats.median(kernel.durations_ns)),
        p10_ns=round(stats.percentile(kernel.durations_ns, 10)),
        p90_ns=round(stats.percentile(kernel.durations_ns, 90)),
        n=len(kernel.durations_ns),
        order=order,
        samples_ns=kernel.durations_ns[::step],
    )


def _with_work(costs: Sequence[KernelCost], facts: ModelFacts) -> Sequence[KernelCost]:
    """Add what each kernel has to do. A node computed in several kernels is the work of the longest."""
    owner: dict[str, int] = {}
    for index in sorted(range(len(costs)), key=lambda index: -costs[index].median_ns):
        for node in costs[index].nodes:
            owner.setdefault(node, index)
    index_of_work = WorkIndex(facts)
    found = []
    for index, cost in enumerate(costs):
        own = [node for node in cost.nodes if owner[node] == index]
        if own:
            work = index_of_work.work(own)
            cost = msgspec.structs.replace(
                cost,
                flops=work.flops,
                moved_bytes=work.moved_bytes,
                weight_bytes=work.weight_bytes,
                activation_bytes=work.activation_bytes,
            )
        found.append(cost)
    return found
