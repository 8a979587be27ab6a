from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

import hal
from hal.errors import HalError, InputError, ModelError, TargetError
from hal.graph.model import Graph
from hal.profiling import bench, diagnose, discover, prove, run
from hal.profiling.judge import fault
from hal.profiling.preflight import preflight
from hal.profiling.privacy import scrub
from hal.profiling.ratios import rebase
from hal.profiling.sources import resolve
from hal.records.files import from_json, to_json
from hal.records.profile import OutputError, Profile, TargetProfile
from hal.sampling import Policy
from hal.testing import small_graph
from hal.worker import Deadlines
from tests.throwaway import Plugins, failing

S = 1_000_000_000
#: Files that kill a bare process; they are not part of this repository and may be absent.
HOSTILE = Path(__file__).resolve().parents[3] / "shared" / "hostile"
#: Virtual time passes quickly: a handful of runs each.
QUICK = Policy(
    warm_up_min_ns=1,
    warm_up_max_ns=20_000,
    burst_ns=5_000,
    min_time_ns=1,
    min_runs=6,
    min_bursts=3,
    max_time_ns=1_000_000,
)


def short(step: str) -> Deadlines:
    """Deadlines of which only a hanging step meets the short one."""
    return Deadlines(**{f"{step}_ns": 10 * S})


ONE = [{"id": "cpu:0", "precisions": ["fp32"]}]


def by_name(record: Profile) -> dict[str, TargetProfile]:
    return {target.target: target for target in record.targets}


def test_profile_measures_every_target_when_all_work(plugins: Plugins) -> None:
    plugins.add_fake("swift", default_ns=1_000, overhead_ns=0)
    plugins.add_fake("slow", default_ns=4_000, overhead_ns=0, devices=ONE)
    record = hal.profile(small_graph("chain"), policy=QUICK, machine=False)
    targets = by_name(record)
    assert set(targets) == {"cpu:0/swift/fp32", "cpu:0/swift/bf16", "cpu:0/slow/fp32"}
    assert [target.status for target in record.targets] == ["ok"] * 3
    n_nodes = record.model.n_nodes
    for name, cost_ns in (("cpu:0/swift/fp32", 1_000), ("cpu:0/slow/fp32", 4_000)):
        timing, table = targets[name].timing, targets[name].kernels
        assert timing is not None
        assert table is not None
        assert timing.median_ns == n_nodes * cost_ns
        assert table.total_ns == n_nodes * cost_ns
        assert table.unattributed_ns == 0
        assert table.unknown == ()
    ratios = {(ratio.target, ratio.baseline): ratio.median for ratio in record.ratios}
    assert ratios["cpu:0/slow/fp32", record.ranking[0].target] == pytest.approx(4.0)
    assert record.ranking[-1].target == "cpu:0/slow/fp32"
    fp32 = targets["cpu:0/swift/fp32"]
    assert fp32.relative_l2 is not None
    assert fp32.relative_l2 <= 1e-6
    assert fp32.cold_start is not None
    assert fp32.cold_start.blob_bytes
    assert fp32.memory is not None
    assert fp32.memory.peak_bytes >= fp32.memory.loaded_bytes > 0


def test_profile_round_trips_when_written_as_json(plugins: Plugins) -> None:
    plugins.add_fake("one")
    record = hal.profile(small_graph("two_outputs"), policy=QUICK, machine=False)
    assert from_json(to_json(record), Profile, "the text") == record


@pytest.mark.parametrize("how", ["raise", "bug", "exit", "abort", "segfault"])
@pytest.mark.parametrize("at", ["compile", "first_run", "run:7"])
def test_profile_loses_one_target_only_when_its_child_fails(plugins: Plugins, at: str, how: str) -> None:
    plugins.add_fake("good", devices=ONE)
    plugins.add_fake("bad", devices=ONE, **failing(at, how))
    record = hal.profile(small_graph("chain"), policy=QUICK, machine=False)
    targets = by_name(record)
    assert targets["cpu:0/good/fp32"].status == "ok"
    assert targets["cpu:0/bad/fp32"].status == "failed"
    expected = {
        "raise": "told to fail",
        "bug": "ZeroDivisionError",
        "exit": "exited with status 7",
        "abort": "SIGABRT",
        "segfault": "SIGSEGV",
    }
    assert expected[how] in targets["cpu:0/bad/fp32"].reason
    assert record.ranking == (targets["cpu:0/good/fp32"],)


@pytest.mark.parametrize(("at", "step"), [("compile", "compile"), ("run:7", "run")])
def test_profile_loses_one_target_only_when_its_child_hangs(plugins: Plugins, at: str, step: str) -> None:
    plugins.add_fake("good", devices=ONE)
    plugins.add_fake("bad", devices=ONE, **failing(at, "hang"))
    targets = by_name(hal.profile(small_graph("chain"), policy=QUICK, machine=False, deadlines=short(step)))
    assert targets["cpu:0/good/fp32"].status == "ok"
    assert targets["cpu:0/bad/fp32"].status == "failed"
    assert "was stopped" in targets["cpu:0/bad/fp32"].reason


