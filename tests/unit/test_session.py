"""Sessions on a fake device: calls, feeds, many at once, other shapes, and their end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from hal.errors import BackendError, InputError
from hal.graph.interface import Fields, Interface, Leaf, Parameter, write
from hal.graph.model import Graph
from hal.session.calling import Calling
from hal.session.events import Event
from hal.session.session import Session
from hal.tensor import Array
from hal.testing import example_inputs, small_graph, true_outputs
from hal.testing.graphs import GRAPHS
from tests.unit.sessions import TARGET, OnFake, session

X, Y = example_inputs(small_graph("add"))
#: Any number of rows.
DYNAMIC = Graph.load(GRAPHS["dynamic_batch"](), name="dynamic")


# --- one call -----------------------------------------------------------------------------------------


def test_numpy_arrays_come_out_when_they_go_in_by_position_by_name_or_in_a_dict() -> None:
    add, runner = session()
    for got in (
        add(X, Y),
        add(X, y=Y),
        add(y=Y, x=X),
        add({"y": Y, "x": X}),
        *add.run(None, {"y": Y, "x": X}),
    ):
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, X + Y)
    assert runner.n_runs == 5


def test_outputs_are_a_tuple_in_the_models_order_when_there_are_several() -> None:
    both, _ = session("two_outputs")
    inputs = example_inputs(both.graph)
    got = both(*inputs)
    assert type(got) is tuple
    for one, other in zip(got, true_outputs(both.graph, inputs), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["bfloat16", "scalar", "empty", "integers", "booleans", "passthrough"])
def test_answers_are_right_when_tensors_are_unusual(name: str) -> None:
    unusual, _ = session(name)
    inputs = example_inputs(unusual.graph)
    got = unusual(*inputs)
    for one, other in zip(
        got if type(got) is tuple else (got,), true_outputs(unusual.graph, inputs), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_arrays_are_read_in_any_layout() -> None:
    add, _ = session()
    np.testing.assert_array_equal(add(np.asfortranarray(X), Y[::-1][::-1]), X + Y)


def test_inputs_are_refused_with_their_names_and_nothing_runs() -> None:
    add, runner = session()
    with pytest.raises(InputError) as caught:
        add(X.astype(np.float64), z=Y)
    assert "input 'z' is unknown; the model takes x, y" in caught.value.message
    assert "input 'y' is missing; expected float32[2, 3]" in caught.value.message
    with pytest.raises(InputError, match=r"input 'x' is float64\[2, 3\]; expected float32\[2, 3\]"):
        add(X.astype(np.float64), Y)
    with pytest.raises(InputError, match="input 'y': list is not a tensor"):
        add(X, [1.0])
    assert runner.n_runs == 0


def test_other_shapes_are_refused_with_what_to_do() -> None:
    add, _ = session()
    with pytest.raises(InputError) as caught:
        add(X[:1], Y)
    assert caught.value.message == (
        "the inputs do not fit 'add': input 'x' is float32[1, 3]; expected float32[2, 3]; the session was "
        "compiled for these shapes: compile it with inputs or shapes like yours, or with new_shapes='replan' "
        "to compile for others as they come"
    )


def test_outputs_have_the_structure_that_the_importer_recorded() -> None:
    graph = small_graph("two_outputs")
    model = graph.model.clone()
    parameters = (Parameter("batch", Fields("dict", ("pixels",), (Leaf("x"),))),)
    outputs = Fields("record", ("last", "first"), (Leaf("a"), Leaf("b")))
    write(model, Interface(parameters, outputs))
    recorded, _ = session(Graph(model, name="recorded", digest=graph.digest))
    (x,) = example_inputs(graph)
    sigmoid, relu = true_outputs(graph, [x])
    for got in (recorded({"pixels": x}), recorded(batch={"pixels": x}), recorded(x=x)):
        np.testing.assert_array_equal(got.last, relu)
        np.testing.assert_array_equal(got["first"], sigmoid)
    assert len(recorded.run(None, {"x": x})) == 2
    with pytest.raises(InputError, match="input 'batch' is a ndarray; expected a dict of pixels"):
        recorded(x)


# --- feeds --------------------------------------------------------------------------------------------


def test_outputs_are_those_asked_for_when_they_are_named() -> None:
    both, _ = session("two_outputs")
    feeds = {"x": example_inputs(both.graph)[0]}
    sigmoid, relu = both.run([], feeds)
    got = both.run(["a", "b", "a"], feeds)
    for one, other in zip(got, (relu, sigmoid, relu), strict=True):
        np.testing.assert_array_equal(one, other)


def test_feeds_are_refused_when_names_do_not_fit() -> None:
    add, _ = session()
    for feeds, text in (
        ({"x": X}, "input 'y' is missing"),
        ({"x": X, "z": Y}, "input 'z' is unknown"),
        ({"x": X, "y": Y, "z": Y}, "input 'z' is unknown"),
        ([X, Y], "the feeds are a list; expected a dict"),
        (None, "the feeds are a NoneType; expected a dict"),
    ):
        with pytest.raises(InputError, match=text):
            add.run(None, feeds)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(InputError, match="'add' has no output 'w'; expected some of z"):
        add.run(["w"], {"x": X, "y": Y})


@pytest.mark.parametrize("error", [KeyError("k"), TypeError("t")])
def test_a_request_runs_once_when_its_run_fails(error: Exception) -> None:
    add, runner = session()

    def fail(_: Any) -> None:
        raise error

    runner.on_run = fail
    for call in (lambda: add(X, Y), lambda: add.run(None, {"x": X, "y": Y})):
        with pytest.raises(type(error)):
            call()
    assert runner.n_runs == 2


# --- many requests --------------------------------------------------------------------------------------


def test_answers_are_right_when_sixteen_threads_call_at_once() -> None:
    graph = small_graph("attention")
    shared, _ = session(graph)
    start = threading.Barrier(16)

    def work(thread: int) -> None:
        start.wait(60)
        for seed in range(4 * thread, 4 * thread + 4):
            inputs = example_inputs(graph, seed)
            want = true_outputs(graph, inputs)[0]
            np.testing.assert_array_equal(shared(*inputs), want)
            np.testing.assert_array_equal(shared.submit(*inputs).result(60), want)
            np.testing.assert_array_equal(shared.run(None, {"x": inputs[0]})[0], want)
            (got,) = shared.stream([inputs])
            np.testing.assert_array_equal(got, want)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))


def test_calls_are_not_serialised_when_many_threads_call_at_once() -> None:
    add, runner = session()
    together = threading.Barrier(16)
    runner.on_run = lambda _: together.wait(60)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: add(X, Y), range(16)))
    assert runner.most_at_once == 16


@pytest.mark.parametrize("n_silicons", [1, 3])
def test_submitted_requests_run_on_as_many_threads_as_keep_the_silicon_busy(n_silicons: int) -> None:
    add, runner = session(n_silicons=n_silicons)
    assert add.n_in_flight == 1 + n_silicons
    together = threading.Barrier(1 + n_silicons)
    runner.on_run = lambda _: together.wait(60)
    futures = [add.submit(X, y=Y) for _ in range(2 * (1 + n_silicons))]
    for future in futures:
        np.testing.assert_array_equal(future.result(60), X + Y)
    assert runner.most_at_once == 1 + n_silicons


def test_an_error_is_in_the_future_when_a_submitted_request_fails() -> None:
    add, _ = session()
    with pytest.raises(InputError, match="input 'y' is missing"):
        add.submit(X).result(60)


def test_the_event_loop_goes_on_when_calls_are_awaited() -> None:
    add, runner = session()
    loop_went_on = threading.Event()
    runner.on_run = lambda _: loop_went_on.wait(60)

    async def main() -> list[Any]:
        calls = [asyncio.ensure_future(add.acall(X + number, Y)) for number in range(8)]
        await asyncio.sleep(0)
        loop_went_on.set()
        return await asyncio.gather(*calls)

    for number, got in enumerate(asyncio.run(main())):
        np.testing.assert_array_equal(got, X + number + Y)


def test_a_stream_takes_requests_in_every_form_and_keeps_their_order() -> None:
    add, _ = session()
    requests: list[Any] = [(X, Y), {"y": X, "x": Y}, [X + 1, Y], (X,), {"x": X + 2, "y": Y}]
    stream = add.stream(requests, n_in_flight=2)
    for _ in range(2):
        np.testing.assert_array_equal(next(stream), X + Y)
    np.testing.assert_array_equal(next(stream), X + 1 + Y)
    with pytest.raises(InputError, match="input 'y' is missing"):
        next(stream)
    np.testing.assert_array_equal(next(stream), X + 2 + Y)
    assert list(stream) == []


def test_a_stream_takes_bare_tensors_when_the_model_has_one_input() -> None:
    both, _ = session("two_outputs")
    inputs = [example_inputs(both.graph, seed)[0] for seed in range(5)]
    for x, got in zip(inputs, both.stream(iter(inputs)), strict=True):
        np.testing.assert_array_equal(got[1], np.maximum(x, 0))


def test_a_stream_is_refused_when_nothing_may_be_in_flight() -> None:
    add, _ = session()
    with pytest.raises(InputError, match="n_in_flight is 0; expected 1 or more"):
        add.stream([], n_in_flight=0)


# --- other shapes ---------------------------------------------------------------------------------------


class Anew:
    """Makes sessions of the dynamic model for the shapes of inputs."""

    def __init__(self) -> None:
        self.runners: list[OnFake] = []

    def __call__(self, calling: Calling, arrays: Sequence[Array]) -> Session:
        example = calling.example(arrays)
        made, runner = session(DYNAMIC.bind({name: array.shape for name, array in example.items()}))
        runner.events.append(
            Event(at=float(len(self.runners)), kind="failed", target=TARGET, text="for a test")
        )
        self.runners.append(runner)
        return made


def rows(n: int) -> Array:
    return np.full((n, 8), 0.1 * n, np.float32)


def check(dynamic: Session, n: int) -> None:
    (want,) = true_outputs(DYNAMIC, [rows(n)])
    np.testing.assert_array_equal(dynamic(rows(n)), want)
    np.testing.assert_array_equal(dynamic.run(["y"], {"x": rows(n)})[0], want)


def test_other_shapes_are_compiled_once_when_that_was_asked_for() -> None:
    anew = Anew()
    dynamic, runner = session("dynamic_batch", again=anew)
    for n in (3, 5, 2, 5, 3):
        check(dynamic, n)
    assert [made.signature.inputs[0].shape for made in anew.runners] == [(5, 8), (2, 8)]
    assert runner.n_runs == 4
    assert [event.at for event in dynamic.events] == [0.0, 1.0]
    dynamic.close()
    assert [made.n_closed for made in (runner, *anew.runners)] == [1, 1, 1]
    with pytest.raises(BackendError, match="this session is closed"):
        dynamic(rows(2))


def test_the_least_recently_used_shape_is_closed_when_there_are_more_than_eight() -> None:
    anew = Anew()
    dynamic, _ = session("dynamic_batch", again=anew)
    for n in (10, 11, 12, 13, 14, 15, 16, 17, 10, 18):
        check(dynamic, n)
    assert [made.n_closed for made in anew.runners] == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    check(dynamic, 11)
    assert len(anew.runners) == 10


def test_the_reason_is_told_and_asked_for_again_when_other_shapes_cannot_be_compiled() -> None:
    dynamic, _ = session("dynamic_batch", again=Anew())
    for _ in range(2):
        with pytest.raises(InputError, match=r"fixed to 8 where \[3, 9\] has 9"):
            dynamic(np.ones((3, 9), np.float32))
    with pytest.raises(InputError, match="input 'x' is float64"):
        dynamic(np.ones((4, 8)))


def test_each_shape_is_compiled_once_when_many_threads_bring_it() -> None:
    anew = Anew()
    dynamic, _ = session("dynamic_batch", again=anew)
    start = threading.Barrier(16)

    def work(thread: int) -> None:
        start.wait(60)
        for n in range(4, 9):
            check(dynamic, 4 + (n + thread) % 5)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert sorted(made.signature.inputs[0].shape[0] for made in anew.runners) == [4, 5, 6, 7, 8]


# --- its life -------------------------------------------------------------------------------------------


def test_everything_is_refused_when_it_is_closed() -> None:
    add, runner = session()
    with add:
        future = add.submit(X, Y)
    add.close()
    assert runner.n_closed == 1
    np.testing.assert_array_equal(future.result(0), X + Y)
    for call in (lambda: add(X, Y), lambda: add.run(None, {"x": X, "y": Y}), lambda: add.submit(X, Y)):
        with pytest.raises(BackendError, match="this session is closed; compile the model again"):
            call()
    with pytest.raises(BackendError, match="this session is closed"):
        next(add.stream([(X, Y)]))


def test_submitted_requests_are_answered_when_it_is_closed_meanwhile() -> None:
    add, runner = session()
    going = threading.Event()
    runner.on_run = lambda _: going.wait(60)
    futures = [add.submit(X, Y) for _ in range(10)]
    closing = threading.Thread(target=add.close)
    closing.start()
    going.set()
    closing.join(60)
    assert all(np.array_equal(future.result(60), X + Y) for future in futures)


def test_it_can_be_closed_by_one_of_its_own_requests() -> None:
    add, runner = session()
    runner.on_run = lambda _: add.close()
    with pytest.raises(BackendError):
        add.submit(X, Y).result(60)
    assert runner.n_closed == 1


def test_what_happened_before_comes_first_in_its_events() -> None:
    earlier = Event(at=1.0, kind="replanned", target="", text="when it was opened")
    later = Event(at=2.0, kind="failed", target=TARGET, text="later")
    graph = small_graph("add")
    runner = OnFake(graph)
    runner.events.append(later)
    opened = Session(runner, graph, None, events=[earlier])  # type: ignore[arg-type]  # no profile is read
    assert list(opened.events) == [earlier, later]


def test_it_says_what_it_is() -> None:
    add, runner = session()
    assert repr(add) == f"<Session 'add' on {TARGET}: x: float32[2, 3], y: float32[2, 3]>"
    assert add.plan is runner.plan
    assert add.signature == add.graph.signature
