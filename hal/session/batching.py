"""A session's requests in line, those that wait gathered into one run where its plan was measured so."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from hal.errors import HalError, InputError
from hal.executor.backend import Spot
from hal.executor.gathering import ALONE
from hal.executor.joining import Joined
from hal.graph.model import Graph
from hal.graph.rebatch import rebatched
from hal.planning.memory_under_load import memory_at
from hal.records.plan import Plan, Throughput
from hal.records.profile import Profile
from hal.session.calling import Calling
from hal.session.libraries import giver, is_away
from hal.session.runner import Carry, Runner
from hal.tensor import Array

_log = logging.getLogger("hal.session")

#: What a caller gave: by position, and by name.
Request = tuple[Sequence[Any], Mapping[str, Any]]
#: Runs of gathered requests that may fail one after the other; after that, requests are not gathered any
#: more. Source: ours; one may be the fault of a request, three are not.
_MOST_FAILURES = 3


def gathered_runner(
    carry: Carry, graph: Graph, plan: Plan, profile: Profile, spots: Mapping[str, Spot]
) -> Runner | None:
    """What carries out gathered requests; None where the plan has none, or, with a warning, it cannot be had.

    It never plans again: where a run of it fails, the requests are carried out one by one.

    Args:
        carry: Makes it.
        graph: Of one request.
        plan: Of the graph.
        profile: Of the graph.
        spots: Devices of this machine.
    """
    load = plan.throughput
    if load is None or load.batch == 1:
        return None
    try:
        many = rebatched(graph, load.batch)
        # What single requests need is claimed for these already.
        needed = memory_at(plan, load.n_in_flight, load.batch)
        beside = {
            pool: max(n_bytes - plan.predicted.memory_bytes[pool], 0) for pool, n_bytes in needed.items()
        }
        theirs = msgspec.structs.replace(
            plan,
            model=msgspec.structs.replace(plan.model, digest=many.digest),
            predicted=msgspec.structs.replace(plan.predicted, memory_bytes=beside),
        )
        return carry(many, theirs, profile, spots, strict=True)
    except HalError as error:
        warnings.warn(
            f"requests of {graph.name!r} are not gathered, each has a run of its own: {error}", stacklevel=2
        )
        return None


class Gathering:
    """Carries out several requests in one run; see :class:`hal.executor.gathering.Together`.

    Only requests on the plan that was measured, and of its shapes, are gathered. Any number of threads may
    call it.

    Args:
        runner: Of gathered requests.
        load: Of the plan.
        single: Of single requests.
        calling: How the model is called.
        note: Told how many requests were answered by a run, and what it took in nanoseconds.

    Attributes:
        most: Requests in a run; 1 once they are not gathered any more.
        worth_from: Fewer are carried out one by one.
    """

    def __init__(
        self,
        runner: Runner,
        load: Throughput,
        single: Runner,
        calling: Calling,
        note: Callable[[int, int], None],
    ) -> None:
        self.most, self.worth_from = load.batch, load.worth_from
        self._single, self._measured, self._calling, self._note = single, single.plan, calling, note
        self._joined = Joined(runner.run, single.signature, load.batch)
        self._names = set(calling.names)
        self._n_failures = 0

    def run(self, requests: Sequence[Request]) -> list[Any]:
        """What each call returns, or :data:`ALONE` for those that have to be carried out alone."""
        answers: list[Any] = [ALONE] * len(requests)
        if self._single.plan is not self._measured:
            self._stop("another plan is in force, for which gathering was not measured")
            return answers
        fitting = [(at, fit) for at, one in enumerate(requests) if (fit := self._fitted(one)) is not None]
        if len(fitting) < 2:
            return answers
        began_ns = time.perf_counter_ns()
        try:
            found = self._joined.run([arrays for _, (arrays, _) in fitting])
        except Exception as error:
            self._n_failures += 1
            if self._n_failures >= _MOST_FAILURES:
                self._stop(f"{self._n_failures} such runs failed, the last one with: {error}")
            raise
        self._note(len(fitting), time.perf_counter_ns() - began_ns)
        self._n_failures = 0
        for (at, (_, give)), outputs in zip(fitting, found, strict=True):
            answers[at] = self._calling.arrange(give(outputs))
        return answers

    def _fitted(self, request: Request) -> tuple[Sequence[Array], Callable[[Sequence[Array]], Any]] | None:
        """A request's inputs on the host and what makes outputs of its library; None where unfit."""
        calling = self._calling
        args, named = request
        if calling.is_flat and (tensors := self._in_order(args, named)) is not None:
            for tensor, (dtype, shape) in zip(tensors, calling.wanted, strict=True):
                if type(tensor) is not np.ndarray or tensor.dtype is not dtype or tensor.shape != shape:
                    break
            else:
                return tensors, _as_they_are
        try:
            tensors = calling.bind(args, named)
            if any(map(is_away, tensors)):
                return None  # where it lies it need not be copied
            arrays, misfit = calling.fit(tensors)
        except InputError:
            return None  # it is told where the request is carried out alone
        if misfit or any(a.shape != shape for a, (_, shape) in zip(arrays, calling.wanted, strict=True)):
            return None
        return arrays, giver(tensors)

    def _in_order(self, args: Sequence[Any], named: Mapping[str, Any]) -> Sequence[Any] | None:
        """The tensors of a call by position, in few steps; None where that takes a closer look."""
        if not named and len(args) == 1 and type(args[0]) is dict:
            named = args[0]
        elif args:
            return args if not named and len(args) == len(self._calling.names) else None
        if named.keys() != self._names:
            return None
        return [named[name] for name in self._calling.names]

    def _stop(self, reason: str) -> None:
        if self.most > 1:
            self.most = 1
            _log.warning("requests are not gathered any more: %s", reason)


def _as_they_are(outputs: Sequence[Array]) -> Sequence[Array]:
    return outputs


def request_of(request: Any) -> Request:
    """A request of a stream as one of a call: a tensor, a tuple or list by position, or a dict by name."""
    return (request, {}) if isinstance(request, tuple | list) else ((request,), {})


def call(session: Callable[..., Any], request: Request) -> Any:
    """Call a session with a request."""
    args, named = request
    return session(*args, **named)


#: Why nothing can be put in line any more.
CLOSED = "this session is closed; compile the model again"

__all__ = ["CLOSED", "Gathering", "Request", "call", "gathered_runner", "request_of"]