@pytest.mark.parametrize("how", ["raise", "segfault", "hang"])
def test_profile_keeps_the_plain_figures_when_kernel_timing_fails(plugins: Plugins, how: str) -> None:
    plugins.add_fake("bad", devices=ONE, **failing("kernels", how))
    target = hal.profile(small_graph("chain"), policy=QUICK, machine=False, deadlines=short("run")).targets[0]
    assert target.status == "ok"
    assert target.timing is not None
    assert target.kernels is None
    assert target.kernels_missing


@pytest.mark.parametrize(
    ("at", "how", "word"),
    [
        ("import", "raise", "told to fail"),
        ("import", "segfault", "SIGSEGV"),
        ("import", "hang", "did not open within"),
        ("discover", "bug", "ZeroDivisionError"),
        ("discover", "abort", "SIGABRT"),
        ("discover", "hang", "did not discover devices within"),
    ],
)
def test_discover_reports_a_plugin_when_it_breaks(plugins: Plugins, at: str, how: str, word: str) -> None:
    plugins.add_fake("good", devices=ONE)
    plugins.add_fake("bad", **failing(at, how))
    found = discover(deadlines=Deadlines(open_ns=10 * S, discover_ns=5 * S) if how == "hang" else None)
    assert [name for name, _ in found.devices] == ["good"]
    failures = {plugin.name: plugin.failure for plugin in found.plugins}
    assert failures["good"] == ""
    assert word in failures["bad"]


def test_profile_names_refused_nodes_when_a_backend_refuses(plugins: Plugins) -> None:
    plugins.add_fake("good", devices=ONE)
    plugins.add_fake("picky", devices=ONE, refuse={"Relu": "no rectifiers here"})
    target = by_name(hal.profile(small_graph("chain"), policy=QUICK, machine=False))["cpu:0/picky/fp32"]
    assert target.status == "refused"
    assert {node.op for node in target.refused} == {"Relu"}
    assert "no rectifiers here" in target.reason
    assert target.timing is None


def test_profile_never_recommends_a_target_when_it_answers_wrongly(plugins: Plugins) -> None:
    plugins.add_fake("right", devices=ONE, default_ns=5_000)
    plugins.add_fake("wrong", devices=ONE, default_ns=10, **failing("run", "wrong"))
    record = hal.profile(small_graph("chain"), policy=QUICK, machine=False)
    wrong = by_name(record)["cpu:0/wrong/fp32"]
    assert wrong.status == "wrong"
    assert "relative L2" in wrong.reason
    assert wrong.timing is not None
    assert [target.target for target in record.ranking] == ["cpu:0/right/fp32"]
    assert [(ratio.target, ratio.baseline) for ratio in record.ratios] == [("cpu:0/right/fp32",) * 2]
    with pytest.raises(TargetError, match="baseline 'cpu:0/wrong/fp32' was not measured or answered wrongly"):
        rebase(record, "cpu:0/wrong/fp32")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("Generous", "returned 2 outputs; expected 1"),
        ("Renaming", "an executable with outputs other"),
    ],
)
def test_profile_loses_one_target_only_when_a_backend_breaks_the_contract(
    plugins: Plugins, fault: str, text: str
) -> None:
    plugins.add_fake("good", devices=ONE)
    plugins.add(
        "bad",
        "from hal.hookspecs import hookimpl\n"
        f"from tests.unit.broken_backends import {fault}\n"
        "@hookimpl\ndef hal_backend():\n"
        f"    return {fault}(name='bad', devices={ONE!r})\n",
    )
    targets = by_name(hal.profile(small_graph("chain"), policy=QUICK, machine=False))
    assert targets["cpu:0/good/fp32"].status == "ok"
    assert targets["cpu:0/bad/fp32"].status == "failed"
    assert text in targets["cpu:0/bad/fp32"].reason


