"""A plan in force: compiled, and closed after its last request."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence

from hal.backend import DeviceTime, Executable
from hal.errors import RequestTimeout
from hal.executor.executor import Executor
from hal.executor.homes import Homes, memory_of, whole
from hal.executor.times import Times
from hal.planning.twins import plain
from hal.records.plan import Plan
from hal.session.away import Away
from hal.session.events import Events
from hal.session.faults import Fault, Watch, Watched, told
from hal.session.forking import refusal
from hal.tensor import Tensor

#: What a session adds to a backend's own call, and a deadline on top of that, in nanoseconds.
#: Source: benchmarks/session.py, 3 to 5 us, and docs/failures.md, 20 us.
CALL_NS, DEADLINE_NS = 5_000, 20_000


class Engine:
    """A compiled plan. Requests enter it, run and leave; once retired it is closed after the last one.

    A request that hangs never leaves, so that nothing is ever closed under a call.

    Args:
        plan: That was compiled.
        executable: Of it; owned.
        watch: Of its partitions.
        events: Told where closing fails.

    Attributes:
        done: Set once it is closed.
        times: What its partitions take; of a plan of one partition only how it is timed.
        succession: How it is replaced; None where it is not.
        slowdown: By silicon, how many times as long as in the profile the plan's costs say things take.
    """

    def __init__(self, plan: Plan, executable: Executable, watch: Watch, events: Events) -> None:
        self.plan, self.watch = plan, watch
        self.done = threading.Event()
        self.succession: Succession | None = None
        self.slowdown: dict[str, float] = {}
        # One partition without a deadline needs no watching: it is the one to blame.
        alone = executable.inner if type(executable) is Watched else executable
        self._executable, self._run, self._events = alone, alone.run, events
        self.times = (
            executable.times
            if isinstance(executable, Executor)
            else Times(
                [executable.ability(DeviceTime) is not None],
                beside_ns=CALL_NS + (DEADLINE_NS if watch.is_timed else 0),
            )
        )
        self._lock = threading.Lock()
        self._n_inside = 0
        self._is_retired = self._is_over = False

    @functools.cached_property
    def homes(self) -> Homes:
        """Where tensors may lie; found out at the first request that brings one of a device's memory."""
        one = self._executable
        return one.homes() if isinstance(one, Executor) else whole(one, memory_of(one))

    def enter(self) -> bool:
        """Begin a request, which ends by :meth:`run` or :meth:`leave`; False where the engine is closed."""
        with self._lock:
            if self._is_over:
                return False
            self._n_inside += 1
            return True

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run once, after :meth:`enter`, and leave.

        Raises:
            InputError: The inputs do not fit.
            Exception: Whatever the backend raised.
        """
        try:
            if isinstance(inputs, Away):
                if inputs.homes is self.homes:
                    return self._run(inputs, inputs.room)
                inputs = inputs.on_host()  # they were for a plan that was in force before
            return self._run(inputs)
        finally:
            self.leave()

    def leave(self) -> None:
        """End a request."""
        with self._lock:
            self._n_inside -= 1
            self._is_over = is_over = self._is_retired and not self._n_inside
        if is_over:
            self._end()

    def retire(self) -> None:
        """Close after the last request. A second call does nothing."""
        with self._lock:
            if self._is_retired:
                return
            self._is_retired = True
            self._is_over = is_over = not self._n_inside
        if is_over:
            self._end()

    def failed(self, error: BaseException) -> Fault:
        """What to blame for a request's failure; no target where nobody knows."""
        if isinstance(error, RequestTimeout):
            return Fault(next(iter(error.targets), ""), "timeout", told(error))
        if len(self.plan.partitions) == 1:
            self.watch.blame(plain(self.plan.partitions[0].target), error)
        return next(reversed(self.watch.faults.values()), Fault("", "failed", told(error)))

    def named(self, target: str) -> str:
        """A target as the plan writes it."""
        return next((name for name in self.plan.targets if plain(name) == target), target)

    def _end(self) -> None:
        # On a thread of its own: what closes slowly, or never, must not hold up the request that left last.
        try:
            threading.Thread(target=self._close, name="hal-closing", daemon=True).start()
        except RuntimeError:  # the interpreter shuts down, or the system has no thread left
            self._close()

    def _close(self) -> None:
        try:
            self._executable.close()
        except Exception as error:  # noqa: BLE001  nobody waits for it, and all requests were answered
            self._events.add("failed", "", f"closing {', '.join(self.plan.targets)} failed: {told(error)}")
        finally:
            self.done.set()
        self._events.tell()


class Lost:
    """An engine in a process that was forked from its own: nothing enters it.

    Args:
        engine: That was in force there.
    """

    def __init__(self, engine: Engine) -> None:
        self.plan, self.times, self.watch = engine.plan, engine.times, engine.watch
        self.homes = Homes((), ())

    def enter(self) -> bool:
        """Refuse a request.

        Raises:
            UsedAfterFork: Always.
        """
        raise refusal()


class Succession:
    """How an engine is replaced; made once, by the first request that failed.

    Attributes:
        done: Set once it is decided.
        engine: What replaces it; None where nothing does.
        error: Why nothing does; None where nothing had to.
    """

    def __init__(self) -> None:
        self.done = threading.Event()
        self.engine: Engine | None = None
        self.error: Exception | None = None


__all__ = ["Engine", "Lost", "Succession"]
