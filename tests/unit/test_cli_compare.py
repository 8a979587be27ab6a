"""``hal compare``: what it prints, its exit codes, and how wrong requests are answered."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper

from hal.cli import main
from hal.cli.compare import is_model, parse_limit
from hal.cli.compare_text import compare_text, signed
from hal.cli.output import plain
from hal.errors import UserError
from hal.profiling.compare import compare_profiles, compare_targets
from hal.profiling.store import Store
from hal.records import files
from hal.records.comparison import Comparison
from hal.records.profile import Profile
from tests.throwaway import Plugins
from tests.unit import compared
from tests.unit.compared import BF16, FP32, ORT, environment, profile, target

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty store, an empty folder, and tables of the width of a pipe."""
    monkeypatch.setenv("HAL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def saved(made: Profile, name: str) -> str:
    Path(name).write_bytes(files.to_json(made))
    return name


def slow(percent: float) -> Profile:
    """FP32 slower by so much, BF16 as before."""
    return profile(
        target(FP32, round(1000 * (100 + percent)), compared.FUSED), target(BF16, 70_000, compared.HALF)
    )


TWO_TARGETS = """\
A  cpu:0/openvino/fp32 of a.json (digits), measured 2026-01-01 00:00 by hal 0.1.0
B  cpu:0/openvino/bf16 of a.json (digits), measured 2026-01-01 00:00 by hal 0.1.0

End to end per run; ratio: time of B over that of A
     A        B  difference  ratio  95% interval  B is
────────────────────────────────────────────────────────
100 us  70.0 us    -30.0 us  0.70x     0.70-0.70  faster
  by the median ratio of 12 rounds in which both ran, and its 95% interval by the sign test

Layers, the 2 that differ most of 3: kernel time per run
block            ops               A        B  difference  ratio   share  faster
────────────────────────────────────────────────────────────────────────────────
body             Conv, Relu  60.0 us  30.0 us    -30.0 us  0.50x  107.1%  B
body.pool        MaxPool     10.0 us  12.0 us    +2.00 us  1.20x   -7.1%  A
the other block              20.0 us  20.0 us           0  1.00x
unattributed                 3.00 us        0    -3.00 us  0.00x
all kernels                  93.0 us  62.0 us    -31.0 us  0.67x
end to end                    100 us  70.0 us    -30.0 us  0.70x
  B is faster in 1 block by 30.0 us, A in 1 block by 2.00 us; 1 within noise: the 95% interval by
  recorded instrumented runs holds 1 (of 20 equal blocks, one is called faster by chance)
"""


def test_compare_prints_layers_when_two_targets_are_named(capsys: Capture) -> None:
    assert main(["compare", saved(profile(), "a.json"), "--targets", FP32, BF16, "--top", "2"]) == 0
    assert capsys.readouterr() == (TWO_TARGETS, "")


def test_compare_prints_each_target_and_the_layers_of_those_that_differ(capsys: Capture) -> None:
    faster = profile(
        target(FP32, 80_000, compared.HALF), target(BF16, 70_000, compared.HALF), target(ORT, 9, None)
    )
    arguments = [
        saved(profile(target(FP32, 100_000, compared.FUSED), target(BF16, 70_000, compared.HALF)), "a.json")
    ]
    assert main(["compare", *arguments, saved(faster, "b.json")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[:2] == [
        "A  a.json (digits), measured 2026-01-01 00:00 by hal 0.1.0",
        "B  b.json (digits), measured 2026-01-01 00:00 by hal 0.1.0",
    ]
    assert lines[6].split()[:9] == [FP32, "100", "us", "80.0", "us", "-20.0", "us", "0.80x", "0.79-0.81"]
    assert lines[6].endswith("faster")
    assert lines[7].endswith("within noise")
    assert "by recorded bursts (12 of A, 12 of B), which did not run side by side" in out
    assert f"\n  only B has {ORT}\n" in out
    assert [line for line in lines if line.startswith("Layers")] == [
        f"Layers of {FP32}, all 3: kernel time per run"
    ]


def test_compare_reads_the_store_when_ids_are_given(capsys: Capture) -> None:
    with Store.open() as store:
        ids = [store.put(profile()), store.put(slow(20))]
    assert main(["compare", *ids, "--target", FP32, "--json"]) == 0
    out, err = capsys.readouterr()
    found = files.from_json(out.encode(), Comparison, "stdout")
    assert [(one.b, one.end_to_end and one.end_to_end.faster) for one in found.targets] == [(FP32, "a")]
    assert err.startswith(f"A  {ids[0]} (digits), measured")


@pytest.mark.parametrize(
    ("percent", "limit", "code"),
    [(20, "5%", 1), (20, "0.05", 1), (3, "5%", 0), (20, "25%", 0), (-20, "0%", 0), (0, "0", 0)],
)
def test_compare_ends_with_1_when_b_is_slower_than_allowed(
    percent: float, limit: str, code: int, capsys: Capture
) -> None:
    arguments = [saved(profile(), "a.json"), saved(slow(percent), "b.json"), "--fail-if-slower", limit]
    assert main(["compare", *arguments]) == code
    out = capsys.readouterr().out
    allowed = f"{parse_limit(limit) * 100:g}%"
    if code:
        assert out.endswith(f"\nB is slower than A by more than the {allowed} allowed\n  {FP32}: 1.20x\n")
    else:
        assert out.endswith(f"\nB is nowhere slower than A by more than {allowed}\n")
    assert main(["compare", *arguments, "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["too_slow"] == ([FP32] if code else [])
    assert told["limit"] == parse_limit(limit)


def test_compare_ends_with_1_when_b_lost_a_target_and_a_limit_is_set(capsys: Capture) -> None:
    failed = profile(
        compared.records.target(FP32, status="failed", reason="the child crashed"),
        target(BF16, 70_000, compared.HALF),
    )
    arguments = ["compare", saved(profile(), "a.json"), saved(failed, "b.json")]
    assert main(arguments) == 0
    assert f"\n  {FP32} failed in B: the child crashed\n" in capsys.readouterr().out
    assert main([*arguments, "--fail-if-slower", "5%"]) == 1
    assert capsys.readouterr().out.endswith(f"allowed\n  {FP32}: {FP32} failed in B: the child crashed\n")


def test_compare_ends_with_1_when_nothing_could_be_compared(capsys: Capture) -> None:
    failed = profile(compared.records.target(FP32, status="failed", reason="the child crashed"))
    assert main(["compare", saved(failed, "a.json"), saved(failed, "b.json")]) == 1
    assert "not compared" in capsys.readouterr().out


def test_compare_refuses_unlike_profiles_unless_told(capsys: Capture) -> None:
    other = environment(profile(), cpu="Other \x1b[2J CPU", settings={})
    arguments = ["compare", saved(profile(), "a.json"), saved(other, "b.json")]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: a.json (A) and b.json (B) were measured under unlike conditions:\n"
        "  - cpu: Example CPU in A, Other \\x1b[2J CPU in B\n"
        "  - setting OMP_NUM_THREADS: 2 in A, none in B\n"
        "measure both alike, or compare all the same with --anyway\n"
    )
    assert main([*arguments, "--anyway"]) == 0
    out = capsys.readouterr().out
    assert "\nUnlike, and compared all the same (--anyway)\n  cpu: Example CPU in A, Other \\x1b[2J" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a.json"], "'a.json' alone is nothing to compare; name a second profile, or two of its targets"),
        (["demo:digits"], "'demo:digits' is a model; say which two targets to measure with --targets T1 T2"),
        (["a.json", "net.onnx"], "'net.onnx' is a model; measure it first with hal profile and name what"),
        (["a.json", "a.json", "--targets", FP32, BF16], "a second profile B cannot be given with --targets"),
        (
            ["a.json", "--targets", FP32, BF16, "--anyway", "--target", FP32],
            "--target and --anyway cannot be given with --targets; leave out one or the other",
        ),
        (["a.json", "a.json", "--time-s", "2"], "--time-s cannot be given with two profiles"),
        (["a.json", "--targets", FP32, BF16, "--shape", "x=1"], "--shape cannot be given with a profile"),
        (["a.json", "--targets", FP32, FP32], f"'{FP32}' is named twice; --targets takes two different ones"),
        (["a.json", "--targets", FP32, "cpu"], "'cpu' is not a target; expected DEVICE/BACKEND"),
        (
            ["a.json", "--targets", FP32, "cpu:0/x/fp32"],
            f"a.json has no target 'cpu:0/x/fp32'; it has {FP32}, {BF16}, {ORT}",
        ),
        (["a.json", "a.json", "--target", "x"], f"no target of both A and B fits 'x': both have {FP32}, "),
        (["a.json", "b.json"], "there is no file 'b.json'; name a file that hal profile wrote"),
        (["a.json", "a.json", "--fail-if-slower", "5"], "--fail-if-slower '5' is no share of A's time;"),
    ],
)
def test_compare_says_what_to_do_when_asked_wrongly(arguments: list[str], told: str, capsys: Capture) -> None:
    saved(profile(), "a.json")
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {told}")


@pytest.mark.parametrize(
    ("text", "share"),
    [("5%", 0.05), ("0.05", 0.05), ("0", 0), ("1", 1), ("150%", 1.5), (" 2.5 % ", 0.025), (".5%", 0.005)],
)
def test_limit_is_read_when_it_is_a_share(text: str, share: float) -> None:
    assert parse_limit(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "5", "-1%", "1e3%", "nan", "5%%", "five", "\u0665%"])
def test_limit_is_refused_when_it_is_no_share(text: str) -> None:
    with pytest.raises(UserError, match=r"is no share of A's time; expected for example 5% or 0\.05"):
        parse_limit(text)


def test_models_are_told_from_profiles_by_name_and_content() -> None:
    Path("weird.dat").write_bytes(b"\x08\x0a")
    assert is_model("demo:digits")
    assert is_model("gone.onnx")
    assert is_model("weird.dat")
    assert not is_model(saved(profile(), "p.dat"))
    assert not is_model("latest")
    assert not is_model("\0")
    assert not is_model(".")


def test_compare_measures_both_targets_side_by_side_when_given_a_model(
    plugins: Plugins, capsys: Capture
) -> None:
    one = {"devices": [{"id": "cpu:0", "precisions": ["fp32"]}], "overhead_ns": 0}
    plugins.add_fake("swift", default_ns=100_000, **one)
    plugins.add_fake("slow", default_ns=300_000, **one)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "x"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "small.onnx"
    )
    arguments = ["compare", "small.onnx", "--shape", "x=2,3", "--time-s", "0.01"]
    targets = ["--targets", "cpu:0/swift/fp32", "cpu:0/slow/fp32"]
    assert main([*arguments, *targets, "--fail-if-slower", "150%"]) == 1
    out, _ = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("A  cpu:0/swift/fp32 of small.onnx (small), measured")
    assert lines[6].split()[-3:] == ["3.00x", "3.00-3.00", "slower"]
    assert "rounds in which both ran" in lines[7]
    assert out.endswith("\nB is slower than A by more than the 150% allowed\n  cpu:0/slow/fp32: 3.00x\n")
    assert "Layers, all 2: kernel time per run" in lines
    with Store.open() as store:
        assert [one.n_targets for one in store.summaries()] == [2]
    assert main([*arguments, "--targets", "cpu:0/swift/fp32", "cpu:0/none/fp32"]) == 2
    assert "no target here fits 'cpu:0/none/fp32'" in capsys.readouterr().err