def test_discover_refuses_devices_when_no_target_could_name_them(plugins: Plugins) -> None:
    plugins.add_fake("good", devices=ONE)
    plugins.add(
        "bad",
        "from hal.hookspecs import hookimpl\nfrom tests.unit.broken_backends import OddDevices\n"
        "@hookimpl\ndef hal_backend():\n    return OddDevices(name='bad')\n",
    )
    found = discover()
    assert [name for name, _ in found.devices] == ["good"]
    (failure,) = [plugin.failure for plugin in found.plugins if plugin.name == "bad"]
    for text in (
        "device 'CPU': its id must be KIND:INDEX",
        "unknown precisions ['int4']",
        "variant 'A B' must be",
        "device 'cpu:0' with variant '' is listed twice",
    ):
        assert text in failure


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cannot open /home/bob/model.onnx", "cannot open <path>/model.onnx"),
        ("file:///etc/secret/key is gone", "<path>/key is gone"),
        ("node '/encoder/layer.0/MatMul' (MatMul)", "node '/encoder/layer.0/MatMul' (MatMul)"),
        (r"cannot open C:\\Users\\bob\\x.onnx", "cannot open <path>/x.onnx"),
        ("ratio 3/4, a/b/c and and/or", "ratio 3/4, a/b/c and and/or"),
    ],
)
def test_scrub_takes_paths_and_leaves_names_of_nodes_when_texts_hold_both(text: str, clean: str) -> None:
    assert scrub(text) == clean


def test_profile_leaves_nothing_behind_when_children_crash(plugins: Plugins) -> None:
    def shared() -> set[str]:
        return set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()

    before = shared()
    plugins.add_fake("bad", devices=ONE, **failing("run:7", "segfault"))
    hal.profile(small_graph("chain"), policy=QUICK, machine=False)
    # Other tests run beside this one: only what they leave for good would stay, and they leave nothing.
    children = [child for child in psutil.Process().children() if "hal.worker.child" in child.cmdline()]
    assert children == []
    assert {name for name in shared() - before if name.startswith(f"hal-{os.getpid()}")} == set()


def test_profile_holds_no_private_names_when_written(plugins: Plugins) -> None:
    plugins.add("bad", "raise OSError('cannot open ' + __file__ + ' in ' + __import__('os').getcwd())")
    plugins.add_fake("good", devices=ONE)
    text = to_json(hal.profile(small_graph("chain"), policy=QUICK, machine=False)).decode()
    assert "cannot open" in text
    for private in (str(Path.home()) + "/", os.getcwd(), str(Path(__file__).parent), "/tmp/"):
        assert private not in text


def test_profile_reports_each_device_when_it_cannot_be_used(plugins: Plugins) -> None:
    plugins.add_fake("good", devices=ONE)
    plugins.add_fake("gone", devices=[{"id": "cuda:0", "kind": "gpu", "unavailable": "no driver"}])
    record = hal.profile(small_graph("chain"), policy=QUICK, machine=False)
    assert record.notes == ("cuda:0 (gone) cannot be used: no driver",)


def test_profile_lists_what_is_there_when_no_target_fits(plugins: Plugins) -> None:
    plugins.add_fake("good", devices=ONE)
    with pytest.raises(TargetError, match=r"no target here fits 'npu:\*'; available: cpu:0/good/fp32"):
        hal.profile(small_graph("chain"), targets=["npu:*"], policy=QUICK, machine=False)
    with pytest.raises(TargetError, match="does not compute in bf16; it offers fp32"):
        hal.profile(small_graph("chain"), targets=["cpu:0/good/bf16"], policy=QUICK, machine=False)


def test_profile_takes_a_target_with_options_when_named_whole(plugins: Plugins) -> None:
    plugins.add_fake("good", devices=ONE)
    name = "cpu:0/good/fp32+mode=fast+n_threads=2"
    record = hal.profile(small_graph("chain"), targets=[name], policy=QUICK, machine=False)
    assert [target.target for target in record.targets] == [name]


def test_bench_takes_ratios_against_the_baseline_when_one_is_named(plugins: Plugins) -> None:
    plugins.add_fake("swift", devices=ONE, default_ns=1_000, overhead_ns=0)
    plugins.add_fake("slow", devices=ONE, default_ns=4_000, overhead_ns=0)
    record = bench(small_graph("chain"), baseline="cpu:0/slow/fp32", policy=QUICK)
    ratios = {ratio.target: ratio.median for ratio in record.ratios}
    assert ratios == {"cpu:0/slow/fp32": 1.0, "cpu:0/swift/fp32": 0.25}
    assert all(target.kernels is None for target in record.targets)
    with pytest.raises(TargetError, match="baseline 'x' is not among the targets; these are cpu:0/"):
        bench(small_graph("chain"), baseline="x", policy=QUICK)


def test_run_takes_the_fastest_right_target_when_none_is_named(plugins: Plugins) -> None:
    plugins.add_fake("right", devices=ONE, default_ns=50_000_000)
    plugins.add_fake("wrong", devices=ONE, default_ns=10_000_000, **failing("run", "wrong"))
    graph = small_graph("add")
    inputs = {spec.name: np.ones(spec.shape, spec.dtype) for spec in graph.signature.inputs}
    result = run(graph, inputs)
    assert result.target == "cpu:0/right/fp32"
    assert "measured now" in result.chosen_because
    np.testing.assert_array_equal(
        next(iter(result.outputs.values())), 2 * np.ones(graph.signature.outputs[0].shape)
    )


