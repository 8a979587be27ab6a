from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from hal.cli.app import execute
from hal.cli.output import plain
from hal.cli.plan import pairs
from hal.cli.plan_text import explanations_text, plan_json, plan_text
from hal.errors import UserError
from hal.planning.explain import NodeExplanation, TargetCost
from hal.records import files
from hal.records.plan import Constraints, Throughput
from hal.report.plan_page import plan_html
from hal.report.plan_words import throughput_text
from tests.golden import records
from tests.unit.compared import timing
from tests.unit.planned import CPU, GPU, plan, single

ROOT = Path(__file__).parents[2]
EPYC = ROOT / "profiles" / "amd-epyc-2cpu.json"


def run(*words: str, expect: int = 0) -> None:
    assert execute(words) == expect


def test_pairs_splits_at_the_sign_when_targets_have_options() -> None:
    assert pairs(["a=cpu:0/cpu/fp32+mode=compiled"], "--pin", "x") == {"a": "cpu:0/cpu/fp32+mode=compiled"}
    assert pairs(["cuda:0=8GiB"], "--memory", "x") == {"cuda:0": "8GiB"}


@pytest.mark.parametrize("text", ["a", "=b", "a="])
def test_pairs_refuses_when_a_side_is_missing(text: str) -> None:
    with pytest.raises(
        UserError, match=r"--memory '.*' is no pair; expected for example --memory cuda:0=8GiB"
    ):
        pairs([text], "--memory", "cuda:0=8GiB")


def test_pairs_refuses_when_a_name_comes_twice() -> None:
    with pytest.raises(UserError, match="--memory names 'a' twice; name it once"):
        pairs(["a=1", "a=2"], "--memory", "x")


def test_plan_text_shows_prediction_and_measurement_when_measured() -> None:
    text = plain(plan_text(plan()), 100)
    assert "1 tensor handed over, 64 B in all" in text
    assert "predicted 100 us, measured 103" in text
    assert "only cuda:0/cuda/fp32 was out: out of memory" in text


def test_plan_text_says_everything_when_one_target_runs_all() -> None:
    assert f"the result is: everything on {CPU}; predicted 120 us; optimal by these costs" in plain(
        plan_text(single()), 100
    )


def test_plan_text_and_page_tell_the_load_when_it_was_measured() -> None:
    load = Throughput(
        n_in_flight=2,
        batch=8,
        worth_from=3,
        requests_per_s=1234.56,
        p50_ns=12_000_000,
        p95_ns=15_000_000,
        p99_ns=21_000_000,
        n_requests=2000,
    )
    loaded = msgspec.structs.replace(
        single(constraints=Constraints(objective="throughput"), throughput=load), measured=timing(810_000)
    )
    told = (
        "1,234.6 requests/s with 2 runs at once of up to 8 requests; a request took p50 12.0 ms, "
        "p95 15.0 ms, p99 21.0 ms"
    )
    text = plain(plan_text(loaded), 160)
    assert told in text
    assert "measured 1,234.6 requests/s" in text.splitlines()[-1]
    assert f"Under load: {told}." in plan_html(loaded)
    assert json.loads(plan_json(loaded, []))["throughput"]["p99_ns"] == 21_000_000
    alone = msgspec.structs.replace(loaded, throughput=Throughput(n_in_flight=1, requests_per_s=5.0))
    assert throughput_text(alone).startswith("5.0 requests/s with 1 run at once; a request took p50 ")
    assert "Under load" not in plan_html(single())


def test_explanations_say_why_a_move_cannot_be_when_it_breaks_something() -> None:
    told = NodeExplanation(
        node="conv",
        op="Conv",
        unit="body.conv",
        nodes=("conv", "relu"),
        partition=0,
        target=GPU,
        reason="it is faster there",
        objective=100_000.0,
        targets=(
            TargetCost(target=GPU, compute_ns=40_000, objective=100_000.0),
            TargetCost(target=CPU, compute_ns=90_000, reason="memory of host is full"),
        ),
    )
    text = plain(explanations_text(plan(), [told]), 100)
    assert "conv (Conv): partition 0 on cuda:0/cuda/fp32" in text
    assert "placed with 1 other nodes as unit body.conv" in text
    assert "as planned" in text
    assert "memory of host is full" in text


@pytest.fixture(scope="module")
def imagined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of the demo for a stored machine, through the command line; nothing is run."""
    folder = tmp_path_factory.mktemp("plan")
    run(
        "plan", "demo:digits", "--with", str(EPYC), "--explain", "node_conv2d", "--budget-s", "0.5",
        "--output", str(folder / "p.json"), "--html", str(folder / "p.html"),
        "--annotate", str(folder / "p.onnx"),
    )  # fmt: skip
    return folder


def test_plan_writes_json_page_and_model_when_asked_for(imagined: Path) -> None:
    from hal.records.reading import read_plan

    made = read_plan((imagined / "p.json").read_bytes(), "it")
    assert made.estimated
    assert made.measured is None
    assert sum(len(part.nodes) for part in made.partitions) == made.model.n_nodes
    assert "<svg" in (imagined / "p.html").read_text()
    assert b"hal.target" in (imagined / "p.onnx").read_bytes()


def test_plan_takes_a_given_placement_when_it_is_used_again(
    imagined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = str(imagined / "p.json")
    run("plan", "demo:digits", "--with", str(EPYC), "--use", given, "--json")
    made = json.loads(capsys.readouterr().out)
    assert made["solver"] == given
    before = json.loads((imagined / "p.json").read_text())
    assert made["predicted"] == before["predicted"]


def test_plan_compares_equal_with_itself_when_compared(
    imagined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("compare", str(imagined / "p.json"), str(imagined / "p.json"), "--fail-if-slower", "5%")
    assert "0 nodes on other targets" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["demo:digits", "--links", "x.json"], "--links says how the machines of --with are connected"),
        (["demo:digits", "--with", "{epyc}", "--fresh"], "--fresh and --time-s say how to measure"),
        (["{profile}", "--shape", "x=1"], "--shape and --input belong to a model"),
        (["{profile}", "--with", "{epyc}"], "--with plans a model for another one"),
        (["demo:digits", "--with", "{epyc}", "--input", "x.npy"], "--input"),
        (["demo:digits", "--with", "absent.json"], "--with 'absent.json' cannot be read"),
        (["demo:digits", "--with", "{epyc}", "--memory", "cpu:0=1kib"], "host"),
        (["demo:digits", "--with", "{epyc}", "--objective", "beauty"], "beauty"),
        (["demo:digits", "--html", "a.out", "--annotate", "a.out"], "two of the files to write are the same"),
    ],
)
def test_plan_refuses_when_words_do_not_go_together(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    profile = tmp_path / "p.profile.json"
    profile.write_bytes(files.to_json(records.FULL))
    filled = [word.format(epyc=EPYC, profile=profile) for word in words]
    assert execute(["plan", *filled]) in (2, 4)
    assert text in capsys.readouterr().err
    assert not list(tmp_path.glob("*.plan.json"))
