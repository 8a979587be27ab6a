"""``hal diff`` from its words to its files and exit code, on faulty backends in real child processes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from hal.cli import main
from hal.cli.diff import _written
from hal.graph.cut import Cutter
from hal.profiling.divergence import Diff
from hal.records.divergence import Divergence, Reproduction
from hal.records.files import from_json
from hal.testing import small_graph
from tests.throwaway import Plugins, failing

FAULTY = """
import json
from hal.hookspecs import hookimpl
from tests.unit.faulty_backends import Faulty

@hookimpl
def hal_backend():
    return Faulty(**json.loads({configuration!r}))
"""
RIGHT, WRONG = "cpu:0/right/fp32", "cpu:0/wrong/fp32"


def add_wrong(plugins: Plugins, *faults: dict[str, Any], **configuration: Any) -> None:
    plugins.add_fake("right")
    configuration = {"name": "wrong", "faults": faults, **configuration}
    plugins.add("wrong", FAULTY.format(configuration=json.dumps(configuration)))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COLUMNS", raising=False)  # tables of the width of a pipe
    Path("chain.onnx").write_bytes(small_graph("chain").to_proto().SerializeToString())


def test_diff_writes_one_node_and_its_inputs_when_the_targets_part(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    add_wrong(plugins, {"value": "r1"})
    assert main(["diff", "chain.onnx", "--targets", RIGHT, WRONG]) == 1
    out, err = capsys.readouterr()
    assert "cpu:0/wrong/fp32 against cpu:0/right/fp32, tolerance 0.0005 relative L2" in out
    assert "the result is: the targets part\n  first node: relu_3 (Relu), 3 of 6 in the file's order" in out
    assert "  its output r1 is off by 0.5, its inputs by 0\n" in out
    assert "  reproduced by one node, its inputs as cpu:0/right/fp32 computes them: off by 0.5\n" in out
    assert "Wrote chain.diff.onnx and chain.diff.npz\nreplaying it in new processes\n" in err
    onnx.checker.check_model("chain.diff.onnx", full_check=True)
    (node,) = onnx.load("chain.diff.onnx").graph.node
    assert (node.name, node.op_type, *node.input, *node.output) == ("relu_3", "Relu", "m1", "r1")
    with np.load("chain.diff.npz") as inputs:
        assert list(inputs) == ["m1"]
    # The command that is printed does what it says.
    *_, command = out.splitlines()
    assert command == (f"    hal diff chain.diff.onnx --input chain.diff.npz --targets {RIGHT} {WRONG}")
    assert "  replayed; again with:\n" in out
    assert main([*shlex.split(command)[1:], "--json"]) == 1
    again = from_json(capsys.readouterr().out.encode(), Divergence, "stdout")
    assert again.n_nodes == 1
    assert again.first is not None
    assert again.first.node == "relu_3"
    assert again.reproduction is not None
    assert again.reproduction.model_file == "chain.diff.diff.onnx"
    assert again.reproduction.replayed


def test_diff_ends_with_0_and_writes_nothing_when_the_targets_agree(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    add_wrong(plugins)
    assert main(["diff", "chain.onnx", "--targets", RIGHT, "cpu:0/wrong/bf16"]) == 0
    out, err = capsys.readouterr()
    assert "tolerance 0.25 relative L2 (what rounding in bf16 explains)" in " ".join(out.split())
    assert "Furthest apart inside: " in out
    assert "the result is: the targets agree\n  worst output: r2, relative L2 0.00" in out
    assert "Wrote" not in err
    assert [path.name for path in Path().iterdir()] == ["chain.onnx"]
    assert main(["diff", "chain.onnx", "--targets", RIGHT, "cpu:0/wrong/bf16", "--tolerance", "1e-6"]) == 1
    out = capsys.readouterr().out
    assert "tolerance 1e-06 relative L2 (asked for)" in out
    assert out.endswith("--tolerance 1e-06\n")


def test_diff_bisects_when_the_fault_hides_from_exposing_and_the_reference_is_asked(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    add_wrong(plugins, {"value": "r1", "fused": ["m1"]})
    assert main(["diff", "chain.onnx", "--targets", WRONG, "reference", "--output", "small.onnx"]) == 1
    out, err = capsys.readouterr()
    assert "cpu:0/wrong/fp32 against reference" in out
    assert "found by cutting the model shorter and shorter" in " ".join(out.split())
    assert "reproduced by 2 nodes, its inputs as reference computes them" in out
    assert "\n    matmul_2, relu_3\n" in out
    assert "with all values as outputs the difference is gone" in out
    assert "cutting the model after 3 of 6 nodes" in err
    assert "replayed; again with:" in out
    assert Path("small.npz").exists()


def test_diff_cuts_the_model_when_a_target_dies_of_many_outputs(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    add_wrong(plugins, {"value": "r1"}, most_outputs=2, dies=True)
    assert main(["diff", "chain.onnx", "--targets", RIGHT, WRONG, "--json"]) == 1
    out, err = capsys.readouterr()
    record = from_json(out.encode(), Divergence, "stdout")
    assert record.found_by == "bisecting"
    assert record.first is not None
    assert record.first.node == "relu_3"
    assert "with all its values as outputs the model does not run: cpu:0/wrong/fp32 cannot" in record.notes[0]
    assert record.reproduction is not None
    assert record.reproduction.nodes == ("relu_3",)
    assert record.reproduction.replayed
    assert "the result is: the targets part" in err


def test_diff_says_so_when_what_it_wrote_does_not_part_again(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    # A fault that is gone once the part was written and read again.
    add_wrong(plugins, {"value": "r1", "named": ["chain", "chain_prefix", "chain_part"]})
    assert main(["diff", "chain.onnx", "--targets", RIGHT, WRONG]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "Notes: read again and run in new processes, the files do not part" in out
    assert "NOT reproduced when replayed; again with: hal diff chain.diff.onnx" in out


def test_diff_ends_with_3_when_a_target_cannot_run_the_model(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_fake("right")
    plugins.add_fake("wrong", refuse={"Relu": "too steep"})
    plugins.add_fake("dead", **failing("compile", "segfault"))
    assert main(["diff", "chain.onnx", "--targets", RIGHT, WRONG]) == 3
    err = capsys.readouterr().err
    assert "error: cpu:0/wrong/fp32 cannot compute 'chain': " in err
    assert "too steep" in err
    assert main(["diff", "chain.onnx", "--targets", "cpu:0/dead/fp32", RIGHT]) == 3
    assert "error: cpu:0/dead/fp32 cannot compute 'chain': backend 'dead'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            [RIGHT, RIGHT],
            "both targets are 'cpu:0/right/fp32'; give two different ones, or one and 'reference'",
        ),
        ([RIGHT, "cpu:0/no/fp32"], "no target here fits 'cpu:0/no/fp32'; available: cpu:0/right/fp32"),
        ([RIGHT, "nonsense"], "'nonsense' is not a target; expected DEVICE/BACKEND[-VARIANT]/PRECISION"),
        (["cpu:0/*/fp32", "reference"], "'cpu:0/*/fp32' is not a target"),
        ([RIGHT, "cpu:0/wrong/fp16"], "cpu:0 with wrong does not compute in fp16; it offers fp32, bf16"),
        ([RIGHT, WRONG, "--tolerance", "-1"], "tolerance -1 is no relative error; expected a number of 0 or"),
        ([RIGHT, WRONG, "--tolerance", "nan"], "tolerance nan is no relative error"),
        ([RIGHT, WRONG, "--output", "x.txt"], "--output 'x.txt' must end in .onnx"),
        ([RIGHT, WRONG, "--output", "no/x.onnx"], "the folder 'no' does not exist; create it first"),
        (
            [RIGHT, WRONG, "--output", "chain.onnx", "--force"],
            "'chain.onnx' is what hal diff was asked to read",
        ),
        (
            [RIGHT, WRONG, "--input", "in.npz", "--output", "in.onnx", "--force"],
            "'in.npz' is what hal diff was asked to read; name another file with --output",
        ),
    ],
)
def test_diff_says_what_is_wrong_when_it_cannot_be_asked(
    words: list[str], told: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    add_wrong(plugins)
    np.savez("in.npz", x=np.ones((4, 8), np.float32))
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    assert main(["diff", "chain.onnx", "--targets", *words]) in (2, 4)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {told}" in err
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


@pytest.mark.parametrize("name", ["chain.diff.onnx", "chain.diff.npz"])
def test_diff_stops_before_it_runs_when_an_output_exists(
    name: str, plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    add_wrong(plugins, {"value": "r0"})
    Path(name).write_text("mine")
    assert main(["diff", "chain.onnx", "--targets", RIGHT, WRONG]) == 2
    assert capsys.readouterr().err == (
        f"error: '{name}' exists; use --force to overwrite it, or name another file\n"
    )
    assert main(["diff", "chain.onnx", "--targets", RIGHT, WRONG, "--force"]) == 1
    assert Path(name).read_bytes() != b"mine"


def test_diff_needs_two_targets_when_it_is_asked(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", "chain.onnx"]) == 2
    assert "Missing option '--targets'" in capsys.readouterr().err
    assert main(["diff", "chain.onnx", "--targets", RIGHT]) == 2
    assert "requires 2 arguments" in capsys.readouterr().err


def test_diff_replays_names_and_types_when_they_are_unusual(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["/a/b:0"], to=TensorProto.BFLOAT16, name="cast"),
        helper.make_node("Neg", ["/a/b:0"], ["file"], name="neg"),
        helper.make_node("Cast", ["file"], ["y"], to=TensorProto.FLOAT, name="b\x1b[31mack"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "odd", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, "odd name.onnx")
    add_wrong(plugins, {"value": "y"})
    assert main(["diff", "odd name.onnx", "--targets", RIGHT, WRONG]) == 1
    out = capsys.readouterr().out
    assert "hal diff 'odd name.diff.onnx' --input 'odd name.diff.npz'" in out
    assert "  replayed; again with:\n" in out
    assert "first node: b\\x1b[31mack (Cast)" in out
    assert "\x1b" not in out
    with np.load("odd name.diff.npz") as inputs:
        ((name, array),) = inputs.items()
    assert (name, array.dtype) == ("file", np.float32)


def test_diff_says_so_when_the_checker_refuses_what_it_wrote(
    plugins: Plugins, capsys: pytest.CaptureFixture[str]
) -> None:
    def branch(op: str, **attributes: int) -> onnx.GraphProto:
        end = helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["x"], [f"{op}_y"], **attributes)], op, [], [end])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["flag"], to=TensorProto.BOOL),
        # Of two or of no dimensions: no file can state the shape of y.
        helper.make_node(
            "If", ["flag"], ["y"], then_branch=branch("Neg"), else_branch=branch("ReduceSum", keepdims=0)
        ),
        helper.make_node("Relu", ["x"], ["z"]),
    ]
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xz")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "shapeless", [x], [y, z])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "shapeless.onnx"
    )
    # The fault is gone without the last node, which y does not need: nothing smaller than the model parts.
    add_wrong(plugins, {"value": "y", "n_nodes": 4})
    assert main(["diff", "shapeless.onnx", "--targets", RIGHT, WRONG]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "onnx.checker refuses the file, as it may the model: Field 'shape'" in out
    assert "reproduced by the model itself, 4 nodes: nothing smaller parts: off by 0.5" in out
    assert "replayed; again with:" in out


def test_diff_writes_nothing_when_the_part_is_larger_than_a_file_can_be(tmp_path: Path) -> None:
    graph = Cutter(small_graph("chain")).prefix(["r2"])  # one of its own, to be changed
    # 4 GiB that take no memory.
    zeros = np.broadcast_to(np.float32(0), (1 << 30,))
    weight = ir.Value(name="huge", const_value=ir.Tensor(zeros, name="huge"))
    graph.model.graph.initializers.add(weight)
    reproduction = Reproduction(extent="node", nodes=("n",), outputs=(), n_tried=1)
    record = Divergence(
        model="m",
        digest="d",
        n_nodes=1,
        inputs_from="given",
        targets=("a", "b"),
        against="a",
        tolerance=0.1,
        tolerance_from="asked for",
        parted=True,
        outputs=(),
        reproduction=reproduction,
    )
    kept = _written(Diff(record, graph, {}), tmp_path / "f.onnx", tmp_path / "f.npz", False)
    assert kept.reproduction == reproduction
    assert "what reproduces it was not written: model 'chain_prefix' has 4294" in kept.notes[0]
    assert list(tmp_path.glob("f.*")) == []