def test_prove_says_what_came_when_the_answer_is_wrong(plugins: Plugins) -> None:
    plugins.add_fake("right", devices=ONE)
    plugins.add_fake("wrong", devices=ONE, **failing("run", "wrong"))
    devices = dict(discover().devices)
    assert prove("right", devices["right"]).ok
    proof = prove("wrong", devices["wrong"])
    assert not proof.ok
    assert "for a 2x2 matrix product; expected [[1.0001220703125, 2.000244140625]" in proof.message


def test_profile_refuses_inputs_when_they_hold_nan(plugins: Plugins) -> None:
    plugins.add_fake("good", devices=ONE)
    graph = small_graph("add")
    inputs = {spec.name: np.full(spec.shape, np.nan, spec.dtype) for spec in graph.signature.inputs}
    with pytest.raises(InputError, match=r"holds \d+ NaN of \d+ values"):
        hal.profile(graph, inputs, policy=QUICK, machine=False)


def test_profile_scores_labelled_data_when_the_demo_has_them(plugins: Plugins) -> None:
    plugins.add_fake("good", devices=ONE)
    target = hal.profile(
        "demo:digits", policy=msgspec.structs.replace(QUICK, min_bursts=1, min_runs=1), machine=False
    ).targets[0]
    assert target.accuracy == pytest.approx(0.995)


@pytest.mark.parametrize(
    ("op", "relative_l2", "reason"),
    [
        ("Relu", 4e-4, ""),
        ("Relu", 6e-4, r"off by 0\.0006 \(relative L2\); fp32 explains at most 0\.0005"),
        ("Relu", None, "off by inf"),
        ("QuantizeLinear", 0.3, ""),
        (
            "QuantizeLinear",
            0.5,
            r"off by 0\.5 \(relative L2\); fp32 with quantized values explains at most 0\.4",
        ),
    ],
)
def test_fault_is_named_when_rounding_cannot_explain_it(
    op: str, relative_l2: float | None, reason: str
) -> None:
    inputs = ["x"] if op == "Relu" else ["x", "scale", "zero"]
    scales = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("zero", TensorProto.INT8, [], [0]),
    ]
    kind = TensorProto.FLOAT if op == "Relu" else TensorProto.INT8
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", kind, [2])],
        scales[: len(inputs) - 1],
    )
    model = Graph.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    error = OutputError(name="y", relative_l2=relative_l2, max_abs=relative_l2, sqnr_db=None)
    found = fault([error], "fp32", model)
    assert re.search(reason, found) if reason else found == ""


def save(tmp_path: Path, proto: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def text_model() -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.STRING, (2,)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "text", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_run_takes_text_when_numpy_gives_it_a_fixed_width(plugins: Plugins, tmp_path: Path) -> None:
    plugins.add_fake("good", devices=ONE)
    path = save(tmp_path, text_model())
    result = run(path, {"x": np.array(["short", "longer"])}, target="cpu:0/good/fp32")
    assert result.outputs["y"].tolist() == ["short", "longer"]


def test_resolve_refuses_shapes_when_their_inputs_do_not_fit_into_memory() -> None:
    with pytest.raises(InputError, match=r"the inputs of .* are 3.64 TiB, .* of memory are free"):
        resolve(huge(), shapes={"x": (1_000_000, 1_000_000)})


def huge() -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("a", "b")) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "huge", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_preflight_says_so_when_the_file_keeps_onnx_busy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"keeps onnx busy for more than 0.01 s before it can run"):
        preflight(save(tmp_path, huge()), {}, deadline_s=0.01)


@pytest.mark.parametrize("path", sorted(HOSTILE.glob("crash_1*.onnx")), ids=lambda path: path.stem)
def test_profile_survives_when_the_file_is_hostile(plugins: Plugins, path: Path) -> None:
    plugins.add_fake("good", devices=ONE)
    message = "none"
    try:
        preflight(path, {}, deadline_s=10)
    except HalError as error:
        message = error.message
    assert message  # one clear error or none, and this process lives


def test_run_lists_targets_when_the_backend_is_unknown(plugins: Plugins) -> None:
    plugins.add_fake("good", devices=ONE)
    with pytest.raises(
        TargetError, match="no target here fits 'cpu:0/nothing/fp32'; available: cpu:0/good/fp32"
    ):
        run(small_graph("add"), target="cpu:0/nothing/fp32")


def test_diagnose_tells_a_missing_device_once_when_its_backend_cannot(plugins: Plugins) -> None:
    gone = [{"id": "cuda:0", "kind": "gpu", "unavailable": "no driver"}]
    plugins.add_fake("silent", devices=gone, abilities=[])
    plugins.add_fake("speaking", devices=gone)
    told = [(who, finding.subject) for who, finding in diagnose() if finding.message == "no driver"]
    assert told == [("silent", "cuda:0")]
