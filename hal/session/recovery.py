"""Plans on what is left of a machine, from stored costs: nothing is measured while requests wait."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence

import msgspec

from hal.errors import InputError, NotEnoughMemory, PlanError, RequestTimeout, UserError, problems
from hal.executor.backend import Spot, open_places
from hal.executor.executor import Place, compile_plan, end_of
from hal.executor.partitions import Piece, pieces_of
from hal.graph.cut import Cutter
from hal.graph.model import Graph
from hal.planning.twins import plain
from hal.records.plan import Constraints, Plan
from hal.records.profile import Profile, TargetProfile
from hal.records.targets import Signature, Target
from hal.session.deadline import THREADS
from hal.session.engine import Engine
from hal.session.events import Events
from hal.session.faults import Fault, Watch, told, watched_place
from hal.session.isolation import IsolatedBackend, Isolation
from hal.session.sharing import LEDGER, Claim, capacities, resting
from hal.tensor import Tensor, fits
from hal.worker import Deadlines

#: Seconds for the search of another plan. Requests wait for it; the quick solvers, which run first, find a
#: plan in milliseconds, and what more time gains is less than what waiting costs.
#: Source: ours; a quarter of what ``hal.plan`` takes by default.
SEARCH_S = 0.5
#: How many times as good another plan has to be predicted, for a plan that is slow to be replaced.
#: Source: ours; predictions of plans err by some percent, and compiling another one costs seconds.
WORTH_MOVING = 1.1
#: Seconds after which compiling, or looking for devices, is cut off where the session has a deadline.
COMPILE_S, DISCOVER_S = Deadlines().compile_ns / 1e9, Deadlines().discover_ns / 1e9


class Remaining:
    """What is left of a machine for one session. Its methods are called by one thread at a time.

    Args:
        graph: Bound.
        profile: Of the graph: the stored costs.
        spots: Devices of this machine by ``DEVICE/BACKEND[-VARIANT]``; opened where a plan needs them.
        constraints: What was asked of the plan; every later one keeps it too.
        events: Told what fails.
        is_timed: Whether calls are watched for hanging, and compiling is cut off.
        isolation: Which backends run in child processes; None for none.
        retries: Whether a run whose child process ended is run again in the next one.
        opened: Places that are open already, for this session alone; they stand in for spots of their
            backend.
        compile_s: After which compiling is cut off.
    """

    def __init__(
        self,
        graph: Graph,
        profile: Profile,
        spots: Mapping[str, Spot],
        constraints: Constraints,
        events: Events,
        *,
        is_timed: bool,
        isolation: Isolation | None = None,
        retries: bool = True,
        opened: Mapping[str, Place] | None = None,
        compile_s: float = COMPILE_S,
    ) -> None:
        self._graph, self._profile, self._spots = graph, profile, dict(spots)
        self._constraints, self._events = constraints, events
        self._is_timed, self._compile_s = is_timed, compile_s
        self._isolation, self._retries = isolation or Isolation(), retries
        self._cutter = Cutter(graph)
        self._places: dict[str, Place] = {}
        self._at_hand = dict(opened or {})
        self._out: dict[str, str] = {}
        self._slowdown: dict[str, float] = {}
        self._max_partitions = constraints.max_partitions
        self._claim, self._capacity = Claim(graph.name), capacities(spots.values())

    def first(self, plan: Plan, *, strict: bool) -> Engine:
        """Compile a plan, or another one on what can be compiled.

        Args:
            plan: Of the graph.
            strict: Raise instead.

        Raises:
            PlanError: The plan does not fit the graph.
            NotEnoughMemory: Other sessions hold too much memory.
            HalError: It cannot be compiled, and no other plan either where that was allowed.
        """
        watch = Watch(is_timed=self._is_timed)
        try:
            return self._compiled(plan, watch)
        except NotEnoughMemory:
            raise
        except Exception as error:
            if strict or (isinstance(error, PlanError) and not watch.faults):
                raise
            self._give_up(plan, watch.faults, told(error))
        return self._next()

    def after(self, engine: Engine, reason: str) -> Engine:
        """Plan without what failed in an engine, and compile that.

        Args:
            engine: The plan that failed; what failed in it meanwhile is left out too.
            reason: Why, where no target is to blame.

        Raises:
            UserError: No plan is left that keeps the constraints; says why each target is out.
            NotEnoughMemory: Other sessions hold too much memory.
        """
        self._give_up(engine.plan, engine.watch.faults, reason)
        while True:
            made = self._next()
            if not self._leave_out(engine.watch.faults) or not self._uses_what_is_out(made.plan):
                return made
            made.retire()

    def around(self, engine: Engine, slowdown: Mapping[str, float]) -> Engine | None:
        """Plan with devices as slow as they are, and compile that where it is worth it.

        A slowdown that was found counts as long as this object lives: what is not used is not measured.

        Args:
            engine: The plan in force; what failed in it meanwhile is left out too.
            slowdown: By silicon, how many times as long things take as that plan says.

        Returns:
            None where the plan should stay; an event says why.
        """
        # What it is slower by than the costs say that its plan was made from.
        self._slowdown |= {at: factor * engine.slowdown.get(at, 1.0) for at, factor in slowdown.items()}
        try:
            self._leave_out(engine.watch.faults)
            while True:
                plan, now = self._plan(), self._as_placed(engine.plan)
                if now is not None and plan.objective * WORTH_MOVING > now.objective:
                    better = f"{WORTH_MOVING} times as good as it is now"
                    self._events.add("slow", "", f"the plan stays: no other is predicted to be {better}")
                    return None
                made = self._next()
                if not self._leave_out(engine.watch.faults) or not self._uses_what_is_out(made.plan):
                    return made
                made.retire()
        except Exception as error:  # noqa: BLE001  slow is better than nothing: the plan stays
            self._events.add("failed", "", f"planning around what is slow failed: {told(error)}")
            return None

    @property
    def places(self) -> Mapping[str, Place]:
        """The devices that are open, by ``DEVICE/BACKEND[-VARIANT]``."""
        return dict(self._places)

    def release(self) -> None:
        """Claim no memory any more, and end child processes."""
        LEDGER.release(self._claim)
        for place in list(self._places.values()):
            if isinstance(place.backend, IsolatedBackend):
                place.backend.close()

    # --- compiling ---------------------------------------------------------------------------------------

    def _next(self) -> Engine:
        """The best plan on what is left that can be compiled."""
        while True:
            plan = self._plan()
            watch = Watch(is_timed=self._is_timed)
            try:
                return self._compiled(plan, watch)
            except NotEnoughMemory:
                raise
            except Exception as error:  # noqa: BLE001  whatever a plugin raises: its target is out
                self._give_up(plan, watch.faults, told(error))

    def _compiled(self, plan: Plan, watch: Watch) -> Engine:
        LEDGER.take(self._claim, plan.predicted.memory_bytes, self._capacity)
        if not self._is_timed:
            return self._compile(plan, watch)
        call = THREADS.begin(functools.partial(self._compile, plan, watch), late=Engine.retire)
        try:
            return call.answer(self._compile_s, "compiling")
        except RequestTimeout as error:
            if watch.compiling:
                text = f"compiling did not end within {self._compile_s:g} s"
                watch.faults.setdefault(watch.compiling, Fault(watch.compiling, "timeout", text))
                raise RequestTimeout(f"{watch.compiling}: {text}; it is left behind") from error
            raise

    def _compile(self, plan: Plan, watch: Watch) -> Engine:
        pieces = pieces_of(plan, self._graph)
        targets = [Target.parse(piece.target) for piece in pieces]
        places = {}
        for end in dict.fromkeys(map(end_of, targets)):
            try:
                places[end] = watched_place(end, self._opened(end), watch)
            except Exception as error:
                for target in targets:
                    if end_of(target) == end:
                        watch.blame(plain(str(target)), error)
                raise
        pieces = tuple(self._beside_others(piece, places) for piece in pieces)
        engine = Engine(plan, compile_plan(self._cutter, pieces, places), watch, self._events)
        # What passes to a child process and back is not in the profile's times.
        isolated = [self._isolation.covers(end_of(target)) for target in targets]
        engine.times.unlike = tuple(map(operator.or_, engine.times.unlike, isolated))
        engine.slowdown = dict(self._slowdown)
        return engine

    def _beside_others(self, piece: Piece, places: Mapping[str, Place]) -> Piece:
        """A piece with its threads at rest where those of another session spin."""
        target = Target.parse(piece.target)
        place = places[end_of(target)]
        may_spin = functools.partial(LEDGER.may_spin, self._claim, place.device.silicon)
        changed = resting(target, place.backend.options(place.device), may_spin)
        return piece if changed is target else msgspec.structs.replace(piece, target=str(changed))

    def _opened(self, end: str) -> Place:
        """A place of this machine; each backend is opened once."""
        if end not in self._spots:
            raise PlanError(
                f"the plan needs {end}, which is not here; available are "
                f"{', '.join(self._spots) or 'none'}; plan again for this machine"
            )
        if end not in self._places:
            spot = self._spots[end]
            known = next((one for at, one in self._places.items() if self._is_here(at, spot)), None)
            if self._isolation.covers(end):
                backend = self._isolation.open(end, spot, self._events, retries=self._retries)
                self._places[end] = Place(spot.ref, backend, spot.device)
            elif known is None and end in self._at_hand and self._at_hand[end].ref == spot.ref:
                self._places[end] = self._at_hand[end]
            elif known is None:
                self._places[end] = open_places({end: spot})[end]
            else:
                self._places[end] = Place(spot.ref, known.backend, spot.device)
        return self._places[end]

    def _is_here(self, end: str, spot: Spot) -> bool:
        """Whether the backend of a spot is open at another place, in this process."""
        return self._places[end].ref == spot.ref and not self._isolation.covers(end)

    # --- what is left ------------------------------------------------------------------------------------

    def _plan(self, pinned: Mapping[str, str] | None = None) -> Plan:
        """The best plan by the stored costs, without what is out; or what they say of a placement."""
        targets = tuple(map(self._marked, self._profile.targets))
        constraints = msgspec.structs.replace(
            self._constraints, max_partitions=self._max_partitions, memory_bytes=self._limits(targets)
        )
        if pinned is not None:
            constraints = msgspec.structs.replace(constraints, pinned=dict(pinned))
        profile = msgspec.structs.replace(self._profile, targets=targets)
        # Imported here: most sessions never plan again, and numba takes a third of a second to load.
        from hal.choosing.planner import predicted
        from hal.planning.costs import model

        plan = predicted(model(profile, constraints), budget_s=SEARCH_S)
        why = "; ".join(f"{target}: {reason}" for target, reason in self._out.items())
        slow = ", ".join(f"{at} at {factor:.2f} times its times" for at, factor in self._slowdown.items())
        why = "; ".join(filter(None, (why, slow)))
        note = f"planned again while running, from stored costs: {why}"
        return msgspec.structs.replace(plan, notes=(*plan.notes, note))

    def _marked(self, target: TargetProfile) -> TargetProfile:
        """A target of the profile, failed where it is out."""
        reason = self._out.get(plain(target.target), "")
        if not reason and end_of(Target.parse(target.target)) not in self._spots:
            reason = "it is not on this machine"
        if reason:
            return msgspec.structs.replace(target, status="failed", reason=reason)
        spot = self._spots[end_of(Target.parse(target.target))]
        factor = self._slowdown.get(spot.device.silicon, 1.0)
        if factor == 1.0 or target.timing is None:
            return target
        # The parts of a target's time are found by what it takes end to end (hal.planning.costs_times).
        slow = msgspec.structs.replace(target.timing, median_ns=round(factor * target.timing.median_ns))
        return msgspec.structs.replace(target, timing=slow)

    def _as_placed(self, plan: Plan) -> Plan | None:
        """What the costs as they are now say of a plan; None where they allow it no more."""
        try:
            return self._plan({unit: part.target for part in plan.partitions for unit in part.units})
        except UserError:
            return None

    def _limits(self, targets: Sequence[TargetProfile]) -> dict[str, int]:
        """Limits of memory: those asked for that are still for something, and what other sessions leave."""
        here = {Target.parse(one.target).device for one in targets if one.status == "ok"}
        pools = {device.memory_pool for device in self._profile.devices if device.id in here}
        limits = {
            name: limit for name, limit in self._constraints.memory_bytes.items() if name in here | pools
        }
        for pool, n_bytes in LEDGER.left(self._claim, self._capacity).items():
            if pool in pools:
                limits[pool] = min(limits.get(pool, n_bytes), n_bytes)
        return limits

    def _give_up(self, plan: Plan, faults: Mapping[str, Fault], reason: str) -> None:
        """Leave out what failed in a plan; where nobody knows what did, plans of several partitions."""
        if self._leave_out(faults):
            return
        if len(plan.partitions) == 1:
            target = plain(plan.partitions[0].target)
            self._leave_out({target: Fault(target, "failed", reason)})
            return
        self._max_partitions = 1
        self._events.add(
            "failed", "", f"{reason}; no target is known to be at fault: later plans have one partition"
        )

    def _leave_out(self, faults: Mapping[str, Fault]) -> bool:
        """Leave out targets that failed; whether there were any that are not out yet."""
        # A copy: requests that are under way add to it.
        new = [fault for fault in list(faults.values()) if fault.target not in self._out]
        for fault in new:
            target = Target.parse(fault.target)
            end = end_of(target)
            reason, others = f"it failed: {fault.text}", {fault.target}
            if fault.kind == "timeout" and self._isolation.covers(end):
                reason = f"it hangs: {fault.text}"
                self._events.add("timeout", fault.target, f"{reason}; its process was stopped")
            elif fault.kind == "timeout":
                # Its native code may hold what all its calls need.
                reason, others = f"it hangs: {fault.text}", self._targets_at({end})
                self._events.add("timeout", fault.target, f"{reason}; the call is left behind")
            elif lost := self._lost(end):
                device = target.device
                reason, others = f"{device} is lost: {lost}", self._targets_at(self._beside(end))
                self._events.add("lost", fault.target, f"{reason}; {fault.text}")
            else:
                self._events.add("failed", fault.target, reason)
            for name in (fault.target, *others, *self._measured_as(target)):
                self._out.setdefault(name, reason)
        return bool(new)

    def _lost(self, end: str) -> str:
        """Why the device at a place is gone; empty where it is there."""
        place = self._places.get(end)
        if place is None:
            return ""
        try:
            if self._is_timed:
                listed = THREADS.begin(place.backend.discover).answer(DISCOVER_S, "looking for devices")
            else:
                listed = place.backend.discover()
        except Exception as error:  # noqa: BLE001  a backend that cannot even look has lost its device
            return f"its backend cannot look for devices: {told(error)}"
        key = (place.device.id, place.device.variant)
        found = next((device for device in listed if (device.id, device.variant) == key), None)
        return "its backend does not list it any more" if found is None else found.unavailable

    def _beside(self, end: str) -> set[str]:
        """The places that are lost with one: all on its silicon. The processor is not lost while hal runs."""
        device = self._spots[end].device
        if device.kind == "cpu":
            return {end}
        return {other for other, spot in self._spots.items() if spot.device.silicon == device.silicon}

    def _targets_at(self, ends: set[str]) -> set[str]:
        return {
            plain(one.target) for one in self._profile.targets if end_of(Target.parse(one.target)) in ends
        }

    def _measured_as(self, target: Target) -> set[str]:
        """The targets of the profile that one with streams or threads of a load was made from."""
        names = {plain(one.target) for one in self._profile.targets}
        if plain(str(target)) in names:
            return set()
        precision = target.configuration.precision
        return {
            name
            for name in names & self._targets_at({end_of(target)})
            if Target.parse(name).configuration.precision == precision
        }

    def _uses_what_is_out(self, plan: Plan) -> bool:
        return any(plain(target) in self._out for target in plan.targets)


def misfits(signature: Signature, inputs: Sequence[Tensor]) -> list[str]:
    """What does not fit of a request's inputs, wherever they lie; looked for once a request failed.

    A partition that is fed a tensor of the user's that does not fit must not be taken for one that fails.

    Args:
        signature: Of the model.
        inputs: By position.
    """
    specs = signature.inputs
    if len(inputs) != len(specs):
        return [f"{len(inputs)} were given; expected {len(specs)}: {', '.join(map(str, specs)) or 'none'}"]
    found = []
    for spec, tensor in zip(specs, inputs, strict=True):
        shape = getattr(tensor, "shape", None)
        if shape is not None and not fits(tuple(shape), spec.shape):
            found.append(f"input {spec.name!r} has shape {tuple(shape)}; expected {spec}")
        kind = str(getattr(tensor, "dtype", "")).removeprefix("torch.")
        if kind in _KINDS and kind != spec.dtype:
            found.append(f"input {spec.name!r} is {kind}; expected {spec}")
    return found


def misfed(signature: Signature, inputs: Sequence[Tensor]) -> InputError | None:
    """The error for inputs that do not fit; None where they do."""
    found = misfits(signature, inputs)
    return InputError(problems("the inputs do not fit the model", found)) if found else None


#: Types whose names the frameworks agree on.
_KINDS = frozenset(
    f"{kind}{bits}" for kind, sizes in (("int", (8, 16, 32, 64)), ("uint", (8, 16, 32, 64))) for bits in sizes
) | {"float16", "float32", "float64", "bfloat16", "bool", "complex64", "complex128"}

__all__ = ["COMPILE_S", "SEARCH_S", "Remaining", "misfed", "misfits"]
