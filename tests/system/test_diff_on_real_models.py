"""``hal diff`` on real models and runtimes: where rounding shows, and where it does not."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

from hal.cli import main
from hal.profiling.divergence import Diff, diff
from hal.records.divergence import Divergence
from hal.records.files import from_json
from tests.models import MODELS

RIGHT, ROUNDED = "cpu:0/cpu/fp32", "cpu:0/openvino/bf16"


def found(name: str, first: str, second: str, tolerance: float | None = None) -> Diff:
    model = MODELS[name].require()
    return diff(model.path(), model.inputs(), targets=[first, second], tolerance=tolerance)


@pytest.mark.parametrize("name", ["ppocr_cls", "silero_vad_op15", "silero_vad_op16", "silero_vad_sequence"])
def test_targets_agree_inside_too_when_both_are_fp32(name: str) -> None:
    record = found(name, RIGHT, "cpu:0/onnxruntime/fp32").record
    assert not record.parted
    assert record.first is None
    assert record.reproduction is None
    assert record.n_compared > 0
    assert record.worst is not None
    assert (record.worst.error_out or 0) < record.tolerance


def test_bf16_agrees_when_the_tolerance_is_its_own() -> None:
    record = found("ppocr_cls", RIGHT, ROUNDED).record
    assert not record.parted
    assert record.tolerance == 0.25
    assert record.worst is not None
    assert 1e-3 < (record.worst.error_out or 0) < 0.25  # bf16 is really computed


@pytest.mark.parametrize("name", ["ppocr_cls", "silero_vad_op15"])
@pytest.mark.parametrize("first", [RIGHT, "reference"])
def test_the_first_rounding_is_found_when_the_tolerance_is_tight(name: str, first: str) -> None:
    result = found(name, first, ROUNDED, tolerance=1e-5)
    record = result.record
    assert record.parted
    assert record.first is not None
    # The first product of the model: until then, bf16 has nothing to round.
    graph = onnx.load(MODELS[name].path(), load_external_data=False).graph
    assert record.first.op == next(node.op_type for node in graph.node if node.op_type in ("Conv", "MatMul"))
    assert (record.first.error_in or 0) <= 1e-5 < (record.first.error_out or 0)
    assert record.reproduction is not None
    assert record.reproduction.extent == "node"
    assert result.model is not None
    assert len(result.model.nodes) == 1
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    again = diff(result.model, result.inputs, targets=[first, ROUNDED], tolerance=1e-5, locate=False).record
    assert again.parted
    assert again.outputs == record.reproduction.outputs


def test_a_part_of_several_nodes_is_found_when_errors_add_up() -> None:
    result = found("silero_vad_op15", "reference", ROUNDED, tolerance=0.01)
    record = result.record
    assert record.parted
    assert record.first is not None
    assert 0 < (record.first.error_in or 0) <= 0.01 < (record.first.error_out or 0)
    assert record.growth[0].growth is None or record.growth[0].growth > 1
    assert record.reproduction is not None
    assert result.model is not None
    assert record.first.node in result.model.nodes
    assert len(result.model.nodes) < record.n_nodes / 2
    onnx.checker.check_model(result.model.to_proto(), full_check=True)


def test_the_command_replays_when_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = MODELS["silero_vad_op15"].require()
    np.savez("inputs.npz", allow_pickle=False, **model.inputs())
    words = ["diff", str(model.path()), "--input", "inputs.npz", "--targets", RIGHT, ROUNDED]
    assert main([*words, "--tolerance", "1e-5", "--output", "small.onnx"]) == 1
    out = capsys.readouterr().out
    assert "replayed; again with:" in out
    command = shlex.split(out.splitlines()[-1])
    assert command[:3] == ["hal", "diff", "small.onnx"]
    assert main([*command[1:], "--json"]) == 1
    record = from_json(capsys.readouterr().out.encode(), Divergence, "stdout")
    assert record.parted
    assert record.n_nodes == 1
