"""A compiled model as a program uses it: called, fed, streamed, saved and closed."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np

from hal.backend import Signature, Tensor
from hal.errors import BackendError, InputError
from hal.graph.interface import read
from hal.graph.model import Graph
from hal.records.plan import Plan
from hal.records.profile import Profile
from hal.session.calling import Calling
from hal.session.events import Event
from hal.session.libraries import giver
from hal.session.runner import Runner
from hal.session.stream import Stream
from hal.session.variants import Variants
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

    Attributes:
        graph: The model.
        profile: What was measured of it.
        runner: What carries requests out.
    """

    def __init__(
        self,
        runner: Runner,
        graph: Graph,
        profile: Profile,
        *,
        events: Sequence[Event] = (),
        again: Again | None = None,
    ) -> None:
        self.runner, self.graph, self.profile = runner, graph, profile
        self._earlier = tuple(events)
        self._again = again
        self._calling = Calling(graph.name, runner.signature, read(graph.model))
        self._variants: Variants[Session] = Variants()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._workers: set[int] = set()
        self._is_closed = False
        # What each call needs: an attribute of an attribute costs a small model a share of its time.
        self._run: Callable[[Sequence[Tensor]], Sequence[Tensor]] = runner.run
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
        return sorted(told, key=lambda event: event.at)

    @property
    def n_in_flight(self) -> int:
        """Requests that keep all its silicon busy: one for each, and one on its way.

        Source: hal.choosing measures throughput with as many.
        """
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
        for tensor, (dtype, shape) in zip(tensors, self._wanted, strict=True):
            # numpy's own types are singletons, which `is` tells apart.
            if type(tensor) is not np.ndarray or tensor.dtype is not dtype or tensor.shape != shape:
                return None
        outputs = self._run(tensors)
        for output in outputs:
            if type(output) is not np.ndarray:
                return [as_numpy(output) for output in outputs]
        return outputs

    def _carefully(self, tensors: Sequence[Any]) -> tuple[Session, Sequence[Any]]:
        """Outputs for tensors of any library, and the session that made them: one for their shapes."""
        give = giver(tensors)
        arrays, misfit = self._calling.fit(tensors)
        if not misfit:
            return self, give(self._run(arrays))
        if self._again is None:
            raise InputError(
                f"{misfit}; the session was compiled for these shapes: compile it with inputs or shapes like "
                "yours, or with new_shapes='replan' to compile for others as they come"
            )
        make = functools.partial(self._again, self._calling, arrays)
        with self._variants.lease(tuple(array.shape for array in arrays), make) as variant:
            return variant, give(variant._run(arrays))

    # --- many requests ---------------------------------------------------------------------------------

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call it on another thread.

        Requests wait in line; as many run at once as keep its silicon busy. To send more than fit into memory
        use :meth:`stream`.

        Returns:
            A future of what the call returns or raises.

        Raises:
            BackendError: The session is closed.
        """
        with self._lock:
            if self._is_closed:
                raise _closed()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    self.n_in_flight, "hal-session", lambda: self._workers.add(threading.get_ident())
                )
            return self._pool.submit(self, *args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call it without blocking the event loop; see :meth:`submit`."""
        return await asyncio.wrap_future(self.submit(*args, **kwargs))

    def stream(self, requests: Iterable[Any], n_in_flight: int | None = None) -> Stream:
        """Call it for each request, several at once; results come in order.

        Args:
            requests: Each the inputs of one call: a tensor, a tuple or list by position, or a dict by name.
                Read ahead by ``n_in_flight``, so that an endless source is fine.
            n_in_flight: Requests under way or waiting to be taken; None for what keeps its silicon busy.

        Returns:
            An iterator. Where a request fails, or ``requests`` does, the exception is raised in its place,
            and ``next`` goes on after it. One thread reads it.

        Raises:
            InputError: ``n_in_flight`` is below 1.
        """
        n_in_flight = self.n_in_flight if n_in_flight is None else n_in_flight
        if n_in_flight < 1:
            raise InputError(f"n_in_flight is {n_in_flight}; expected 1 or more")
        return Stream(self._request, requests, n_in_flight)

    def _request(self, request: Any) -> Any:
        return self(*request) if isinstance(request, tuple | list) else self(request)

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
            pool = self._pool
        if pool is not None:
            # A hook that closes the session on one of its threads must not wait for itself.
            pool.shutdown(wait=threading.get_ident() not in self._workers)
        self._run = _refuse
        self._variants.close()
        self.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _closed() -> BackendError:
    return BackendError("this session is closed; compile the model again")


def _refuse(_: Sequence[Tensor]) -> Sequence[Tensor]:
    raise _closed()
