"""Requests of any size within the ranges that a session was compiled for.

What was measured and planned, at the largest sizes, holds for all: the same partitions on the same targets.
Where all these targets have the ability ``DynamicShapes``, they are compiled once more, for all sizes. Else
they are compiled for each size that comes, and those of the last few sizes are kept.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from hal.backend import BackendRef, Configuration, Device, DynamicShapes, Executable
from hal.errors import InputError, PlanError, RequestTimeout, UnsupportedGraph
from hal.executor.backend import Spot
from hal.executor.partitions import Piece, cut
from hal.graph.cut import Cutter
from hal.graph.model import Graph
from hal.graph.ranges import Ranges
from hal.plugins import open_backend
from hal.records.plan import Plan
from hal.records.profile import Profile
from hal.session.around import Around
from hal.session.events import Event, Events
from hal.session.faults import told
from hal.session.runner import Carry, Runner
from hal.session.variants import Variants
from hal.tensor import Tensor, as_numpy, own_dtype

#: Shapes of inputs by position.
Sizes = tuple[tuple[int, ...], ...]


class Model:
    """A model with free dimensions, and how it is compiled.

    Args:
        graph: The model as it is in its file.
        free: It with all dimensions bound but those with a range.
        ranges: Of its inputs.
        profile: Measured at the largest sizes.
        spots: As for :func:`hal.session.runner.runner_of`.
        carry: Compiles plans.
    """

    def __init__(
        self,
        graph: Graph,
        free: Graph,
        ranges: Ranges,
        profile: Profile,
        spots: Mapping[str, Spot],
        carry: Carry,
    ) -> None:
        self.graph, self.free, self.ranges = graph, free, ranges
        self._profile, self._spots, self._carry = profile, spots, carry
        self._names = [spec.name for spec in free.signature.inputs]

    def for_all(self, plan: Plan, bound: Graph) -> Runner:
        """A plan compiled for all sizes.

        Args:
            plan: Of the graph at the largest sizes.
            bound: That graph.

        Raises:
            PlanError: Other tensors would pass between the partitions than those that were measured.
            UnsupportedGraph: A target needs bound sizes, for all graphs or for this one.
            HalError: A target failed.
        """
        if len(plan.partitions) > 1:
            pieces = [Piece(one.target, one.nodes) for one in plan.partitions]
            ends = [
                [(set(part.inputs), part.outputs) for part in cut(Cutter(graph), pieces).parts]
                for graph in (self.free, bound)
            ]
            if ends[0] != ends[1]:
                raise PlanError(
                    "with free sizes other tensors pass between the partitions than were measured: what "
                    "follows from the sizes is computed in each run"
                )
        spots = {end: _ranged(spot, self.ranges.limits) for end, spot in self._spots.items()}
        return self._made(self.free, plan, spots, strict=True)

    def for_sizes(self, plan: Plan, sizes: Sizes, *, strict: bool) -> Runner:
        """A plan compiled for inputs of these shapes."""
        graph = self.graph.bind(dict(zip(self._names, sizes, strict=True)))
        return self._made(graph, plan, self._spots, strict=strict)

    def _made(self, graph: Graph, plan: Plan, spots: Mapping[str, Spot], *, strict: bool) -> Runner:
        # Plan and profile name their nodes alike whatever the sizes: they are said to be of this graph.
        model = msgspec.structs.replace(plan.model, digest=graph.digest)
        measured = msgspec.structs.replace(self._profile.model, digest=graph.digest)
        return self._carry(
            graph,
            msgspec.structs.replace(plan, model=model),
            msgspec.structs.replace(self._profile, model=measured),
            spots,
            strict=strict,
        )


class AnySize:
    """Carries out requests of sizes within ranges. Any thread may use it.

    Args:
        model: The model.
        bound: The graph at its largest sizes.
        runner: Carries out requests of these; its plan is the one in force.
        strict: Raise what a backend raises.
        events: Where things are noted.

    Attributes:
        ranges: Of the inputs.
    """

    def __init__(self, model: Model, bound: Graph, runner: Runner, *, strict: bool, events: Events) -> None:
        self.ranges = model.ranges
        self._model, self._runner, self._strict, self._events = model, runner, strict, events
        self._dtypes = [own_dtype(spec.dtype) for spec in bound.signature.inputs]
        self._largest: Sizes = tuple(
            tuple(int(size) for size in spec.shape) for spec in bound.signature.inputs
        )
        self._lock = threading.Lock()
        self._by_size: Variants[Runner] = Variants()
        self._for_all: Runner | None = None
        try:
            self._for_all = model.for_all(runner.plan, bound)
        except Exception as error:  # noqa: BLE001  whatever a plugin raises: sizes are compiled as they come
            self._events.add("sizes", "", f"each size is compiled when it first comes: {told(error)}")
        self._events.tell()

    @property
    def events(self) -> Sequence[Event]:
        """What happened, in no order."""
        runners = [*self._by_size.kept, *([self._for_all] if self._for_all is not None else [])]
        return [*self._events.kept, *(event for runner in runners for event in runner.events)]

    @property
    def is_for_all(self) -> bool:
        """Whether a size that did not come before costs nothing."""
        return self._for_all is not None

    def fit(self, tensors: Sequence[Any]) -> bool:
        """Whether tensors are plain numpy arrays of the right types within the ranges."""
        shapes = []
        for tensor, dtype in zip(tensors, self._dtypes, strict=True):
            if type(tensor) is not np.ndarray or tensor.dtype is not dtype:
                return False
            shapes.append(tensor.shape)
        return self.ranges.hold(shapes)

    def run(self, arrays: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run once.

        Args:
            arrays: On the host, by position, within the ranges.

        Raises:
            Exception: As :meth:`hal.session.runner.Runner.run`.
        """
        sizes: Sizes = tuple(as_numpy(array).shape for array in arrays)
        if sizes == self._largest:
            return self._runner.run(arrays)
        runner = self._for_all
        if runner is not None:
            try:
                return runner.run(arrays)
            except InputError:
                raise
            except Exception as error:
                # A request that waited too long behind others fails; one whose target fails is run again.
                if self._strict or (isinstance(error, RequestTimeout) and not error.targets):
                    raise
                self._give_up(runner, error)
        make = functools.partial(self._make, sizes)
        with self._by_size.lease(sizes, make) as one:
            return one.run(arrays)

    def close(self) -> None:
        """Release everything, after the requests under way. A second call does nothing."""
        with self._lock:
            runner, self._for_all = self._for_all, None
        self._by_size.close()
        if runner is not None:
            runner.close()

    def _make(self, sizes: Sizes) -> Runner:
        return self._model.for_sizes(self._runner.plan, sizes, strict=self._strict)

    def _give_up(self, runner: Runner, error: Exception) -> None:
        """Compile size by size from now on: there, what fails is planned anew."""
        with self._lock:
            if self._for_all is not runner:
                return
            self._for_all = None
        # Others may still run on it, and whatever hangs in it must not hold this request up.
        threading.Thread(target=runner.close, name="hal-closing", daemon=True).start()
        self._events.add("retried", "", f"a request is run again, compiled for its own size: {told(error)}")
        self._events.add("sizes", "", "each size is compiled when it first comes from now on")
        self._events.tell()


