"""Every command from its words to its exit code, on fake backends in real child processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hal.cli import main
from hal.records.files import from_json
from hal.records.profile import Profile
from tests.throwaway import Plugins, failing
from tests.unit.known_machine import know_the_machine

#: Virtual time: the limit on it is reached after a few runs.
QUICK = ["--time-s", "0.001"]
FAKE = {"default_ns": 100_000, "devices": [{"id": "cpu:0", "precisions": ["fp32", "bf16"]}]}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COLUMNS", raising=False)  # tables of the width of a pipe


@pytest.fixture
def model() -> str:
    """relu(x) + x for x float32[batch, 3, h, w]."""
    shape = ["batch", 3, "h", "w"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "x"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "small.onnx"
    )
    return "small.onnx"


SHAPE = ["--shape", "x=1,3,4,4"]


def test_profile_writes_json_and_prints_tables_when_all_is_well(
    model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", **FAKE)
    know_the_machine()
    assert main(["profile", model, *SHAPE, *QUICK]) == 0
    out, err = capsys.readouterr()
    record = from_json(Path("small.profile.json").read_bytes(), Profile, "the file")
    assert {target.status for target in record.targets} == {"ok"}
    assert out.startswith("small: 2 nodes, opset 17")
    assert "Kernels of cpu:0/fake/fp32, the 2 most expensive of 2" in out
    assert "unattributed" in out
    assert "\nthe result is:\n" in out
    assert err.splitlines()[-1] == "Wrote small.profile.json"


def test_profile_stops_before_measuring_when_the_output_exists(
    model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", **FAKE)
    Path("small.profile.json").write_text("mine")
    assert main(["profile", model, *SHAPE]) == 2
    assert capsys.readouterr() == (
        "",
        "error: 'small.profile.json' exists; use --force to overwrite it, or name another file\n",
    )
    assert Path("small.profile.json").read_text() == "mine"
    assert main(["profile", model, *SHAPE, *QUICK, "--force", "--no-kernels", "--target", "*/fp32"]) == 0
    assert Path("small.profile.json").read_text().startswith("{")
    assert "Kernels of" not in capsys.readouterr().out


def test_profile_prints_json_alone_on_stdout_when_asked(
    model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", **FAKE)
    know_the_machine()
    assert main(["profile", model, *SHAPE, *QUICK, "--json", "--top", "1"]) == 0
    out, err = capsys.readouterr()
    assert from_json(out.encode(), Profile, "stdout").model.name == "small"
    assert "the 1 most expensive of 2" in err
    assert list(Path().iterdir()) == [Path("small.onnx")]


def test_profile_ends_with_1_when_every_answer_is_wrong(
    model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", **FAKE, **failing("run", "wrong"))
    know_the_machine()
    assert main(["profile", model, *SHAPE, *QUICK]) == 1
    out = capsys.readouterr().out
    assert "cpu:0/fake/fp32 wrong: output 'y' is off by" in out
    assert "the result is: none of the targets answered rightly, so none is recommended\n" in out
    assert Path("small.profile.json").exists()


def test_profile_prints_what_it_measured_when_the_folder_is_gone_at_the_end(
    model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", model, *SHAPE, "--output", "gone/p.json"]) == 4
    assert capsys.readouterr().err == "error: the folder 'gone' does not exist; create it first\n"


def test_profile_names_free_dimensions_when_no_shape_is_given(
    model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", **FAKE)
    assert main(["profile", model]) == 2
    err = capsys.readouterr().err
    assert "x[batch, 3, h, w]" in err
    assert "--shape NAME=1,3,640,640" in err
    assert "Traceback" not in err
    assert main(["profile", model, "--traceback"]) == 2
    assert "Traceback (most recent call last):" in capsys.readouterr().err


def test_profile_names_the_file_when_it_is_missing(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", **FAKE)
    assert main(["profile", "no.onnx"]) == 2
    assert "no.onnx" in capsys.readouterr().err


def test_bench_prints_ratios_when_a_baseline_is_named(
    model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"devices": [{"id": "cpu:0", "precisions": ["fp32"]}], "overhead_ns": 0}
    plugins.add_fake("swift", default_ns=100_000, **one)
    plugins.add_fake("slow", default_ns=300_000, **one)
    assert main(["bench", model, *SHAPE, *QUICK, "--baseline", "cpu:0/slow/fp32"]) == 0
    out = capsys.readouterr().out
    assert "time over that of cpu:0/slow/fp32" in out
    rows = {words[0]: words[1] for row in out.splitlines() if len(words := row.split()) > 2}
    assert rows["cpu:0/swift/fp32"] == "0.33x"
    assert rows["cpu:0/slow/fp32"] == "1.00x"
    assert list(Path().iterdir()) == [Path("small.onnx")]
    assert main(["bench", model, *SHAPE, *QUICK, "--json"]) == 0
    assert from_json(capsys.readouterr().out.encode(), Profile, "stdout").ratios
    assert main(["bench", model, *SHAPE, *QUICK, "--baseline", "cpu:0/no/fp32"]) == 2
    assert "'cpu:0/no/fp32'" in capsys.readouterr().err


def test_run_writes_outputs_when_inputs_are_given(
    model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", **FAKE)
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 2, 2)
    np.save("x.npy", x)
    arguments = ["run", model, "--input", "x=x.npy", "--target", "cpu:0/fake/fp32", "--output", "y.npz"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith("ran on cpu:0/fake/fp32 (asked for); inputs: given\n")
    assert err.endswith("Wrote y.npz\n")
    with np.load("y.npz") as found:
        np.testing.assert_allclose(found["y"], np.maximum(x, 0) + x, rtol=1e-6)
    assert main(arguments) == 2
    assert "error: 'y.npz' exists; use --force" in capsys.readouterr().err


def test_run_says_that_inputs_are_random_when_none_are_given(
    model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", **FAKE)
    arguments = ["run", model, *SHAPE, "--target", "cpu:0/fake/fp32"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "inputs: random (seed 0)" in first
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inputs_from"] == "random (seed 0)"
    assert found["outputs"]["y"]["shape"] == [1, 3, 4, 4]


def test_run_ends_with_3_when_the_backend_crashes(
    model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", **FAKE, **failing("compile", "segfault"))
    assert main(["run", model, *SHAPE, "--target", "cpu:0/fake/fp32"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")


def test_run_reads_a_picture_when_the_input_takes_one(
    model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra 'images')")
    plugins.add_fake("fake", **FAKE)
    image.new("RGB", (8, 8), (255, 0, 0)).save("p.png")
    arguments = ["run", model, "--input", "x=p.png", "--target", "cpu:0/fake/fp32", "--json"]
    assert main(arguments) == 2
    assert "add --shape x=1,3,640,640 with the sizes you want" in capsys.readouterr().err
    assert main([*arguments, *SHAPE]) == 0
    found = json.loads(capsys.readouterr().out)["outputs"]["y"]
    assert (found["minimum"], found["maximum"]) == (0.0, 2.0)


def test_devices_proves_each_device_when_one_is_not_available(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    devices = [{"id": "cpu:0"}, {"id": "gpu:0", "unavailable": "no driver"}]
    plugins.add_fake("fake", devices=devices)
    plugins.add("broken", "raise RuntimeError('half installed')")
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "ok, computed in" in out
    assert "not available: no driver" in out
    assert "half installed" in " ".join(out.split())  # the line is folded
    assert main(["devices", "--json", "--no-proof"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [device["id"] for device in found["devices"]] == ["cpu:0", "gpu:0"]
    assert found["devices"][0]["proof"] is None


def test_devices_ends_with_1_when_a_device_answers_wrongly(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake", **failing("run", "wrong"))
    assert main(["devices"]) == 1
    assert "FAILED: answered" in capsys.readouterr().out


def test_devices_ends_with_1_when_there_is_none(plugins: Plugins, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 1
    assert "no plugin found a device" in capsys.readouterr().out


def test_doctor_ends_with_1_when_a_plugin_finds_a_problem(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = {"severity": "problem", "subject": "driver", "message": "too old", "advice": "upgrade it"}
    plugins.add_fake("fake", findings=[finding])
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "too old" in out
    assert "-> upgrade it" in out
    assert main(["doctor", "--json"]) == 1
    assert {"from": "fake", **finding} in json.loads(capsys.readouterr().out)["findings"]


def test_doctor_ends_with_0_when_nothing_is_a_problem(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake")
    assert main(["doctor"]) == 0
    assert " findings: " in capsys.readouterr().out


def test_plugins_lists_without_importing_when_one_would_break(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add("broken", "raise RuntimeError('half installed')")
    assert main(["plugins"]) == 0
    assert "hal-broken" in capsys.readouterr().out
    assert main(["plugins", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["plugins"]
    assert [(plugin["name"], plugin["version"], plugin["failure"]) for plugin in found] == [
        ("broken", "1.2.3", "")
    ]


def test_plugins_says_so_when_none_is_installed(plugins: Plugins, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    assert capsys.readouterr().out.startswith("no plugins are installed, or HAL_PLUGINS leaves none;")


@pytest.mark.parametrize("restriction", ["", "fake"])
def test_devices_are_said_to_be_restricted_when_hal_plugins_leaves_none(
    restriction: str, model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    if restriction:
        plugins.add_fake("fake", devices=[])
    assert main(["profile", model, *SHAPE]) == 2
    assert capsys.readouterr().err.endswith(
        f"error: no device can be used: HAL_PLUGINS restricts the plugins to {restriction or 'none'}\n"
    )


@pytest.mark.parametrize("command", ["profile", "run"])
def test_output_is_refused_before_measuring_when_it_is_no_file(
    command: str, model: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, model, "--output", "", "--force"]) == 4
    assert capsys.readouterr().err == "error: '.' is a folder; name a file in it\n"


def test_plugins_check_passes_when_the_plugin_keeps_the_contract(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("fake")
    assert main(["plugins", "check", "fake"]) == 0
    out, err = capsys.readouterr()
    assert "plugin fake: " in out
    assert "failed" not in out
    assert "checking fake: " in err


def test_plugins_check_ends_with_1_when_the_plugin_answers_wrongly(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    # Checked in this process, where a module of the name "fake" may be loaded already.
    plugins.add_fake("liar", **failing("run", "wrong"))
    assert main(["plugins", "check", "liar", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["checks"]
    assert any(check["outcome"] == "failed" for check in found)


def test_plugins_check_ends_with_3_when_there_is_no_such_plugin(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugins", "check", "nobody"]) == 3
    assert capsys.readouterr().err.startswith("error: there is no plugin 'nobody'; installed are none")
