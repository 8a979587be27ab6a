"""Placements under load, as a backend for a worker's child: requests in line, as a session takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from hal.backend import (
    API_VERSION,
    Backend,
    BackendRef,
    Configuration,
    Device,
    Executable,
    Kernel,
    KernelRuns,
    OptionSpec,
    OwnClock,
    Signature,
    Support,
    Target,
    Tensor,
)
from hal.clock import Clock, MonotonicClock
from hal.errors import BackendError, InputError, TargetError
from hal.executor.backend import PLAN, Spot, open_places
from hal.executor.executor import Place, compile_plan, end_of
from hal.executor.gathering import Line
from hal.executor.joining import Joined, worth_from
from hal.executor.partitions import Piece
from hal.graph.difference import tensor_errors
from hal.graph.rebatch import rebatched
from hal.profiling.judge import tolerance
from hal.tensor import Array, as_numpy
from hal.worker.sampler import rest

if TYPE_CHECKING:
    from hal.graph.model import Graph

#: Names of the kernels that :meth:`Loaded.kernel_runs` tells of.
REQUEST, ALONE, TOGETHER = "request", "alone", "together"
#: Seed of the requests that gathered and single answers are compared on.
_SEED = 0


def load_ref(spots: Mapping[str, Spot], placements: Sequence[Sequence[Piece]]) -> BackendRef:
    """Names placements under load across a process boundary.

    Args:
        spots: By ``DEVICE/BACKEND[-VARIANT]``; those that the placements use are opened.
        placements: The partitions of each, by its number.
    """
    used = {end_of(Target.parse(piece.target)) for pieces in placements for piece in pieces}
    return BackendRef(
        f"{__name__}:load_backend",
        {
            "spots": msgspec.to_builtins({end: spots[end] for end in spots if end in used}),
            "placements": msgspec.to_builtins([list(pieces) for pieces in placements]),
        },
    )


def load_configuration(
    pieces: Sequence[Piece], placement: int, n_in_flight: int, batch: int
) -> Configuration:
    """What compiles a placement for a load, in the least precise of its precisions, by which it is judged."""
    used = {Target.parse(piece.target).configuration.precision for piece in pieces}
    precision = next((p for p in ("bf16", "fp16") if p in used), "fp32")
    options = {"placement": placement, "in_flight": n_in_flight, "batch": batch}
    return Configuration.of(precision, options)


def load_backend(spots: Mapping[str, Any], placements: Sequence[Any]) -> LoadBackend:
    """Open the backends of the spots, each once.

    Raises:
        PluginLoadError: A backend cannot be opened.
    """
    return LoadBackend(
        open_places(msgspec.convert(dict(spots), dict[str, Spot])),
        msgspec.convert(list(placements), list[tuple[Piece, ...]]),
    )


class LoadBackend(Backend):
    """Compiles placements, to be run with several requests at once.

    Args:
        places: Of the targets that the placements name.
        placements: Partitions of each.
    """

    name = "load"
    api_version = API_VERSION

    def __init__(self, places: Mapping[str, Place], placements: Sequence[Sequence[Piece]]) -> None:
        self._places, self._placements = dict(places), list(placements)

    def discover(self) -> Sequence[Device]:
        """The one device of plans; asks every backend, so that the runtimes' libraries are loaded."""
        for backend in {id(place.backend): place.backend for place in self._places.values()}.values():
            backend.discover()
        return (PLAN,)

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """Which placement, how many runs at once, and how many requests in a run."""
        return tuple(
            OptionSpec(name=name, kind="int", default=default)
            for name, default in (("placement", 0), ("in_flight", 1), ("batch", 1))
        )

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """Yes: placements were planned for what their targets support."""
        return dict.fromkeys(graph.nodes, Support(True))

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Loaded:
        """Compile a placement, once more for gathered requests, and check that their answers are the same.

        Raises:
            TargetError: There is no such placement.
            InputError: Requests cannot be gathered, or are answered otherwise then.
            PluginError: A backend cannot compile its partition.
        """
        number, n_in_flight, batch = (
            int(configuration.option(name, default))
            for name, default in (("placement", 0), ("in_flight", 1), ("batch", 1))
        )
        if not 0 <= number < len(self._placements):
            raise TargetError(f"there is no placement {number}; there are {len(self._placements)}")
        pieces = self._placements[number]
        many = rebatched(graph, batch) if batch > 1 else None
        single = compile_plan(graph, pieces, self._places)
        if many is None:
            return Loaded(single, None, n_in_flight, self._clock(pieces))
        gathered = None
        try:
            gathered = compile_plan(many, pieces, self._places)
            loaded = Loaded(single, gathered, n_in_flight, self._clock(pieces), batch=batch)
            loaded.check = partial(check_gathered, graph, configuration.precision, loaded)
            return loaded
        except BaseException:
            single.close()
            if gathered is not None:
                gathered.close()
            raise

    def _clock(self, pieces: Sequence[Piece]) -> Clock | None:
        """The clock that all its devices live by, where it is not the host's."""
        for piece in pieces:
            own = self._places[end_of(Target.parse(piece.target))].backend.ability(OwnClock)
            if own is not None:
                return own.clock
        return None


