"""What the store knows of a job, and the way back in. A store out of order costs a warning, no more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from hal.backend import Target
from hal.errors import StorageError
from hal.profiling.store import Store, Stored, Wanted
from hal.records.machine import Environment, MachineProfile
from hal.records.profile import ModelInfo, Profile, TargetProfile
from hal.sampling import Policy
from hal.version import __version__

_log = logging.getLogger("hal.profiling")
T = TypeVar("T")


class Recall:
    """The store, asked on behalf of one environment.

    Args:
        environment: Of this process; only results of equal ones are valid.

    Attributes:
        notes: Sentences the user should read: why the store could not be used, what was damaged in it.
    """

    def __init__(self, environment: Environment) -> None:
        self.notes: list[str] = []
        self._environment = environment

    def targets(
        self, model: ModelInfo, policy: Policy, kernels: bool, targets: Sequence[Target]
    ) -> dict[str, Stored]:
        """The targets that need not be measured again, by name."""
        wanted = Wanted(
            model_digest=model.digest,
            inputs_digest=model.inputs_digest,
            environment=self._environment,
            hal_version=__version__,
            policy=policy.digest,
            targets=tuple(map(str, targets)),
            kernels=kernels,
        )
        return self._ask(lambda store: store.valid(wanted)) or {}

    def whole(self, known: dict[str, Stored], targets: Sequence[Target]) -> Profile | None:
        """The stored profile that has all targets and no others, where there is one."""
        sources = {known[str(target)].profile_id if str(target) in known else "" for target in targets}
        if len(sources) != 1 or "" in sources:
            return None
        found = self._ask(lambda store: store.get(sources.pop()))
        same = found is not None and {one.target for one in found.targets} == set(map(str, targets))
        return found if same else None

    def machine(self) -> MachineProfile | None:
        """Ceilings and links of this environment, where they were measured."""
        return self._ask(lambda store: store.machine(self._environment))

    def keep_machine(self, machine: MachineProfile) -> None:
        """Put them into the store."""
        self._ask(lambda store: store.put_machine(machine))

    def keep(self, profile: Profile) -> None:
        """Put a profile into the store."""
        self._ask(lambda store: store.put(profile))

    def _ask(self, question: Callable[[Store], T]) -> T | None:
        try:
            with Store.open() as store:
                answer = question(store)
                self.notes.extend(store.notes)
                return answer
        except StorageError as error:
            # What was measured is worth more than its place in the store.
            _log.warning("the store could not be used: %s", error)
            self.notes.append(f"the store could not be used, so nothing was taken from it or kept: {error}")
            return None


def regrouped(known: dict[str, Stored]) -> dict[str, TargetProfile]:
    """Results by target, with group numbers that are equal only for targets that ran side by side."""
    numbers: dict[tuple[str, int], int] = {}
    found = {}
    for target, stored in known.items():
        result = stored.result
        if result.timing is not None:
            number = numbers.setdefault((stored.profile_id, result.timing.group), len(numbers))
            timing = msgspec.structs.replace(result.timing, group=number)
            result = msgspec.structs.replace(result, timing=timing)
        found[target] = result
    return found
