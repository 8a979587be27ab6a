"""What carries out a session's requests, and goes on when a device fails.

A request runs on the plan in force. Where that fails, the target that failed is left out, another plan is
made from stored costs by one thread while the requests that failed wait, and each of them is run again once.
Requests that were under way on the old plan finish there, or fail and are run again on the new one. The old
plan is closed after the last of them.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from hal.errors import BackendError, InputError, RequestTimeout, UserError, problems
from hal.executor.backend import Spot
from hal.executor.executor import Place
from hal.executor.homes import Homes
from hal.executor.times import Times
from hal.graph.model import Graph
from hal.records.plan import Constraints, Plan
from hal.records.profile import Profile
from hal.records.targets import Signature
from hal.session.deadline import THREADS
from hal.session.engine import Engine, Lost, Succession
from hal.session.events import Event, EventKind, Events, OnEvent
from hal.session.faults import told
from hal.session.forking import abandon, follow
from hal.session.isolation import Isolation
from hal.session.recovery import Remaining, misfed
from hal.tensor import Tensor


class Runner(Protocol):
    """A plan that is carried out, and replaced where it cannot be."""

    @property
    def plan(self) -> Plan:
        """The plan now in force; another one after a failure."""
        ...

    @property
    def in_force(self) -> tuple[Plan, Times]:
        """That plan, and what its partitions take."""
        ...

    @property
    def places(self) -> Mapping[str, Place]:
        """The devices that are open, by ``DEVICE/BACKEND[-VARIANT]``."""
        ...

    @property
    def signature(self) -> Signature:
        """Inputs and outputs by position, in the order of the graph's."""
        ...

    @property
    def events(self) -> Sequence[Event]:
        """What happened, the oldest first; a thousand at most."""
        ...

    @property
    def n_events(self) -> Mapping[str, int]:
        """How many events there were of each kind, forgotten ones included."""
        ...

    @property
    def homes(self) -> Homes:
        """Where tensors may lie for the plan now in force."""
        ...

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run once. Any number of threads may call it.

        Args:
            inputs: By position. They are borrowed for the call; where it ends with RequestTimeout, the call
                that was left behind may still read them.

        Returns:
            One tensor per output, owned by the caller.

        Raises:
            InputError: Wrong count, type or shape.
            RequestTimeout: The deadline passed, and where there is another plan, passed there too.
            BackendError: A backend failed, and what came after it too; the text names both.
            Exception: Where the session is strict, what the backend raised.
        """
        ...

    def slow(self, target: str, text: str, slowdown: Mapping[str, float] | None) -> None:
        """Note that a target is slow, and plan again where it is said by how much.

        Requests go on meanwhile, and those under way end on the plan that they began on.

        Args:
            target: The target.
            text: What was found, in a sentence.
            slowdown: By silicon, how many times as long as it should it takes; None to plan nothing.
        """
        ...

    def close(self) -> None:
        """Release everything, after the requests under way. A second call does nothing."""
        ...


class Carry(Protocol):
    """Compiles a plan: :func:`runner_of` with what all plans of a session have in common."""

    def __call__(
        self, graph: Graph, plan: Plan, profile: Profile, spots: Mapping[str, Spot], *, strict: bool
    ) -> Runner:
        """What carries requests out; the arguments are those of :func:`runner_of`."""
        ...


def runner_of(
    graph: Graph,
    plan: Plan,
    profile: Profile,
    spots: Mapping[str, Spot],
    *,
    constraints: Constraints,
    strict: bool = False,
    deadline_s: float | None = None,
    on_event: OnEvent | None = None,
    isolation: Isolation | None = None,
    opened: Mapping[str, Place] | None = None,
) -> Runner:
    """Open the backends of a plan in this process and compile it.

    Where it cannot be compiled, another plan is made without what failed, as later for requests.

    Args:
        graph: Bound.
        plan: Of the graph.
        profile: Of the graph: the stored costs of later plans.
        spots: Devices of this machine by ``DEVICE/BACKEND[-VARIANT]``, for this plan and for later ones.
        constraints: What was asked of the plan; later plans keep it too.
        strict: Never plan again: what a backend raises is raised.
        deadline_s: Seconds after which a run is cut off; None for never. Requests then run on other threads,
            which costs about 20 microseconds each.
        on_event: Told of each event.
        isolation: Which backends run in child processes; None for none.
        opened: Places that are open already, which nobody else uses, so that they are not opened again.

    Raises:
        UserError: The deadline is none.
        InputError: A name of what is to be isolated matches nothing.
        PlanError: The plan does not fit the graph or this machine.
        NotEnoughMemory: Sessions of this process would need more of a memory together than it has.
        HalError: The plan cannot be compiled, and where it need not be this one, no other either.
    """
    if deadline_s is not None and not (math.isfinite(deadline_s) and deadline_s > 0):
        raise UserError(
            f"deadline_s is {deadline_s}; expected a number of seconds above 0, or None for no deadline"
        )
    if isolation is not None:
        isolation.check(list(spots))
    events = Events(on_event)
    is_timed = deadline_s is not None
    remaining = Remaining(
        graph,
        profile,
        spots,
        constraints,
        events,
        is_timed=is_timed,
        isolation=isolation,
        opened=opened,
        retries=not strict,
    )
    try:
        engine = remaining.first(plan, strict=strict)
    except BaseException:
        remaining.release()
        events.tell()
        raise
    if engine.plan is not plan:
        events.add("replanned", "", f"the plan could not be compiled; now: {engine.plan.placement}")
    events.tell()
    return SurvivingRunner(graph.signature, engine, remaining, events, strict=strict, deadline_s=deadline_s)


class SurvivingRunner:
    """See :class:`Runner`.

    Args:
        signature: Of the graph.
        engine: The plan, compiled; owned.
        remaining: Makes other ones; owned.
        events: Where things are noted.
        strict: Never plan again.
        deadline_s: Seconds after which a run is cut off; None for never.
    """

    def __init__(
        self,
        signature: Signature,
        engine: Engine,
        remaining: Remaining,
        events: Events,
        *,
        strict: bool,
        deadline_s: float | None,
    ) -> None:
        self.signature = signature
        self._engine, self._remaining, self._events = engine, remaining, events
        self._strict, self._deadline_s = strict, deadline_s
        self._lock = threading.Lock()
        self._old: list[Engine] = []
        self._is_closed = False
        follow(self)

    @property
    def plan(self) -> Plan:
        """The plan now in force."""
        return self._engine.plan

    @property
    def in_force(self) -> tuple[Plan, Times]:
        """See :meth:`Runner.in_force`."""
        engine = self._engine
        return engine.plan, engine.times

    @property
    def places(self) -> Mapping[str, Place]:
        """See :meth:`Runner.places`."""
        return self._remaining.places

    @property
    def events(self) -> Sequence[Event]:
        """What happened, the oldest first."""
        return self._events.kept

    @property
    def n_events(self) -> Mapping[str, int]:
        """How many there were of each kind."""
        return self._events.counts

    @property
    def homes(self) -> Homes:
        """See :meth:`Runner.homes`."""
        return self._engine.homes

    def slow(self, target: str, text: str, slowdown: Mapping[str, float] | None) -> None:
        """See :meth:`Runner.slow`."""
        self._events.add("slow", target, text)
        self._events.tell()
        if slowdown is None:
            return
        engine = self._engine
        with self._lock:
            if self._is_closed or self._engine is not engine or engine.succession is not None:
                return
            succession = engine.succession = Succession()
        self._start(functools.partial(self._move, engine, succession, slowdown))

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """See :meth:`Runner.run`."""
        engine = self._engine
        while not engine.enter():
            engine = self._current()
        try:
            return engine.run(inputs) if self._deadline_s is None else self._within(engine, inputs)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a backend raises; the engine was left
            return self._again(engine, inputs, error)

    def close(self) -> None:
        """See :meth:`Runner.close`. It waits for the requests under way, for calls that hang it does not."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            engines = [*self._old, self._engine]
        for engine in engines:
            engine.retire()
        for engine in engines:
            if not engine.watch.stuck:
                engine.done.wait(self._deadline_s)
        self._remaining.release()
        self._events.tell()

    def forked(self) -> None:
        """Refuse requests: this is a process that was forked from the session's."""
        abandon(self._engine, self._old, self._remaining)
        self._lock = threading.Lock()
        self._is_closed = True
        self._engine = Lost(self._engine)  # type: ignore[assignment]  # no request gets past enter

    # --- one request -------------------------------------------------------------------------------------

    def _current(self) -> Engine:
        """The engine in force, where one that was is closed."""
        with self._lock:
            if self._is_closed:
                raise BackendError("this session is closed; compile the model again")
            return self._engine

    def _within(self, engine: Engine, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run on another thread, and leave it where it does not come back; the engine was entered."""
        assert self._deadline_s is not None
        began_s = time.monotonic()
        try:
            if stuck := engine.watch.stuck:
                raise _timeout(f"an earlier request still hangs in {', '.join(stuck)}", stuck)
            call = THREADS.begin(functools.partial(engine.run, inputs))
        except BaseException:
            engine.leave()
            raise
        try:
            return call.answer(self._deadline_s, "the session")
        except RequestTimeout as error:
            waited = f"a request was not answered within {self._deadline_s:g} s"
            found = engine.watch.hanging(began_s, self._deadline_s) or engine.watch.stuck
            if found:
                raise _timeout(f"{waited}: {', '.join(found)} hangs, and is cut off", found) from error
            if starting := engine.watch.starting:
                raise _timeout(
                    f"{waited}: the process of {', '.join(starting)} ended, and another one is being "
                    "started, which later requests will find done"
                ) from error
            raise _timeout(
                f"{waited}: it waited behind others; send fewer at once or set a later deadline_s"
            ) from error

    def _again(self, engine: Engine, inputs: Sequence[Tensor], first: Exception) -> Sequence[Tensor]:
        """Run a request that failed once more, on another plan."""
        try:
            is_replaced = self._engine is not engine
            if isinstance(first, RequestTimeout) and not first.targets and not is_replaced:
                self._events.add("timeout", "", str(first))
                raise first
            if (misfit := misfed(self.signature, inputs)) is not None:
                raise misfit from first
            fault = engine.failed(first)
            if self._strict:
                self._events.add(fault.kind, engine.named(fault.target), fault.text)
                raise first
            successor = self._successor(engine, first)
            self._events.tell()
            return self._once_more(successor, inputs, first)
        finally:
            self._events.tell()

    def _once_more(self, engine: Engine, inputs: Sequence[Tensor], first: Exception) -> Sequence[Tensor]:
        while not engine.enter():
            engine = self._current()
        self._events.add("retried", "", f"a request is run again on {engine.plan.placement}")
        try:
            return engine.run(inputs) if self._deadline_s is None else self._within(engine, inputs)
        except InputError:
            raise
        except Exception as second:
            fault, text = engine.failed(second), told(second)
            self._events.add(fault.kind, engine.named(fault.target), f"a request failed again: {text}")
            then = f"run again on {engine.plan.placement}, it failed too: {text}"
            raise _twice(first, then, second) from second

    # --- another plan ------------------------------------------------------------------------------------

    def _successor(self, engine: Engine, first: Exception) -> Engine:
        """What replaces an engine that failed. The first to ask has it made; the others wait."""
        with self._lock:
            if self._engine is not engine:
                return self._engine
            succession = engine.succession
            is_first = succession is None
            if succession is None:
                succession = engine.succession = Succession()
        if is_first:
            make = functools.partial(self._remaining.after, engine, told(first))
            self._start(functools.partial(self._replace, engine, succession, make))
        if not succession.done.wait(self._deadline_s):
            raise _timeout(
                f"{told(first)}; planning again did not end within {self._deadline_s:g} s: later requests "
                "will find it done",
                getattr(first, "targets", ()),
            ) from first
        if succession.engine is None and succession.error is None:
            # It was to be replaced because it is slow, and was not.
            return self._successor(engine, first)
        if succession.engine is None:
            assert succession.error is not None
            why = told(succession.error)
            raise _twice(first, f"no other plan can be carried out: {why}", first) from succession.error
        return succession.engine

    def _start(self, work: Callable[[], None]) -> None:
        # On a thread of its own: a caller that stops waiting, or is interrupted, leaves it to the others.
        try:
            threading.Thread(target=work, name="hal-planning", daemon=True).start()
        except RuntimeError:  # the system has no thread left
            work()

    def _move(self, engine: Engine, succession: Succession, slowdown: Mapping[str, float]) -> None:
        self._replace(engine, succession, functools.partial(self._remaining.around, engine, slowdown))
        # No request waits for it that could tell.
        self._events.tell()

    def _replace(self, engine: Engine, succession: Succession, make: Callable[[], Engine | None]) -> None:
        is_decided = False
        try:
            made = make()
            if made is None:
                with self._lock:
                    engine.succession = None
                    is_closed = self._is_closed
                is_decided = True
                if is_closed:
                    self._remaining.release()
                return
            with self._lock:
                if is_closed := self._is_closed:
                    succession.error = BackendError("this session is closed; compile the model again")
                else:
                    self._old = [one for one in self._old if not one.done.is_set()] + [engine]
                    self._engine = succession.engine = made
            if is_closed:
                made.retire()
                self._remaining.release()
                return
            engine.retire()
            self._events.add("replanned", "", f"now: {made.plan.placement}")
        except Exception as error:  # noqa: BLE001  each request that waits raises it as its own
            succession.error = error
            self._events.add("failed", "", f"no other plan can be carried out: {told(error)}")
        finally:
            if succession.engine is None and succession.error is None and not is_decided:
                succession.error = BackendError("planning again was interrupted")
            succession.done.set()


def _timeout(text: str, targets: tuple[str, ...] = ()) -> RequestTimeout:
    error = RequestTimeout(text)
    error.targets = targets
    return error


def _twice(first: Exception, then: str, last: Exception) -> BackendError | RequestTimeout:
    """One error for two failures, of the kind of the last one."""
    text = problems(
        "a request failed and could not be carried out otherwise",
        [told(first), f"{then}; see the session's events, and compile anew once the devices are well"],
    )
    return _timeout(text, last.targets) if isinstance(last, RequestTimeout) else BackendError(text)


__all__ = ["Carry", "Event", "EventKind", "OnEvent", "Runner", "runner_of"]
