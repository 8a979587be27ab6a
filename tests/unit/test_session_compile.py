"""hal.compile over a fake plugin on a virtual clock: what is found, made, taken as given and refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import hal
from hal.errors import InputError, ModelError, PlanError, StorageError, TargetError
from hal.graph.model import Graph
from hal.profiling.store import Store
from hal.session.compiling import examples
from hal.session.isolation import IsolatedBackend
from hal.testing import example_inputs, small_graph, true_outputs
from hal.testing.graphs import GRAPHS
from tests.throwaway import Plugins
from tests.unit.test_choosing import BF16, FP32, SPLIT, graph, one_plugin

DYNAMIC = GRAPHS["dynamic_batch"]().SerializeToString()


@pytest.fixture
def one(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh plugin, whatever was imported for an earlier test; a millisecond of its time per node."""
    monkeypatch.delitem(sys.modules, "hal_one_module", raising=False)
    one_plugin(plugins, costs_ns=SPLIT, default_ns=1_000_000)


def rows(n: int) -> np.ndarray:
    return np.full((n, 8), 0.1 * n, np.float32)


def check_rows(session: hal.Session, n: int) -> None:
    (want,) = true_outputs(Graph.load(DYNAMIC), [rows(n)])
    np.testing.assert_allclose(session(rows(n)), want, rtol=1e-6)


# --- plans ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one")
def test_the_plan_that_was_measured_to_be_the_best_is_carried_out() -> None:
    inputs = example_inputs(graph())
    with hal.compile(graph(), inputs, max_error=0.5) as session:
        assert [part.target for part in session.plan.partitions] == [BF16, FP32]
        assert session.plan.constraints.max_error == 0.5
        assert {target.target for target in session.profile.targets} == {FP32, BF16}
        assert list(session.events) == []
        (want,) = true_outputs(graph(), inputs)
        assert 0 < np.linalg.norm(session(*inputs) - want) / np.linalg.norm(want) < 0.1
        np.testing.assert_array_equal(session.run(None, {"x": inputs[0]})[0], session(x=inputs[0]))


@pytest.mark.usefixtures("one")
def test_the_plan_is_found_again_when_nothing_changed() -> None:
    with hal.compile(graph(), max_error=0.5) as session:
        first = session.plan
    with hal.compile(graph(), max_error=0.5) as session:
        # Its measured bursts too: nothing was measured again.
        assert session.plan == first
    with hal.compile(graph(), max_error=0.6) as session:
        assert session.plan.constraints.max_error == 0.6


@pytest.mark.usefixtures("one")
def test_a_plan_is_chosen_anew_when_its_profile_is_gone_or_its_row_is_damaged() -> None:
    with hal.compile(graph(), max_error=0.5) as session:
        pass
    with Store.open() as store:
        connection = store._connection
        connection.execute("UPDATE plans SET payload = x'00'")
    with hal.compile(graph(), max_error=0.5) as session:
        assert [part.target for part in session.plan.partitions] == [BF16, FP32]
    with Store.open() as store:
        assert store._connection.execute("SELECT kind FROM damaged").fetchall() == [("plans",)]
        assert store._connection.execute("SELECT count(*) FROM plans").fetchone() == (1,)
        store.remove([one.id for one in store.summaries()])
        assert store._connection.execute("SELECT count(*) FROM plans").fetchone() == (0,)


@pytest.mark.usefixtures("one")
def test_a_given_plan_is_carried_out_as_it_is(tmp_path: Path) -> None:
    plan = hal.choose(graph(), max_error=0.5)
    file = tmp_path / "plan.json"
    file.write_bytes(msgspec.json.encode(plan))
    for given in (plan, file, str(file)):
        with hal.compile(graph(), plan=given) as session:
            assert session.plan == plan


