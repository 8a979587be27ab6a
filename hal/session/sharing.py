"""What the sessions of a process share: memory, so that a second one is not loaded in vain, and idle cores.

Runtimes keep their threads spinning for a while after a run, so that the next one starts sooner. One session
may have that of a silicon; the threads of others would take its cores away, so they sleep between runs.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from hal.backend import Configuration, OptionSpec, Target
from hal.errors import NotEnoughMemory, problems
from hal.executor.backend import Spot
from hal.units import format_bytes


class Claim:
    """What one session holds. It ends with :meth:`Ledger.release`, or when nobody has it any more.

    Args:
        who: Name of the model.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self.needs: dict[str, int] = {}


class Ledger:
    """The claims of a process. Any thread may use it."""

    def __init__(self) -> None:
        self._claims: weakref.WeakSet[Claim] = weakref.WeakSet()
        self._spinning: weakref.WeakValueDictionary[str, Claim] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def take(self, claim: Claim, needs: Mapping[str, int], capacity: Mapping[str, int]) -> None:
        """Claim memory in place of what was claimed before. What is refused changes nothing.

        Only what sessions need together is judged here: a session alone is the planner's business.

        Args:
            claim: The session's.
            needs: Bytes by memory pool, as the plan predicts.
            capacity: Bytes of each pool; pools whose size nobody tells are left out.

        Raises:
            NotEnoughMemory: Sessions need more of a pool than there is; all needs of it are named.
        """
        with self._lock:
            others = [one for one in self._claims if one is not claim]
            found = []
            for pool, needed in needs.items():
                held = [(one.who, one.needs[pool]) for one in others if one.needs.get(pool)]
                taken = sum(n_bytes for _, n_bytes in held)
                if not needed or not taken or taken + needed <= capacity.get(pool, taken + needed):
                    continue
                names = ", ".join(f"{who!r} ({format_bytes(n_bytes)})" for who, n_bytes in held)
                found.append(
                    f"{claim.who!r} needs {format_bytes(needed)} of {pool}, which has "
                    f"{format_bytes(capacity[pool])}, and sessions of this process hold "
                    f"{format_bytes(taken)} of it: {names}"
                )
            if found:
                raise NotEnoughMemory(
                    problems(f"the session of {claim.who!r} does not fit beside the others", found)
                    + "; close one of them, or compile with memory={...} or other targets"
                )
            claim.needs = {pool: needed for pool, needed in needs.items() if needed}
            self._claims.add(claim)

    def left(self, claim: Claim, capacity: Mapping[str, int]) -> dict[str, int]:
        """Bytes of each pool that other sessions leave to this one; only pools of which they hold some."""
        with self._lock:
            taken: dict[str, int] = {}
            for one in self._claims:
                if one is not claim:
                    for pool, n_bytes in one.needs.items():
                        taken[pool] = taken.get(pool, 0) + n_bytes
        return {pool: max(capacity[pool] - held, 0) for pool, held in taken.items() if pool in capacity}

    def may_spin(self, claim: Claim, silicon: str) -> bool:
        """Whether a session's threads may spin on a silicon: those of the first that asked, until it ends."""
        with self._lock:
            return self._spinning.setdefault(silicon, claim) is claim

    def release(self, claim: Claim) -> None:
        """Hold nothing any more. A second call does nothing."""
        with self._lock:
            claim.needs = {}
            self._claims.discard(claim)
            for silicon, holder in list(self._spinning.items()):
                if holder is claim:
                    del self._spinning[silicon]


def resting(target: Target, options: Sequence[OptionSpec], may_spin: Callable[[], bool]) -> Target:
    """A target as a session compiles it beside others: its threads at rest where another's may spin.

    Args:
        target: What the plan says; what it says of ``spinning`` itself stays.
        options: Those of its backend.
        may_spin: Asked where its threads would spin.
    """
    given = dict(target.configuration.options)
    spins = given.get("threads") != 1 and any(one.name == "spinning" and one.default for one in options)
    if not spins or "spinning" in given or may_spin():
        return target
    changed = Configuration.of(target.configuration.precision, {**given, "spinning": False})
    return msgspec.structs.replace(target, configuration=changed)


def capacities(spots: Iterable[Spot]) -> dict[str, int]:
    """Bytes of each memory pool: the least that any backend tells of it."""
    found: dict[str, int] = {}
    for spot in spots:
        pool, n_bytes = spot.device.memory_pool, spot.device.memory_bytes
        if n_bytes is not None:
            found[pool] = min(found.get(pool, n_bytes), n_bytes)
    return found


#: Of this process.
LEDGER = Ledger()

__all__ = ["LEDGER", "Claim", "Ledger", "capacities", "resting"]
