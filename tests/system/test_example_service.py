"""The example's web service, really served: many clients at once while devices are taken away under it."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import hal
from hal import demo
from hal.backend import BackendRef
from hal.executor.backend import Spot
from hal.profiling.imagined import estimated
from hal.records.files import to_json
from hal.records.machines import combine
from hal.records.plan import Constraints
from hal.session.runner import runner_of
from hal.testing import example_inputs, small_graph, true_outputs
from tests.unit.imagined_machines import machine
from tests.unit.surviving import placed

uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("fastapi", reason="FastAPI is not installed")
from examples.service.app import service  # noqa: E402  it needs FastAPI

N_CLIENTS, N_EACH = 16, 12
GRAPH = small_graph("chain")
Made = Callable[[], hal.Session]


class Answer(NamedTuple):
    """Of the service."""

    status: int
    content: Any


class Served:
    """The service on a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, content: Any = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            body = None if content is None else json.dumps(content)
            connection.request(method, path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            return Answer(response.status, json.loads(response.read()))
        finally:
            connection.close()


@contextmanager
def serving(make: Made) -> Iterator[Served]:
    server = uvicorn.Server(uvicorn.Config(service(make), host="127.0.0.1", port=0, log_level="warning"))
    is_up = threading.Event()
    begin = server.startup

    async def startup(sockets: Any = None) -> None:
        await begin(sockets=sockets)
        is_up.set()

    server.startup = startup
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        assert is_up.wait(120), "the service did not start"
        yield Served(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(120)
    assert not thread.is_alive()


def losing(fail: Sequence[dict[str, str]], devices: Sequence[str], monkeypatch: Any, tmp_path: Path) -> Made:
    """Sessions of two GPUs and a processor, emulated; devices fail where it says."""
    imagined = combine([("m", machine(2))])
    file = tmp_path / "machine.json"
    file.write_bytes(to_json(imagined))
    monkeypatch.setenv("HAL_EMULATE", str(file))

    def make() -> hal.Session:
        profile = estimated(GRAPH, imagined)
        ref = BackendRef("hal_emulator.backend:EmulatorBackend", {"fail": list(fail)})
        spots = {f"{device.id}/emulator": Spot(ref=ref, device=device) for device in profile.devices}
        asked = Constraints()
        runner = runner_of(
            GRAPH, placed(profile, devices, asked), profile, spots, constraints=asked, deadline_s=60
        )
        return hal.Session(runner, GRAPH, profile)

    return make


def requests() -> list[tuple[dict[str, Any], list[Any]]]:
    """What each client asks in turn, no two alike, and the right answers."""
    rng = np.random.default_rng(0)
    shapes = example_inputs(GRAPH)
    found = []
    for _ in range(N_CLIENTS * N_EACH):
        inputs = [rng.standard_normal(one.shape).astype(np.float32) for one in shapes]
        names = [spec.name for spec in GRAPH.signature.inputs]
        content = {"inputs": {name: one.tolist() for name, one in zip(names, inputs, strict=True)}}
        found.append((content, [np.asarray(one) for one in true_outputs(GRAPH, inputs)]))
    return found


def check(served: Served) -> None:
    """Each client gets each of its answers, once and right."""
    asked = requests()

    def client(number: int) -> int:
        for content, right in asked[number::N_CLIENTS]:
            status, answer = served.ask("POST", "/run", content)
            assert status == 200, answer
            for spec, one in zip(GRAPH.signature.outputs, right, strict=True):
                np.testing.assert_allclose(answer["outputs"][spec.name], one, rtol=1e-4, atol=1e-5)
        return N_EACH

    with ThreadPoolExecutor(N_CLIENTS) as pool:
        assert sum(pool.map(client, range(N_CLIENTS))) == N_CLIENTS * N_EACH


@pytest.mark.parametrize(("device", "at"), [("cuda:0", "run:1"), ("cuda:0", "run:50"), ("cuda:1", "run:20")])
def test_no_client_sees_an_error_when_a_device_is_lost(
    device: str, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = [{"device": device, "at": at, "how": "lost"}]
    with serving(losing(fail, ("cuda:0", "cuda:1", "cuda:1"), monkeypatch, tmp_path)) as served:
        before = served.ask("GET", "/health").content
        check(served)
        after = served.ask("GET", "/health").content
    assert any(target.startswith(device) for target in before["targets"])
    assert not any(target.startswith(device) for target in after["targets"])
    kinds = [event["kind"] for event in after["events"]]
    assert kinds.count("lost") == kinds.count("replanned") == 1


def test_clients_are_told_which_devices_are_lost_when_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = [{"device": name, "at": "run", "how": "lost"} for name in ("cuda:0", "cuda:1", "cpu:0")]
    with serving(losing(fail, ("cuda:0", "cuda:1", "cuda:1"), monkeypatch, tmp_path)) as served:
        status, answer = served.ask("POST", "/run", requests()[0][0])
        assert status == 503
        assert "cuda:0 is gone: it was lost at run:1" in answer["detail"]
        assert served.ask("GET", "/health").status == 200


def test_the_real_model_answers_and_what_does_not_fit_is_named() -> None:
    evaluation = demo.find("digits").evaluation()
    with serving(lambda: hal.compile("demo:digits", targets=["cpu:0/onnxruntime/fp32"])) as served:
        right = 0
        for batch, label in itertools.islice(zip(evaluation.batches, evaluation.labels, strict=True), 20):
            inputs = {name: image.tolist() for name, image in batch.items()}
            status, answer = served.ask("POST", "/run", {"inputs": inputs})
            assert status == 200
            (scores,) = answer["outputs"].values()
            right += int(np.argmax(scores) == label)
        assert right >= 18
        wrong = served.ask("POST", "/run", {"inputs": {"image": [[1.0]]}})
        assert wrong.status == 422
        assert "input 'image' is float32[1, 1]; expected float32[1, 1, 8, 8]" in wrong.content["detail"]
        unknown = served.ask("POST", "/run", {"inputs": {"picture": [1.0]}})
        assert unknown.status == 422
        assert "picture" in unknown.content["detail"]
        ragged = served.ask("POST", "/run", {"inputs": {"image": [[1.0], [1.0, 2.0]]}})
        assert ragged.status == 422