def test_text_says_so_when_layers_or_samples_are_missing() -> None:
    bare = compared.table(*(msgspec.structs.replace(one, samples_ns=()) for one in compared.HALF.kernels))
    both = profile(
        target(FP32, 100_000, compared.FUSED),
        target(BF16, 70_000, bare),
        target(ORT, 70_000, None, kernels_missing="cpu does not tell", timing=compared.timing(1, n_bursts=2)),
    )
    text = plain(compare_text(compare_targets(both, FP32, BF16), 9), 200)
    assert "?: nobody is called faster in 3 blocks: fewer than 4 instrumented runs were recorded" in text
    text = plain(compare_text(compare_targets(both, FP32, ORT), 9), 200)
    assert "\n  not compared layer by layer: B has no kernel times (cpu does not tell)\n" in text
    assert "not told (too few samples)" in text
    assert "Layers" not in text


def test_text_warns_when_instruments_inflate_or_kernels_contradict_the_whole() -> None:
    inflated = msgspec.structs.replace(compared.HALF, plain_ns=80_000)
    both = profile(target(FP32, 100_000, compared.FUSED), target(BF16, 170_000, inflated))
    text = plain(compare_text(compare_targets(both, FP32, BF16), 9), 200)
    assert "kernel times of B are inflated by the instruments, by 25%: that alone may decide who" in text
    assert "kernel times of A" not in text
    assert "the kernels in sum go the other way than end to end" in text


def test_text_is_escaped_and_fits_when_names_are_hostile_and_long() -> None:
    nodes = tuple(
        msgspec.structs.replace(node, module=f"\x1b[2J[red].{'deep.' * 40}{node.name}")
        for node in compared.FACTS.nodes
    )
    facts = msgspec.structs.replace(compared.FACTS, nodes=nodes)
    text = plain(compare_text(compare_targets(profile(facts=facts), FP32, ORT, label="\x07" * 300), 9), 100)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "deep.head" in text
    assert max(map(len, text.splitlines())) <= 100


def test_text_fits_a_hundred_columns_when_names_of_targets_are_long() -> None:
    name = "cuda:0/onnxruntime-tensorrt/fp16"
    made = profile(target(name, 123_456_789, compared.FUSED))
    text = plain(compare_text(compare_profiles(made, made), 9), 100)
    assert max(map(len, text.splitlines())) <= 100
    assert f"\n{name}  123 ms  123 ms" in text


@pytest.mark.parametrize(("change_ns", "text"), [(0, "0"), (1500, "+1.50 us"), (-2_000_000, "-2.00 ms")])
def test_differences_have_a_sign(change_ns: int, text: str) -> None:
    assert signed(change_ns) == text
