"""Where ``hal plan`` gets its costs from, and who decides: the planner alone, or measuring."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hal.cli.compare import is_model
from hal.cli.requests import read_request
from hal.errors import StorageError, UserError

if TYPE_CHECKING:
    from hal.graph.model import Graph
    from hal.planning.costs import Modelled
    from hal.profiling.progress import Progress
    from hal.records.plan import Constraints, Plan
    from hal.records.profile import Profile
    from hal.sampling import Policy


@dataclass(frozen=True)
class Source:
    """The model or profile, and the machine it is planned for.

    Attributes:
        word: MODEL, as typed.
        shapes: ``--shape``.
        inputs: ``--input``.
        machines: Files of ``--with``; none for this machine.
        links: File of ``--links``.
        policy: Of measuring the profile.
        fresh: Measure the profile anew.
    """

    word: str
    shapes: Sequence[str] | None
    inputs: Sequence[str] | None
    machines: tuple[Path, ...]
    links: Path | None
    policy: Policy | None
    fresh: bool


@dataclass(frozen=True)
class Decided:
    """A plan, and what its costs were made from."""

    plan: Plan
    profile: Profile
    source: Source

    @functools.cached_property
    def modelled(self) -> Modelled:
        """The problem that the plan solves."""
        from hal.planning.costs import model

        return model(self.profile, self.plan.constraints)

    def graph(self) -> Graph:
        """The model.

        Raises:
            UserError: The costs came from a profile, which does not hold it.
        """
        from hal.profiling.sources import resolve

        if not is_model(self.source.word):
            raise UserError(
                f"{self.source.word!r} is a profile, which does not hold the model; to annotate, name the "
                "model"
            )
        request = read_request(self.source.word, self.source.shapes, self.source.inputs)
        return resolve(request.model, request.inputs, shapes=request.shapes).graph


def read(path: Path, option: str) -> bytes:
    """A file that an option names.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{option} {str(path)!r} cannot be read: {error.strerror or error}") from error


def decided(
    source: Source,
    constraints: Constraints,
    *,
    budget_s: float,
    use: Path | None,
    predict: bool,
    progress: Progress,
) -> Decided:
    """Plan, and measure the finalists where that is asked for and can be.

    Args:
        source: Where costs come from.
        constraints: What is asked.
        budget_s: Seconds for each search.
        use: A plan whose placement is taken; then nothing is searched and nothing measured.
        predict: Measure nothing beyond the profile.
        progress: Told of what happens.

    Raises:
        UserError: Options do not go together, or a file is not what it should be.
        Infeasible: No plan keeps all constraints.
        PlanError: The plan of ``use`` does not fit.
    """
    from hal.choosing.choose import chosen, profiled, searching
    from hal.choosing.planner import predicted
    from hal.planning.costs import model as modelled_of
    from hal.planning.plans import assignment_of, plan_of
    from hal.records.reading import read_plan

    is_here = is_model(source.word) and not source.machines
    if not is_here and (source.fresh or source.policy is not None):
        raise UserError(
            "--fresh and --time-s say how to measure, but here nothing is measured; leave them out"
        )
    given = None if use is None else read_plan(read(use, "--use"), repr(str(use)))
    if is_here:
        request = read_request(source.word, source.shapes, source.inputs)
        job, profile = profiled(
            request.model,
            request.inputs,
            shapes=request.shapes,
            constraints=constraints,
            policy=source.policy,
            fresh=source.fresh,
            progress=progress,
        )
        if given is None and not predict:
            return Decided(chosen(job, profile, constraints, budget_s=budget_s), profile, source)
    else:
        profile = _profile(source, progress)
    modelled = modelled_of(profile, constraints)
    progress.stage(searching())
    if given is None:
        return Decided(predicted(modelled, budget_s=budget_s), profile, source)
    assignment = assignment_of(modelled, given)
    return Decided(plan_of(modelled, assignment, solver=str(use)), profile, source)


def _profile(source: Source, progress: Progress) -> Profile:
    """A profile that is there, or an estimate for machines that are not."""
    from hal.profiling.store import load_profile

    if not source.machines:
        if source.shapes or source.inputs:
            raise UserError("--shape and --input belong to a model; a profile has its shapes; leave them out")
        return load_profile(source.word)

    from hal.cli.inputs import parse_shapes
    from hal.profiling.imagined import estimated, stored
    from hal.records.machines import combine, read_links
    from hal.records.reading import read_machine

    if not is_model(source.word):
        raise UserError(
            f"{source.word!r} is a profile, measured on a machine; --with plans a model for another one: "
            "name the model"
        )
    if source.inputs:
        raise UserError("--input belongs to a run; with --with nothing is run: give shapes with --shape")
    progress.stage("estimating the model on the machine")
    machines = [(path.stem, read_machine(read(path, "--with"), repr(str(path)))) for path in source.machines]
    rules = read_links(read(source.links, "--links"), repr(str(source.links))) if source.links else ()
    machine = combine(machines, rules)
    shapes = parse_shapes(source.shapes or ())
    return estimated(source.word, machine, shapes=shapes or None, known=stored(machines))