class Loaded(Executable):
    """A placement with requests in line. It has the ability KernelTimes, which tells of the load.

    Args:
        single: For one request; closed with this object.
        gathered: For several at once; None where there is no such. Closed with this object.
        n_in_flight: Runs at once.
        clock: Of the devices, where it is not the host's.
        batch: Requests in a gathered run.

    Attributes:
        check: Called with the first inputs, before anything is measured; raises where answers differ.
    """

    def __init__(
        self,
        single: Executable,
        gathered: Executable | None,
        n_in_flight: int,
        clock: Clock | None,
        *,
        batch: int = 1,
    ) -> None:
        self.check: Callable[[Sequence[Array]], None] | None = None
        self._single, self._gathered = single, gathered
        self._has_own_clock = clock is not None
        self._now_ns = (clock or MonotonicClock()).now_ns
        self.joined = None if gathered is None else Joined(gathered.run, single.signature, batch)
        self._line: Line[Sequence[Tensor], Sequence[Tensor]] = Line(single.run, n_in_flight, self.joined)

    @property
    def signature(self) -> Signature:
        """Of one request."""
        return self._single.signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """One request alone."""
        return self._single.run(inputs, outputs)

    def kernel_runs(self, inputs: Sequence[Tensor], n_runs: int) -> KernelRuns:
        """Keep it busy: as many requests as are in flight and one run's more, for some rounds.

        Args:
            inputs: Of each request.
            n_runs: Rounds that are measured: in each, every thread makes one run. The first one, which fills
                the line, and the last ones, which empty it, are not.

        Returns:
            The time of all measured rounds as ``run_ns``; kernels by name: what each :data:`REQUEST` took
            from being put in line, and a run :data:`ALONE` and :data:`TOGETHER`, nothing else going on.
        """
        if self.check is not None:
            self.check([as_numpy(tensor) for tensor in inputs])
            self.check = None
        alone_ns = self._time(lambda: self._single.run(inputs))
        together_ns = 0
        if self.joined is not None:
            joined = self.joined
            together_ns = self._time(lambda: joined.run([inputs] * joined.most))
            joined.worth_from = worth_from(alone_ns, together_ns, joined.most)
        if self._has_own_clock:
            elapsed_ns, durations_ns = self._drive_unseen(inputs, n_runs)
        else:
            elapsed_ns, durations_ns = self._drive(inputs, n_runs)
            rest()
        told = ((REQUEST, durations_ns), (ALONE, [alone_ns]), (TOGETHER, [together_ns]))
        kernels = tuple(
            Kernel(name=name, type="load", nodes=(), durations_ns=tuple(taken)) for name, taken in told
        )
        return KernelRuns(kernels=kernels, run_ns=(elapsed_ns,), defines_units=False)

    def close(self) -> None:
        """Close both, after the requests in line. A second call does nothing."""
        self._line.close()
        self._single.close()
        if self._gathered is not None:
            self._gathered.close()

    def _drive(self, inputs: Sequence[Tensor], n_rounds: int) -> tuple[int, list[int]]:
        """Time from the end of the first round to that of the last one, and that of each request between."""
        line = self._line
        a_round = line.n_at_once * line.most
        waiting: deque[Future[Sequence[Tensor]]] = deque()
        durations_ns: list[int] = []

        def told(began_ns: int, _: Future[Sequence[Tensor]]) -> None:
            durations_ns.append(self._now_ns() - began_ns)

        def begin() -> None:
            began_ns = self._now_ns()
            future = line.submit(inputs)
            future.add_done_callback(partial(told, began_ns))
            waiting.append(future)

        for _ in range(line.window):
            begin()
        started_ns = n_before = 0
        for number in range((n_rounds + 1) * a_round):
            waiting.popleft().result()
            if number == a_round - 1:
                started_ns, n_before = self._now_ns(), len(durations_ns)
            begin()
        elapsed_ns = self._now_ns() - started_ns
        for future in waiting:
            future.result()
        # Only now: a duration may be told a little later than the answer.
        return elapsed_ns, durations_ns[n_before : n_before + n_rounds * a_round]

    def _drive_unseen(self, inputs: Sequence[Tensor], n_rounds: int) -> tuple[int, list[int]]:
        """The same by a clock of the devices' own, at which nobody looks meanwhile: to look is to wait.

        What fills and empties the line is shared by all requests. What each takes is not seen; on average it
        is as follows from how many there are. Source: Little's law (Little, "A Proof for the Queuing Formula:
        L = lambda W", Operations Research 9, 1961).
        """
        line = self._line
        n_counted = n_rounds * line.n_at_once * line.most
        waiting: deque[Future[Sequence[Tensor]]] = deque()
        began_ns = self._now_ns()
        for number in range(n_counted + line.window):
            if number >= line.window:
                waiting.popleft().result()
            waiting.append(line.submit(inputs))
        for future in waiting:
            future.result()
        each_ns = (self._now_ns() - began_ns) / (n_counted + line.window)
        return round(each_ns * n_counted), [round(each_ns * line.window)] * n_counted

    def _time(self, call: Callable[[], object]) -> int:
        call()
        began_ns = self._now_ns()
        call()
        return self._now_ns() - began_ns


