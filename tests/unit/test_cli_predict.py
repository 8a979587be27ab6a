"""``hal predict``: what is printed, each figure marked, and its errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hal.cli import main
from hal.cli.output import plain
from hal.cli.predict_text import bar_text, estimate_text, predict_json, predict_text
from hal.profiling.store import Store
from hal.records.estimate import Estimate, GroupEstimate, ModelEstimate
from tests.unit.test_predict import HERE, digits_profile

Capture = pytest.CaptureFixture[str]


def estimate(low_ns: int, median_ns: int, high_ns: int, source: str = "like kernels") -> Estimate:
    return Estimate(low_ns=low_ns, median_ns=median_ns, high_ns=high_ns, source=source, n_records=6)


def model(name: str = "net") -> ModelEstimate:
    return ModelEstimate(
        model=name,
        digest="0123456789abcdef",
        target="cpu:0/openvino/fp32",
        total=estimate(900_000, 1_100_000, 1_500_000, "sum of 2 kernels"),
        kernels=estimate(800_000, 1_000_000, 1_400_000),
        between_ns=100_000,
        groups=(
            GroupEstimate(
                nodes=("conv", "relu", "add"),
                ops=("Conv", "Relu", "Add"),
                flops=10,
                moved_bytes=20,
                cost=estimate(700_000, 900_000, 1_200_000),
                cause="same model",
            ),
            GroupEstimate(
                nodes=(name,),
                ops=("Tanh",),
                flops=10,
                moved_bytes=20,
                cost=estimate(90_000, 100_000, 150_000),
                cause="alone",
            ),
        ),
        notes=("for another machine",),
    )


def test_text_is_exactly_as_agreed_when_rendered() -> None:
    assert plain(predict_text([model()]), 100) == (
        "net, digest 0123456789ab: estimates; nothing was run\n"
        "\n"
        "Estimates end to end per run; about 8 in 10 truths lie within the error bar\n"
        "target               estimate        error bar  in kernels  between them  kernels\n"
        "─────────────────────────────────────────────────────────────────────────────────\n"
        "cpu:0/openvino/fp32  ~1.10 ms  ~900 us-1.50 ms    ~1.00 ms       ~100 us       ~2\n"
        "\n"
        "Estimates for cpu:0/openvino/fp32, the 2 most expensive of ~2 kernels\n"
        "estimate        error bar   share  ops              nodes    grouped as in\n"
        "──────────────────────────────────────────────────────────────────────────\n"
        " ~900 us  ~700 us-1.20 ms  ~90.0%  Conv, Relu, Add  conv +2  same model\n"
        " ~100 us     ~90.0-150 us  ~10.0%  Tanh             net      alone\n"
        "  total from sum of 2 kernels\n"
        "    2 from like kernels\n"
        "  note: for another machine\n"
    )


def test_every_duration_is_marked_when_printed() -> None:
    text = plain(predict_text([model()]), 100)
    durations = re.findall(r"(~?-?)[\d.]+(?: \w+)?(?:-[\d.]+)? (?:ns|us|ms|s)\b", text)
    assert len(durations) == 8
    assert set(durations) == {"~"}


def test_names_are_escaped_when_hostile() -> None:
    text = plain(predict_text([model("[red]\x1b[2J\u202e" + "n" * 500)]), 100)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_zero_and_negative_times_are_marked_too() -> None:
    assert estimate_text(0) == "~0"
    assert estimate_text(-1500) == "~-1.50 us"
    assert bar_text(estimate(10, 20, 30)) == "~10.0-30.0 ns"


def test_json_says_estimate_of_every_figure() -> None:
    (found,) = json.loads(predict_json([model()]))["estimates"]
    figures = [found["total"], found["kernels"], *(each["cost"] for each in found["groups"])]
    assert {figure["kind"] for figure in figures} == {"estimate"}
    assert found["kind"] == "estimate"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_HOME", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)


def test_command_says_what_to_run_when_the_store_is_empty(capsys: Capture) -> None:
    assert main(["predict", "demo:digits"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no target is known")
    assert "run hal profile" in err


def test_command_estimates_a_batch_when_another_was_measured(capsys: Capture) -> None:
    with Store.open() as store:
        store.put(digits_profile(1, environment=HERE))
    assert main(["predict", "demo:digits", "--shape", "image=16,1,8,8", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["estimates"]
    assert found["target"] == "cpu:0/openvino/fp32"
    assert found["total"]["low_ns"] <= found["total"]["median_ns"] <= found["total"]["high_ns"]
    assert main(["predict", "demo:digits", "--shape", "image=16,1,8,8", "--target", "*/fp32"]) == 0
    assert "demo:digits, digest" in capsys.readouterr().out


def test_command_refuses_when_shapes_do_not_fit(capsys: Capture) -> None:
    assert main(["predict", "demo:digits", "--shape", "image=1,1,9,9"]) == 2
    assert "shapes do not fit" in capsys.readouterr().err
