"""Plans that are predicted: nothing is compiled and nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hal.errors import InputError
from hal.planning.costs import Modelled, model
from hal.planning.plans import plan_of, ranked
from hal.planning.portfolio import solve
from hal.records.machine import MachineProfile
from hal.records.plan import Constraints, Plan
from hal.records.profile import Profile
from hal.units import parse_bytes


def plan(
    profile: Profile,
    *,
    objective: str = "latency",
    max_error: float = 0.0,
    memory: Mapping[str, str | int] | None = None,
    targets: Sequence[str] | None = None,
    pinned: Mapping[str, str] | None = None,
    max_partitions: int = 0,
    machine: MachineProfile | None = None,
    budget_s: float = 2.0,
) -> Plan:
    """Decide which target runs which part of a model, from what was measured of it.

    The plan is predicted, not measured: :func:`hal.choosing.choose` compiles and runs the finalists.

    Args:
        profile: Of the model.
        objective: ``latency``, ``throughput``, ``energy`` or ``memory``.
        max_error: Highest relative L2 error of the worst output; 0 allows fp32 targets only.
        memory: Limit by device id or memory pool, in bytes or as text: ``{"cuda:0": "8GiB"}``.
        targets: Targets that may be used, or shell patterns of them; None for all of the profile.
        pinned: Node or unit to the target it must run on.
        max_partitions: Highest number of partitions; 0 for any.
        machine: Its links are taken in place of the profile's.
        budget_s: Seconds for the search.

    Raises:
        UserError: The profile is too old, or a constraint names nothing.
        InputError: A memory limit is no size.
        TargetError: No target is left.
        Infeasible: No plan keeps all constraints; says which cannot hold and by how much.
    """
    constraints = asked(
        objective=objective,
        max_error=max_error,
        memory=memory,
        targets=targets,
        pinned=pinned,
        max_partitions=max_partitions,
    )
    return predicted(model(profile, constraints, machine=machine), budget_s=budget_s)


def predicted(modelled: Modelled, *, budget_s: float = 2.0) -> Plan:
    """The best plan of a problem that was made from a profile.

    Args:
        modelled: The problem.
        budget_s: Seconds for the search.

    Raises:
        Infeasible: No plan keeps all constraints; says which cannot hold and by how much.
    """
    solution = ranked(modelled, solve(modelled.problem, budget_s=budget_s))
    return plan_of(
        modelled,
        solution.best.assignment,
        solver=solution.best.solver,
        bound=solution.bound,
        bound_source=solution.bound_source,
    )


def asked(
    *,
    objective: str = "latency",
    max_error: float = 0.0,
    memory: Mapping[str, str | int] | None = None,
    targets: Sequence[str] | None = None,
    pinned: Mapping[str, str] | None = None,
    max_partitions: int = 0,
) -> Constraints:
    """The constraints that the arguments of :func:`plan` stand for.

    Raises:
        InputError: A memory limit is no size.
    """
    limits = {}
    for name, limit in (memory or {}).items():
        try:
            limits[name] = limit if isinstance(limit, int) else parse_bytes(limit)
        except ValueError as error:
            raise InputError(f"the memory limit of {name!r} cannot be read: {error}") from error
    return Constraints(
        objective=objective,
        max_error=max_error,
        memory_bytes=limits,
        targets=tuple(targets or ()),
        pinned=dict(pinned or {}),
        max_partitions=max_partitions,
    )