def check_gathered(graph: Graph, precision: str, loaded: Loaded, inputs: Sequence[Array]) -> None:
    """Compare gathered answers with those of single runs, on requests that differ.

    The requests have the values of the example in other places, so that ids and masks stay legal ones.

    Args:
        graph: Of one request.
        precision: Says how far rounding may take them apart.
        loaded: Compiled for both.
        inputs: The example.

    Raises:
        InputError: They differ by more than rounding; says which output, and by how much.
    """
    assert loaded.joined is not None
    generator = np.random.default_rng(_SEED)
    requests = [list(inputs)]
    requests += [
        [generator.permutation(array.ravel()).reshape(array.shape) for array in inputs]
        for _ in range(loaded.joined.most - 1)
    ]
    try:
        gathered = loaded.joined.run(requests)
    except (BackendError, ValueError) as error:
        raise InputError(f"requests of {graph.name!r} cannot be gathered: {error}") from error
    most = tolerance(precision, graph)
    for request, answers in zip(requests, gathered, strict=True):
        alone = loaded.run(request)
        for spec, want, got in zip(loaded.signature.outputs, alone, answers, strict=True):
            expected = as_numpy(want)
            if expected.shape != got.shape:
                raise InputError(
                    f"requests of {graph.name!r} cannot be gathered: output {spec.name!r} is "
                    f"{list(got.shape)}, and {list(expected.shape)} for one request alone"
                )
            error_l2 = tensor_errors(expected, got).relative_l2
            if not error_l2 <= most:
                raise InputError(
                    f"requests of {graph.name!r} cannot be gathered: output {spec.name!r} differs by "
                    f"{error_l2:.3g} (relative L2) from that of one request alone; rounding explains {most:g}"
                )


__all__ = ["ALONE", "REQUEST", "TOGETHER", "LoadBackend", "Loaded", "load_configuration", "load_ref"]
