"""Words about a plan that the page and the terminal share."""

from __future__ import annotations

from hal.records.plan import Plan


def gap_text(plan: Plan) -> str:
    """``optimal``, ``within 3.2% of the bound``, or that nothing is proven. Optimal only at a gap of zero."""
    if plan.bound.gap <= 0:
        return "optimal by these costs"
    if plan.bound.gap >= 1:
        return "no bound proven"
    shown = f"{plan.bound.gap:.1%}"
    return f"within {shown if shown != '0.0%' else 'less than 0.1%'} of the best possible by these costs"
