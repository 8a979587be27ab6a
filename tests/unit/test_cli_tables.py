"""What is printed: exact tables, the closing verdict, and hostile names."""

from __future__ import annotations

import io
import json
import tracemalloc

import msgspec
import numpy as np
import pytest

from hal.backend import Finding
from hal.cli import figures
from hal.cli.devices_text import Listing, devices_json
from hal.cli.doctor_text import doctor_json
from hal.cli.output import plain
from hal.cli.plugins_text import checks_json, plugins_json, plugins_text
from hal.cli.profile_text import bench_text, profile_text
from hal.cli.run_text import npz_writer, run_json, run_text, summarize
from hal.cli.verdict import verdict
from hal.profiling import Discovery, Proof, RunResult
from hal.records.profile import MemoryPeak, ModelInfo, PluginInfo
from hal.records.targets import TensorSpec
from tests.golden import records
from tests.golden.renderings import HERE, RENDERINGS

HOSTILE = "[red]\x1b[2J\x07\u202e" + "n" * 500


@pytest.mark.parametrize("name", RENDERINGS)
def test_text_is_exactly_as_agreed_when_rendered(name: str) -> None:
    assert RENDERINGS[name]() == (HERE / name).read_text()


def test_verdict_names_one_target_when_fp32_is_the_fastest() -> None:
    record = records.profile(
        records.target(records.FP32, 90_000), records.target(records.BF16, 100_000, relative_l2=2e-3)
    )
    assert verdict(record) == (
        "the result is:",
        "fastest, in fp32 and overall: cpu:0/openvino/fp32 (90.0 us a run, error 3.2e-07)",
    )


def test_verdict_never_names_a_wrong_target_when_it_is_the_fastest() -> None:
    record = records.profile(
        records.target(records.WRONG, 10, status="wrong", reason="off"),
        records.target(records.FP32, 90_000),
    )
    assert records.WRONG not in "".join(verdict(record))
    assert "cpu:0/openvino/fp32" in verdict(record)[1]


def test_verdict_recommends_nothing_when_no_target_is_right() -> None:
    record = records.profile(records.target(records.WRONG, 10, status="wrong", reason="off"))
    assert verdict(record) == ("the result is: none of the targets answered rightly, so none is recommended",)


def test_verdict_says_so_when_no_fp32_target_is_right() -> None:
    record = records.profile(records.target(records.BF16, 70_000, relative_l2=2e-3))
    assert verdict(record) == (
        "the result is:",
        "fastest in fp32: none; no target in fp32 answered rightly",
        "fastest overall: cpu:0/openvino/bf16 (70.0 us a run, error 2.0e-03), computing in bf16",
    )


def test_verdict_names_what_cannot_be_told_apart_when_intervals_overlap() -> None:
    record = records.profile(
        records.target(records.FP32, 100_000),
        records.target(records.ORT, 101_000),
        records.target("cpu:0/cpu/fp32", 150_000),
    )
    assert verdict(record)[1].endswith("error 3.2e-07, within the noise of cpu:0/onnxruntime/fp32)")


def test_verdict_says_so_when_answers_were_not_checked() -> None:
    record = records.profile(records.target(records.FP32, 100_000, errors=()))
    assert "(100 us a run, answers not checked)" in verdict(record)[1]


@pytest.mark.parametrize(
    ("error", "text"), [(None, "inf"), (0.0, "0"), (3.14e-7, "3.1e-07"), (1.5, "1.5e+00")]
)
def test_error_is_short_when_printed(error: float | None, text: str) -> None:
    assert figures.error_of(records.target("cpu:0/cpu/fp32", 10, relative_l2=error)) == text


def test_figures_are_dashes_when_nothing_was_measured() -> None:
    empty = records.target("cpu:0/cpu/fp32")
    texts = (
        figures.median_text(None),
        figures.spread_text(None),
        figures.count_text(None),
        figures.memory_text(empty),
        figures.error_of(empty),
        figures.accuracy_text(empty),
        figures.share_text(1, 0),
    )
    assert set(texts) == {"-"}


def test_spread_keeps_both_units_when_they_differ() -> None:
    timing = msgspec.structs.replace(records.timing(1_000_000), p10_ns=900_000, p90_ns=1_100_000)
    assert figures.spread_text(timing) == "900 us-1.10 ms"


def test_memory_is_the_devices_own_when_it_tells() -> None:
    memory = MemoryPeak(loaded_bytes=1, peak_bytes=1 << 30, device_bytes=3 << 20)
    assert figures.memory_text(records.target("cuda:0/cuda/fp32", 10, memory=memory)) == "3.00 MiB"


def hostile_texts() -> list[str]:
    kernels = msgspec.structs.replace(
        records.KERNELS,
        kernels=(records.kernel(HOSTILE, 10, (HOSTILE, "b"), (HOSTILE,), HOSTILE),),
        unknown=(HOSTILE,),
    )
    record = records.profile(
        records.target(records.FP32, 10, kernels=kernels),
        records.target(records.BF16, status="failed", reason=HOSTILE),
        model=ModelInfo(
            name=HOSTILE,
            digest="0" * 64,
            opset=17,
            n_nodes=1,
            weight_bytes=0,
            inputs=(TensorSpec(HOSTILE, "float32", (1,)),),
            outputs=(),
            inputs_from="given",
        ),
        plugins=(PluginInfo(name=HOSTILE, distribution=HOSTILE, version="1", failure=HOSTILE),),
        notes=(HOSTILE,),
    )
    run = RunResult(
        target=records.FP32,
        chosen_because="asked for",
        inputs_from="given",
        outputs={HOSTILE: np.zeros(1, np.float32)},
    )
    return [
        plain(profile_text(record, 10), 100),
        plain(bench_text(record), 100),
        plain(run_text(run), 100),
        plain(plugins_text([msgspec.structs.replace(records.PLUGINS[1], failure=HOSTILE)]), 100),
    ]


