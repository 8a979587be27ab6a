"""Words about a plan that the page and the terminal share."""

from __future__ import annotations

from hal.records.plan import Plan
from hal.units import format_ns


def gap_text(plan: Plan) -> str:
    """``optimal``, ``within 3.2% of the bound``, or that nothing is proven. Optimal only at a gap of zero."""
    if plan.bound.gap <= 0:
        return "optimal by these costs"
    if plan.bound.gap >= 1:
        return "no bound proven"
    shown = f"{plan.bound.gap:.1%}"
    return f"within {shown if shown != '0.0%' else 'less than 0.1%'} of the best possible by these costs"


def throughput_text(plan: Plan) -> str:
    """Requests per second, how they are carried out, and what one takes then; empty where not measured."""
    load = plan.throughput
    if load is None:
        return ""
    gathered = f" of up to {load.batch} requests" if load.batch > 1 else ""
    runs = f"{load.n_in_flight} {'run' if load.n_in_flight == 1 else 'runs'} at once{gathered}"
    took = ", ".join(
        f"{name} {format_ns(ns)}"
        for name, ns in (("p50", load.p50_ns), ("p95", load.p95_ns), ("p99", load.p99_ns))
    )
    return f"{load.requests_per_s:,.1f} requests/s with {runs}; a request took {took}"