def _ranged(spot: Spot, limits: Mapping[str, tuple[int, int]]) -> Spot:
    """A spot whose backend compiles for ranges; it can be opened in any process."""
    configuration = {
        "ref": msgspec.to_builtins(spot.ref),
        "limits": {name: list(limit) for name, limit in limits.items()},
    }
    ref = BackendRef(f"{__name__}:ranged_backend", configuration)
    return Spot(ref=ref, device=spot.device)


def ranged_backend(ref: Mapping[str, Any], limits: Mapping[str, Sequence[int]]) -> RangedBackend:
    """Open a backend that compiles for ranges.

    Args:
        ref: Of the backend, as JSON.
        limits: The lowest and the highest size of each free dimension.

    Raises:
        PluginLoadError: It cannot be opened.
    """
    inner = open_backend(msgspec.convert(dict(ref), BackendRef))
    return RangedBackend(inner, {name: (low, high) for name, (low, high) in limits.items()})


class RangedBackend(Around):
    """Compiles for ranges of sizes.

    Args:
        inner: The backend that does it.
        limits: The lowest and the highest size of each free dimension.
    """

    def __init__(self, inner: Any, limits: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(inner)
        self._limits = dict(limits)

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        """See :meth:`hal.backend.DynamicShapes.compile_ranges`.

        Raises:
            UnsupportedGraph: The backend does not have the ability.
        """
        able: Any = self._inner.ability(DynamicShapes)
        if able is None:
            raise UnsupportedGraph(f"{self.name} compiles for bound sizes only")
        made: Executable = able.compile_ranges(device, graph, configuration, self._limits)
        return made


__all__ = ["AnySize", "Model", "RangedBackend", "ranged_backend"]