@pytest.mark.parametrize("index", range(4))
def test_tables_escape_and_fit_when_names_are_hostile(index: int) -> None:
    text = hostile_texts()[index]
    assert "\\x1b[2J" in text or "…" in text
    assert "[red]" in text
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(text)
    assert max(len(row) for row in text.splitlines()) <= 100


def test_profile_lists_few_inputs_when_there_are_many() -> None:
    model = msgspec.structs.replace(
        records.FULL.model, inputs=tuple(TensorSpec(f"past_{i}", "float32", (1,)) for i in range(60))
    )
    text = plain(profile_text(records.profile(records.target(records.FP32, 10), model=model), 10), 100)
    assert "past_5: float32[1]" in text
    assert "past_6" not in text
    assert "and 54 more inputs" in text


def test_devices_json_holds_options_and_proof_when_there_are_some() -> None:
    proof = Proof(ok=True, message="computed", duration_ns=5)
    found = devices_json(Listing(records.DISCOVERY, {("cpu", "cpu:0", ""): proof}))
    assert found["devices"][0]["backend"] == "cpu"
    assert found["devices"][0]["proof"] == {"ok": True, "message": "computed", "duration_ns": 5}
    assert [option["name"] for option in found["devices"][0]["options"]] == ["mode", "threads", "spin"]
    assert found["devices"][3]["unavailable"] == "no NVIDIA driver"
    assert found["devices"][3]["proof"] is None
    assert found["plugins"][1]["failure"] == "import failed: no driver"


def test_listing_works_only_when_a_device_is_there_and_no_proof_failed() -> None:
    good, bad = (Proof(ok=ok, message="", duration_ns=1) for ok in (True, False))
    key = ("cpu", "cpu:0", "")
    assert Listing(records.DISCOVERY, {key: good}).works
    assert Listing(records.DISCOVERY, {}).works
    assert not Listing(records.DISCOVERY, {key: bad}).works
    assert not Listing(Discovery(records.DISCOVERY.found[3:], (), ()), {}).works


def test_json_texts_hold_every_field_when_read_back() -> None:
    findings = json.loads(
        doctor_json([("cuda", Finding(severity="note", subject="s", message="m", advice="a"))])
    )
    assert findings == {
        "findings": [{"from": "cuda", "severity": "note", "subject": "s", "message": "m", "advice": "a"}]
    }
    assert json.loads(plugins_json(records.PLUGINS))["plugins"][0]["entry_point"] == "hal_cpu.plugin"
    assert json.loads(checks_json(records.CHECKS))["checks"][1]["outcome"] == "failed"
    outputs = json.loads(run_json(records.RUN))["outputs"]
    assert outputs["scores"]["largest_at"] == [0, 1]
    assert outputs["state"]["n_not_finite"] == 2
    assert outputs["label"] == {
        "dtype": "string",
        "shape": [2],
        "minimum": None,
        "mean": None,
        "maximum": None,
        "largest_at": None,
        "n_not_finite": 0,
    }


def test_summary_has_no_figures_when_all_values_are_nan() -> None:
    found = summarize(np.full((2,), np.nan, np.float32))
    assert (found.minimum, found.largest_at, found.n_not_finite) == (None, None, 2)


def test_npz_reads_back_when_names_and_types_are_awkward() -> None:
    import ml_dtypes

    outputs = {
        "file": np.arange(3),
        "a/b:0": np.float32(1.5).reshape(()),
        "half": np.array([1.5, -2], ml_dtypes.bfloat16),
        "words": np.array(["x", "yy"], dtype=object),
    }
    file = io.BytesIO()
    npz_writer(outputs)(file)
    file.seek(0)
    with np.load(file, allow_pickle=False) as found:
        assert set(found) == set(outputs)
        np.testing.assert_array_equal(found["file"], [0, 1, 2])
        assert found["a/b:0"] == 1.5
        assert found["half"].dtype == np.float32
        np.testing.assert_array_equal(found["half"], [1.5, -2])
        np.testing.assert_array_equal(found["words"], ["x", "yy"])


def test_summary_is_the_same_when_an_output_is_larger_than_what_is_looked_at_at_once() -> None:
    output = np.random.default_rng(0).normal(size=(3, 1_000_003)).astype(np.float32)
    output[2, 7], output[2, 9], output[0, 5], output[1, 0] = 9, 9, np.nan, -8
    found = summarize(output)
    assert (found.minimum, found.maximum, found.largest_at, found.n_not_finite) == (-8, 9, (2, 7), 1)
    assert found.mean == pytest.approx(np.nanmean(output.astype(np.float64)), rel=1e-12)


def test_summary_takes_little_memory_when_an_output_is_large() -> None:
    output = np.zeros(1 << 25, np.float32)
    tracemalloc.start()
    try:
        summarize(output)
        assert tracemalloc.get_traced_memory()[1] < output.nbytes / 2
    finally:
        tracemalloc.stop()


def test_summary_has_no_mean_when_the_sum_is_beyond_float64() -> None:
    assert summarize(np.full(4, 1e308)).mean is None
