"""From a backend's instrumented runs to a table of costs: each kernel's time counts once."""

from __future__ import annotations

from hal import stats
from hal.backend import Kernel, KernelRuns
from hal.errors import ContractViolation
from hal.graph.model import Graph
from hal.records.profile import KernelCost, KernelTable


def table(runs: KernelRuns, graph: Graph) -> KernelTable:
    """Summarise, most expensive kernel first.

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
    costs = sorted((_cost(kernel, graph) for kernel in runs.kernels), key=lambda cost: -cost.median_ns)
    covered = {node for cost in costs for node in cost.nodes}
    folded = set(runs.folded)
    return KernelTable(
        kernels=tuple(costs),
        total_ns=sum(cost.median_ns for cost in costs),
        unattributed_ns=sum(cost.median_ns for cost in costs if not cost.nodes),
        instrumented_ns=round(stats.median(runs.run_ns)),
        folded=runs.folded,
        unknown=tuple(name for name in graph.nodes if name not in covered and name not in folded),
    )


def _cost(kernel: Kernel, graph: Graph) -> KernelCost:
    known = [name for name in kernel.nodes if name in graph.nodes]
    return KernelCost(
        name=kernel.name,
        type=kernel.type,
        nodes=tuple(known),
        ops=tuple(graph.nodes[name].op_type for name in known),
        device=kernel.device,
        median_ns=round(stats.median(kernel.durations_ns)),
        p10_ns=round(stats.percentile(kernel.durations_ns, 10)),
        p90_ns=round(stats.percentile(kernel.durations_ns, 90)),
        n=len(kernel.durations_ns),
    )