@pytest.mark.usefixtures("one")
def test_a_given_plan_is_refused_when_it_is_of_another_model_or_cannot_be_read(tmp_path: Path) -> None:
    plan = hal.choose(graph(), max_error=0.5)
    with pytest.raises(PlanError, match="the plan was made for model 'split'"):
        hal.compile(small_graph("add"), plan=plan)
    with pytest.raises(StorageError, match=r"plan '.*nothing.json' cannot be read: No such file"):
        hal.compile(graph(), plan=tmp_path / "nothing.json")
    with pytest.raises(InputError) as caught:
        hal.compile(graph(), plan=plan, max_error=0.1, targets=["cpu:0/*"])
    assert "max_error=0.1, targets=['cpu:0/*'] would have no effect; leave it out" in caught.value.message


def test_an_unknown_word_for_new_shapes_is_refused() -> None:
    with pytest.raises(InputError, match="new_shapes is 'maybe'; expected 'refuse' or 'replan'"):
        hal.compile(graph(), new_shapes="maybe")  # type: ignore[arg-type]  # wrong on purpose


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one")
def test_other_shapes_are_planned_for_when_that_was_asked_for() -> None:
    with hal.compile(DYNAMIC, shapes={"x": (3, 8)}, new_shapes="replan") as session:
        for n in (3, 2, 3, 2):
            check_rows(session, n)
        nan = np.full((4, 8), np.nan, np.float32)
        assert np.isnan(session(nan)).all()
    with hal.compile(DYNAMIC, rows(3)) as session:
        check_rows(session, 3)
        with pytest.raises(InputError, match="with new_shapes='replan' to compile for others"):
            session(rows(2))


def test_requests_are_examples_unless_they_hold_nan() -> None:
    x, n = np.ones((2, 3), np.float32), np.ones(1, np.int64)
    assert examples(["x", "n"], [x, n]) == ({"x": x, "n": n}, {"x": (2, 3), "n": (1,)})
    assert examples(["x", "n"], [x * np.nan, n]) == (None, {"x": (2, 3), "n": (1,)})


# --- as onnxruntime.InferenceSession --------------------------------------------------------------


@pytest.mark.usefixtures("one")
def test_a_program_for_onnx_runtime_runs_when_only_the_import_is_another(tmp_path: Path) -> None:
    path = small_graph("two_outputs").save(tmp_path)
    (x,) = example_inputs(small_graph("two_outputs"))
    sigmoid, relu = true_outputs(small_graph("two_outputs"), [x])
    session = hal.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [(arg.name, arg.shape, arg.type) for arg in session.get_inputs()] == [
        ("x", [3, 4], "tensor(float)")
    ]
    assert [arg.name for arg in session.get_outputs()] == ["b", "a"]
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_modelmeta().graph_name == "two_outputs"
    name = session.get_inputs()[0].name
    np.testing.assert_allclose(session.run(None, {name: x})[0], sigmoid, rtol=1e-6)
    np.testing.assert_array_equal(session.run(["a"], {name: x})[0], relu)
    with pytest.raises(InputError, match="input 'x' is missing"):
        session.run(None, {})
    assert [target for one in session.sessions for target in one.plan.targets] == [FP32]
    session.close()


@pytest.mark.usefixtures("one")
def test_a_model_with_free_dimensions_is_compiled_when_its_inputs_come() -> None:
    with hal.InferenceSession(DYNAMIC) as session:
        assert session.get_inputs()[0].shape == ["batch", 8]
        assert session.sessions == []
        assert session.get_providers() == []
        for n in (2, 5, 2):
            (want,) = true_outputs(Graph.load(DYNAMIC), [rows(n)])
            np.testing.assert_allclose(session.run(None, {"x": rows(n)})[0], want, rtol=1e-6)
        assert [one.signature.inputs[0].shape for one in session.sessions] == [(5, 8), (2, 8)]
        for feeds, text in (
            ({"x": rows(2).astype(np.float64)}, "input 'x' is float64"),
            ({"y": rows(2)}, "input 'y' is unknown"),
            ([rows(2)], "the feeds are a list"),
            ({"x": np.ones((2, 9), np.float32)}, "fixed to 8"),
        ):
            with pytest.raises(InputError, match=text):
                session.run(None, feeds)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.usefixtures("one")
