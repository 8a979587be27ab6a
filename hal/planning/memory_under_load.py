"""Memory that a plan needs when several requests are computed at once."""

from __future__ import annotations

from hal.records.plan import Plan
from hal.records.targets import Target


def memory_at(plan: Plan, n_in_flight: int, batch: int) -> dict[str, int]:
    """Bytes of each memory pool under load, from what one request was predicted to need.

    Weights are there once for single requests and once more for gathered ones; all else is there once for
    each request that is computed at once.

    Args:
        plan: For one request.
        n_in_flight: Runs at once.
        batch: Requests in a run.
    """
    pools = {device.id: device.memory_pool for device in plan.devices}
    weights: dict[str, int] = {}
    for part in plan.partitions:
        pool = pools.get(Target.parse(part.target).device, "")
        weights[pool] = weights.get(pool, 0) + part.weight_bytes
    found = {}
    for pool, total in plan.predicted.memory_bytes.items():
        fixed = min(weights.get(pool, 0), total)
        found[pool] = fixed * (2 if batch > 1 else 1) + (total - fixed) * n_in_flight * batch
    return found


def excess(plan: Plan, n_in_flight: int, batch: int) -> str:
    """Which memory a way would need more of than there is or than is allowed; empty where none."""
    limits: dict[str, int] = {}
    for device in plan.devices:
        for limit in (
            device.memory_bytes,
            plan.constraints.memory_bytes.get(device.id),
            plan.constraints.memory_bytes.get(device.memory_pool),
        ):
            if limit is not None:
                limits[device.memory_pool] = min(limits.get(device.memory_pool, limit), limit)
    for pool, n_bytes in memory_at(plan, n_in_flight, batch).items():
        if n_bytes > limits.get(pool, n_bytes):
            return f"{n_bytes} bytes of {pool} are needed, {limits[pool]} may be used"
    return ""


__all__ = ["excess", "memory_at"]
