"""Sessions whose plan was measured under load: requests gathered as it says, and what becomes of failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pytest

from hal.errors import BackendError, HalError, InputError, NotEnoughMemory
from hal.graph.model import Graph
from hal.graph.rebatch import rebatched
from hal.records.plan import Constraints, Plan, Throughput
from hal.records.profile import Profile
from hal.session.batching import gathered_runner
from hal.session.runner import Runner, runner_of
from hal.session.session import Session
from hal.tensor import Array, Tensor, as_numpy
from hal.testing import example_inputs, small_graph, true_outputs
from tests.unit import compared, planned, surviving
from tests.unit.sessions import OnFake

GRAPH = small_graph("attention")
LOAD = Throughput(n_in_flight=1, batch=4, worth_from=2, requests_per_s=100.0)


class Rig:
    """A session of one thread that gathers up to four requests.

    Attributes:
        session: The session.
        single: Carries out single requests; the first one waits for ``going``.
        many: Carries out gathered ones.
        sizes: Requests in each run of ``many``, by the rows that differ.
    """

    def __init__(self, graph: Graph = GRAPH, load: Throughput = LOAD) -> None:
        self.single, self.many = OnFake(graph), OnFake(rebatched(graph, load.batch))
        self.single.plan = msgspec.structs.replace(self.single.plan, throughput=load)
        self.session = Session(self.single, graph, compared.profile(), gathered=self.many)
        self.entered, self.going = threading.Event(), threading.Event()
        self.single.on_run = self._wait

    def held(self, requests: Sequence[Sequence[Array]]) -> list[object]:
        """Outcomes of requests that all were in line before the second one was taken."""
        blocked = self.session.submit(*requests[0])
        assert self.entered.wait(60)
        futures = [self.session.submit(*request) for request in requests[1:]]
        self.going.set()
        found: list[object] = []
        for future in (blocked, *futures):
            try:
                found.append(future.result(60))
            except HalError as error:
                found.append(error)
        return found

    def _wait(self, inputs: Sequence[Tensor]) -> None:
        self.entered.set()
        assert self.going.wait(60)


def requests(n: int, graph: Graph = GRAPH) -> list[list[Array]]:
    return [example_inputs(graph, seed) for seed in range(n)]


def check(answer: object, request: Sequence[Array], graph: Graph = GRAPH) -> None:
    np.testing.assert_allclose(as_numpy(answer), true_outputs(graph, request)[0], rtol=1e-5, atol=1e-6)


def test_waiting_requests_are_gathered_and_answered_rightly_when_the_plan_says_so() -> None:
    rig = Rig()
    asked = requests(8)
    for answer, request in zip(rig.held(asked), asked, strict=True):
        check(answer, request)
    # The first one alone; four and three gathered, however many are left.
    assert (rig.single.n_runs, rig.many.n_runs) == (1, 2)
    assert rig.session.metrics.n_requests == 8
    rig.session.close()
    assert (rig.single.n_closed, rig.many.n_closed) == (1, 1)


def test_a_stream_keeps_order_and_fills_runs_when_requests_are_gathered() -> None:
    rig = Rig()
    rig.going.set()
    asked = requests(40)
    for answer, request in zip(rig.session.stream(asked), asked, strict=True):
        check(answer, request)
    assert rig.single.n_runs + 4 * rig.many.n_runs >= 40
    assert rig.many.n_runs
    rig.session.close()


def test_a_stream_reads_no_further_than_a_run_more_when_requests_are_gathered() -> None:
    rig = Rig()
    rig.going.set()
    read = []

    def source() -> Iterator[list[Array]]:
        for number, request in enumerate(requests(30)):
            read.append(number)
            yield request

    stream = rig.session.stream(source())
    next(stream)
    assert len(read) == 1 + LOAD.n_outstanding
    rig.session.close()


def test_awaited_calls_are_gathered_when_they_wait() -> None:
    rig = Rig()
    rig.going.set()

    async def main() -> list[Array]:
        return await asyncio.gather(*[rig.session.acall(*request) for request in requests(16)])

    for answer, request in zip(asyncio.run(main()), requests(16), strict=True):
        check(answer, request)
    assert rig.many.n_runs
    rig.session.close()


def test_others_are_answered_when_a_gathered_request_does_not_fit() -> None:
    rig = Rig()
    asked = requests(5)
    asked[2] = [np.zeros((1, 9, 8), np.float32)]
    found = rig.held(asked)
    assert isinstance(found[2], InputError)
    for at in (0, 1, 3, 4):
        check(found[at], asked[at])
    # Those that fit stay together.
    assert (rig.single.n_runs, rig.many.n_runs) == (1, 1)


def test_each_is_run_alone_and_one_fails_alone_when_a_gathered_run_fails() -> None:
    rig = Rig()
    asked = requests(5)
    bad = asked[3][0]

    def refuse(inputs: Sequence[Tensor]) -> None:
        if any((as_numpy(inputs[0]) == bad).all(axis=(1, 2))):
            raise BackendError("index 7 is out of range")

    rig.many.on_run = rig.single.on_run = refuse
    waiting = rig.single.on_run

    def wait_first(inputs: Sequence[Tensor]) -> None:
        rig._wait(inputs)
        waiting(inputs)

    rig.single.on_run = wait_first
    found = rig.held(asked)
    assert isinstance(found[3], BackendError)
    for at in (0, 1, 2, 4):
        check(found[at], asked[at])
    assert (rig.single.n_runs, rig.many.n_runs) == (5, 1)


def test_requests_are_not_gathered_any_more_when_three_such_runs_failed() -> None:
    rig = Rig()

    def fail(inputs: Sequence[Tensor]) -> None:
        raise BackendError("no memory")

    rig.many.on_run = fail
    asked = requests(33)
    for answer, request in zip(rig.held(asked), asked, strict=True):
        check(answer, request)
    assert (rig.single.n_runs, rig.many.n_runs) == (33, 3)


def test_requests_are_not_gathered_when_another_plan_came_into_force() -> None:
    rig = Rig()
    rig.single.plan = planned.single()
    asked = requests(9)
    for answer, request in zip(rig.held(asked), asked, strict=True):
        check(answer, request)
    assert (rig.single.n_runs, rig.many.n_runs) == (9, 0)


def test_torch_tensors_come_out_of_a_gathered_run_for_who_gave_some() -> None:
    torch = pytest.importorskip("torch")
    rig = Rig()
    asked = requests(4)
    mixed = [list(asked[0]), [torch.from_numpy(asked[1][0])], list(asked[2]), list(asked[3])]
    found = rig.held(mixed)
    assert [type(one) for one in found] == [np.ndarray, torch.Tensor, np.ndarray, np.ndarray]
    for answer, request in zip(found, asked, strict=True):
        check(answer, request)
    assert rig.many.n_runs == 1


def test_as_many_run_at_once_as_were_measured_when_nothing_is_gathered() -> None:
    single = OnFake(GRAPH)
    single.plan = msgspec.structs.replace(single.plan, throughput=Throughput(n_in_flight=3))
    together = threading.Barrier(3)
    single.on_run = lambda inputs: together.wait(60)
    with Session(single, GRAPH, compared.profile()) as session:
        assert session.n_in_flight == 3
        futures = [session.submit(*request) for request in requests(6)]
        for future, request in zip(futures, requests(6), strict=True):
            check(future.result(60), request)
    assert single.most_at_once == 3


# --- what carries gathered requests out -------------------------------------------------------------


class Carrying:
    """Makes runners, and notes for which plans."""

    def __init__(self, error: HalError | None = None) -> None:
        self.error = error
        self.plans: list[Plan] = []

    def __call__(self, graph: Graph, plan: Plan, profile: Profile, spots: object, *, strict: bool) -> Runner:
        assert strict
        assert plan.model.digest == graph.digest
        self.plans.append(plan)
        if self.error is not None:
            raise self.error
        return OnFake(graph)


def loaded(batch: int) -> Plan:
    plan = planned.single(throughput=Throughput(n_in_flight=2, batch=batch))
    parts = (msgspec.structs.replace(plan.partitions[0], weight_bytes=300),)
    predicted = msgspec.structs.replace(plan.predicted, memory_bytes={plan.devices[0].memory_pool: 1000})
    model = msgspec.structs.replace(plan.model, digest=GRAPH.digest)
    return msgspec.structs.replace(plan, partitions=parts, predicted=predicted, model=model)


def test_memory_of_gathered_requests_is_claimed_beside_that_of_single_ones() -> None:
    carrying = Carrying()
    runner = gathered_runner(carrying, GRAPH, loaded(4), compared.profile(), {})
    assert runner is not None
    # Weights once more; of the rest, 700 bytes for each of 2 * 4 requests, less those of the single one.
    assert carrying.plans[0].predicted.memory_bytes == {"cpu:0": 300 + 700 * 8 - 700}


@pytest.mark.parametrize("plan", [loaded(1), planned.single()])
def test_nothing_is_compiled_for_gathered_requests_when_there_are_none(plan: Plan) -> None:
    carrying = Carrying()
    assert gathered_runner(carrying, GRAPH, plan, compared.profile(), {}) is None
    assert not carrying.plans


def test_a_warning_says_so_when_gathered_requests_cannot_be_had() -> None:
    carrying = Carrying(NotEnoughMemory("2 bytes are missing"))
    with pytest.warns(UserWarning, match=r"requests of 'attention' are not gathered.*2 bytes are missing"):
        assert gathered_runner(carrying, GRAPH, loaded(4), compared.profile(), {}) is None


# --- when its target fails --------------------------------------------------------------------------


def test_what_a_target_was_made_from_is_out_too_when_it_fails_with_options_of_a_load() -> None:
    rig = surviving.Rig(
        {"cuda:0": [{"at": "run", "how": "raise"}]}, constraints=Constraints(targets=(surviving.CUDA0,))
    )
    plan = rig.plan("cuda:0")
    parts = tuple(
        msgspec.structs.replace(part, target=f"{part.target}+mode=fast") for part in plan.partitions
    )
    runner = runner_of(
        rig.graph,
        msgspec.structs.replace(plan, partitions=parts, throughput=Throughput(n_in_flight=2)),
        rig.profile,
        rig.spots,
        constraints=rig.constraints,
        on_event=rig.events.append,
    )
    with pytest.raises(BackendError, match="no target is left to place 'chain' on"):
        surviving.check(runner, 1)
    # It was not run again on the same device.
    assert rig.kinds() == ["failed", "failed"]
    assert next(rig.backends["cuda:0"].runs) == 2
    runner.close()
    assert rig.all_closed()