def test_providers_without_a_device_are_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="CUDAExecutionProvider has no device here and is left out; CPUExec"):
        session = hal.InferenceSession(DYNAMIC, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert session.get_providers() == ["CPUExecutionProvider"]
    with pytest.warns(UserWarning, match=r"options of CPUExecutionProvider have no effect: arena='x'"):
        hal.InferenceSession(DYNAMIC, providers=[("CPUExecutionProvider", {"arena": "x", "device_id": 0})])
    with pytest.raises(
        TargetError, match=r"none of the providers AzureExecutionProvider, CUDAEx.* known are CPU"
    ):
        hal.InferenceSession(DYNAMIC, providers=["AzureExecutionProvider", "CUDAExecutionProvider"])


class Options:
    """As ``onnxruntime.SessionOptions`` is made."""

    def __init__(self) -> None:
        self.intra_op_num_threads = 0
        self.enable_profiling = False

    def add_session_config_entry(self, key: str, value: str) -> None:
        """A method is no option."""


def test_options_of_onnx_runtime_are_named_when_they_have_no_effect() -> None:
    options = Options()
    assert hal.InferenceSession(DYNAMIC, options).get_session_options() is options
    options.intra_op_num_threads = 4
    with pytest.warns(
        UserWarning, match="session options have no effect: intra_op_num_threads=4; hal measures"
    ):
        hal.InferenceSession(DYNAMIC, options)
    with (
        pytest.warns(UserWarning, match="run options have no effect: intra_op_num_threads=4"),
        pytest.raises(InputError),
    ):
        hal.InferenceSession(DYNAMIC).run(None, {}, options)
    with pytest.raises(InputError, match="the session options are not ONNX Runtime's: type was given"):
        hal.InferenceSession(DYNAMIC, type)


def test_a_session_like_onnx_runtimes_is_isolated_when_it_is_asked_for(one: None) -> None:
    with pytest.raises(InputError, match=r"isolate has 'nothing', which matches nothing here"):
        hal.InferenceSession(DYNAMIC, isolate="nothing").run(None, {"x": np.zeros((1, 8), np.float32)})
    ort = hal.InferenceSession(DYNAMIC, isolate=True)
    ort.run(None, {"x": np.zeros((1, 8), np.float32)})
    (session,) = ort.sessions
    (place,) = session.runner.places.values()
    assert type(place.backend) is IsolatedBackend
    ort.close()


def test_arguments_are_refused_when_they_mean_nothing() -> None:
    with pytest.raises(InputError, match=r"hal\.InferenceSession has no enable_fallback; expected objective"):
        hal.InferenceSession(DYNAMIC, enable_fallback=False)
    with pytest.raises(InputError, match="providers and targets both say where to run"):
        hal.InferenceSession(DYNAMIC, providers=["CPUExecutionProvider"], targets=["cpu:0/*"])
    with pytest.raises(InputError, match=r"3 is no provider; expected a name, or a pair"):
        hal.InferenceSession(DYNAMIC, providers=[3])
    with pytest.raises(InputError, match="1 provider_options were given for 2 providers"):
        hal.InferenceSession(DYNAMIC, providers=["A", "B"], provider_options=[{}])
    with pytest.raises(ModelError, match="list is neither a path nor bytes of an ONNX model"):
        hal.InferenceSession([1])  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ModelError, match=r"there is no file 'nothing\.onnx'"):
        hal.InferenceSession("nothing.onnx")


def test_a_file_of_another_format_is_refused_with_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="is not an ONNX model but a zip archive"):
        hal.InferenceSession(tmp_path / "model.pt")


# --- importing ------------------------------------------------------------------------------------


def test_importing_hal_loads_nothing_and_its_names_are_there() -> None:
    code = (
        "import sys, hal\n"
        "assert not {'numpy', 'onnx', 'hal.session', 'torch'} & set(sys.modules)\n"
        "assert all(getattr(hal, name) is not None for name in hal.__all__)\n"
        "assert not {'torch', 'onnxruntime', 'openvino'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
