"""A compiled model as a program uses it: called, fed, streamed, saved and closed."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import numpy as np

from hal.backend import Signature, Tensor
from hal.errors import BackendError, InputError
from hal.executor.gathering import Line
from hal.graph.interface import read
from hal.graph.model import Graph
from hal.records.plan import Plan
from hal.records.profile import Profile
from hal.session.away import away
from hal.session.batching import CLOSED, Gathering, call, request_of
from hal.session.calling import Calling
from hal.session.events import Event
from hal.session.forking import follow
from hal.session.libraries import giver, is_away
from hal.session.meter import Run
from hal.session.metrics import Metrics
from hal.session.runner import Runner
from hal.session.sizes import AnySize
from hal.session.sockets import withdraw
from hal.session.stream import Stream
from hal.session.variants import Variants
from hal.session.watching import Watcher
from hal.tensor import Array, as_numpy

#: Makes a session of the same model for other shapes: how it is called, and its inputs by position.
Again = Callable[[Calling, Sequence[Array]], "Session"]


class Session:
    """A model that is ready to run. :func:`hal.compile` makes one; docs/runtime.md shows how it is used.

    Any number of threads may call any of its methods. Inputs are borrowed: they are never written, and must
    not be changed until the call has returned or its future is done. Outputs are the caller's.

    Args:
        runner: Carries requests out; closed with this object.
        graph: The model, its sizes bound to numbers.
        profile: What plans are made from.
        events: What happened before.
        again: Makes a session for inputs of other shapes; None refuses them.
        gathered: Carries out several requests in one run, as the plan was measured; None where it was not.
            Closed with this object.
        sizes: Carries out requests of other sizes within ranges; None where there are none. Closed with this
            object.
        adaptive: Plan again where a partition is slow for long.

    Attributes:
        graph: The model.
        profile: What was measured of it.
        runner: What carries requests out.
        watcher: What counts and times requests.
    """

    def __init__(
        self,
        runner: Runner,
        graph: Graph,
        profile: Profile,
        *,
        events: Sequence[Event] = (),
        again: Again | None = None,
        gathered: Runner | None = None,
        sizes: AnySize | None = None,
        adaptive: bool = False,
    ) -> None:
        self.runner, self.graph, self.profile = runner, graph, profile
        self._earlier = tuple(events)
        self._again, self._sizes = again, sizes
        ranges = None if sizes is None else sizes.ranges
        self._calling = Calling(graph.name, runner.signature, read(graph.model), ranges)
        self._variants: Variants[Session] = Variants()
        self._lock = threading.Lock()
        self._line: Line[Any, Any] | None = None
        follow(self)
        self._is_closed = False
        # What each call needs: an attribute of an attribute costs a small model a share of its time.
        self.watcher = Watcher(runner, graph.name, is_adaptive=adaptive)
        self._gathered = gathered
        self._gathering: Gathering | None = None
        if gathered is not None and (load := runner.plan.throughput) is not None:
            self._gathering = Gathering(gathered, load, runner, self._calling, self.watcher.add)
        self._run, self._run_sized = self._runs()
        self._wanted = self._calling.wanted
        self._names = self._calling.names
        self._n_inputs = len(self._names)
        self._n_by_position = self._n_inputs if self._calling.is_flat else -1
        self._arrange = self._calling.arrange

    # --- what it is ------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """Which target computes which part; another one after a device was lost."""
        return self.runner.plan

    @property
    def signature(self) -> Signature:
        """Inputs and outputs of the model by position."""
        return self.runner.signature

    @property
    def events(self) -> Sequence[Event]:
        """What happened to requests and devices, the oldest first."""
        told = [*self._earlier, *self.runner.events]
        told += [event for variant in self._variants.kept for event in variant.events]
        told += () if self._sizes is None else self._sizes.events
        told += () if self._gathered is None else self._gathered.events
        return sorted(told, key=lambda event: event.at)

    @property
    def metrics(self) -> Metrics:
        """What it tells of itself now: requests, latency, partitions, devices, events; docs/watching.md.

        Any thread may ask, as often as it likes: devices are asked at most every half a second.
        """
        return self.watcher.metrics()

    def trace(self, tracer_provider: Any = None) -> None:
        """Make an OpenTelemetry span of each request from now on, with one below it for each partition.

        Args:
            tracer_provider: An ``opentelemetry.trace.TracerProvider``; None for the one of this process.

        Raises:
            UserError: The library is not installed.
            BackendError: The session is closed.
        """
        from hal.session.spans import Spans

        spans = Spans(self.runner, self.watcher, tracer_provider)
        with self._lock:
            if self._is_closed:
                raise _closed()
            run, sized = self._runs()
            self._run, self._run_sized = spans.around(run), spans.around(sized)

    @property
    def n_in_flight(self) -> int:
        """Runs at once that keep all its silicon busy: as many as the plan was measured to be best with.

        Where that was not measured: one for each silicon, and one on its way.
        """
        if (load := self.plan.throughput) is not None:
            return load.n_in_flight
        return 1 + max(len({device.silicon for device in self.plan.devices}), 1)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.signature.inputs))
        return f"<Session {self.graph.name!r} on {', '.join(self.plan.targets)}: {inputs}>"

    # --- one request -----------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model once.

        Inputs come by position, by name, or all by name in one dict; names are those of the model's inputs,
        or of the parameters of the module it was exported from. numpy arrays give numpy arrays; torch tensors
        give torch tensors on their device; arrays of other libraries give arrays of theirs where these read
        DLPack from the host, else numpy arrays.

        Returns:
            What the module returned where the model came from one; else the output where there is one, or a
            tuple of all in the model's order.

        Raises:
            InputError: Inputs are missing, unknown, or of another type or shape; each is named, with what was
                expected and what came.
            BackendError: The session is closed, or no device could answer.
        """
        if not kwargs and len(args) == self._n_by_position:
            outputs = self._plainly(args)
            if outputs is not None:
                return self._arrange(outputs)
        session, outputs = self._carefully(self._calling.bind(args, kwargs))
        return session._arrange(outputs)

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """Run the model once, as ONNX Runtime's ``InferenceSession.run``.

        Args:
            output_names: Outputs that are wanted, in this order; None or none for all in the model's order.
            feeds: Tensors by input name.

        Raises:
            InputError: A name is unknown, or as for calling the session.
            BackendError: As for calling the session.
        """
        session: Session = self
        given: list[Any] | None = None
        try:
            if len(feeds) == self._n_inputs:
                given = [feeds[name] for name in self._names]
        except (KeyError, TypeError):  # no dict, or not of these names: feeds() says it in full
            given = None
        outputs = None if given is None else self._plainly(given)
        if outputs is None:
            session, outputs = self._carefully(self._calling.feeds(feeds))
        if not output_names:
            return list(outputs)
        return [outputs[session._calling.output(name)] for name in output_names]

    def _plainly(self, tensors: Sequence[Any]) -> Sequence[Any] | None:
        """Outputs for numpy arrays that fit, in few steps; None where a tensor needs a closer look."""
        run = self._run
        for tensor, (dtype, shape) in zip(tensors, self._wanted, strict=True):
            # numpy's own types are singletons, which `is` tells apart.
            if type(tensor) is not np.ndarray or tensor.dtype is not dtype or tensor.shape != shape:
                if self._sizes is None or not self._sizes.fit(tensors):
                    return None
                run = self._run_sized
                break
        outputs = run(tensors)
        for output in outputs:
            if type(output) is not np.ndarray:
                return [as_numpy(output) for output in outputs]
        return outputs

    def _carefully(self, tensors: Sequence[Any]) -> tuple[Session, Sequence[Any]]:
        """Outputs for tensors of any library, and the session that made them: one for their shapes."""
        give = giver(tensors)
        if any(map(is_away, tensors)):
            inputs = away(tensors, self._calling, self.signature, self.runner.homes)
            if inputs is not None:
                return self, give(self._run(inputs))
        arrays, misfit = self._calling.fit(tensors)
        if not misfit:
            return self, give(self._run_sized(arrays))
        if self._again is None:
            raise InputError(
                f"{misfit}; the session was compiled for these shapes: compile it with inputs or shapes like "
                "yours, or with new_shapes='replan' to compile for others as they come"
            )
        make = functools.partial(self._again, self._calling, arrays)
        with self._variants.lease(tuple(array.shape for array in arrays), make) as variant:
            run = self.watcher.timed(variant.runner.run, is_profiled=False)
            return variant, give(run(arrays))

    # --- many requests ---------------------------------------------------------------------------------

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call it on another thread.

        Requests wait in line; as many run at once as keep its silicon busy, and those that wait are gathered
        into one run where the plan was measured to be faster so. To send more than fit into memory use
        :meth:`stream`.

        Returns:
            A future of what the call returns or raises.

        Raises:
            BackendError: The session is closed.
        """
        return self._in_line().submit((args, kwargs))

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call it without blocking the event loop; see :meth:`submit`."""
        return await asyncio.wrap_future(self.submit(*args, **kwargs))

    def stream(self, requests: Iterable[Any], n_in_flight: int | None = None) -> Stream:
        """Call it for each request, several at once; results come in order.

        Args:
            requests: Each the inputs of one call: a tensor, a tuple or list by position, or a dict by name.
                Read ahead by ``n_in_flight``, so that an endless source is fine.
            n_in_flight: Requests under way or waiting to be taken; None for what keeps its silicon busy, all
                requests that are gathered among them.

        Returns:
            An iterator. Where a request fails, or ``requests`` does, the exception is raised in its place,
            and ``next`` goes on after it. One thread reads it.

        Raises:
            InputError: ``n_in_flight`` is below 1.
        """
        if n_in_flight is not None and n_in_flight < 1:
            raise InputError(f"n_in_flight is {n_in_flight}; expected 1 or more")
        if n_in_flight is None or self._gathering is not None:
            line = self._in_line()
            return Stream(lambda one: line.submit(request_of(one)), requests, n_in_flight or line.window)
        # As many at once as were asked for, whatever was measured.
        own: Line[Any, Any] = Line(functools.partial(call, self), n_in_flight, closed=CLOSED)
        return Stream(lambda one: own.submit(request_of(one)), requests, n_in_flight, own.close)

    def _in_line(self) -> Line[Any, Any]:
        with self._lock:
            if self._is_closed:
                raise _closed()
            if self._line is None:
                one = functools.partial(call, self)
                self._line = Line(one, self.n_in_flight, self._gathering, closed=CLOSED)
            return self._line

    def _runs(self) -> tuple[Run, Run]:
        """What carries out one request of the sizes that were measured, and of any: timed."""
        run = self.watcher.timed(self.runner.run)
        return run, self.watcher.timed(self._sizes.run, is_profiled=False) if self._sizes else run

    # --- its life --------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, blobs: bool = False, force: bool = False) -> None:
        """Write it into a file that :func:`hal.load` opens: :func:`hal.session.bundles.save_session`."""
        from hal.session.bundles import save_session

        save_session(self, path, blobs=blobs, force=force)

    def close(self) -> None:
        """Release everything, after the requests under way or submitted. A second call does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            line = self._line
        if line is not None:
            line.close()
        self._run = self._run_sized = _refuse
        withdraw(self.watcher)
        self._variants.close()
        for one in (self._sizes, self._gathered):
            if one is not None:
                one.close()
        self.runner.close()

    def forked(self) -> None:
        """Refuse calls: this is a process that was forked from its own, without the threads there."""
        self._lock, self._line = threading.Lock(), None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _closed() -> BackendError:
    return BackendError(CLOSED)


def _refuse(_: Sequence[Tensor]) -> Sequence[Tensor]:
    raise _closed()
