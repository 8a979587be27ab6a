from __future__ import annotations

import json
from typing import Any

import pytest

from hal.records.profile import Profile
from hal.report import chrome_trace, speedscope
from hal.report.timeline import shared_module
from tests.unit.report_profiles import HOSTILE, bare_profile, full_profile, hostile_profile


def events(profile: Profile, **wanted: object) -> list[dict[str, Any]]:
    found = json.loads(chrome_trace(profile))["traceEvents"]
    return [event for event in found if all(event.get(name) == value for name, value in wanted.items())]


def thread(profile: Profile, process: int, prefix: str) -> int:
    for event in events(profile, ph="M", name="thread_name", pid=process):
        if event["args"]["name"].startswith(prefix):
            return int(event["tid"])
    raise AssertionError(f"process {process} has no track {prefix!r}")


def test_chrome_trace_has_one_process_per_timed_target_when_some_failed() -> None:
    names = [event["args"]["name"] for event in events(full_profile(), name="process_name")]
    assert names == [
        "cpu:0/openvino/bf16",
        "cpu:0/openvino/fp32",
        "cpu:0/onnxruntime/fp32",
        "cpu:0/cpu/fp32",
        "cpu:0/cpu/fp16 (wrong)",
    ]


def test_chrome_trace_lays_kernels_end_to_end_in_order_when_order_was_recorded() -> None:
    profile = full_profile()
    table = profile.targets[0].kernels
    assert table is not None
    spans = events(profile, ph="X", pid=1, tid=thread(profile, 1, "kernels, in order of execution"))
    by_order = sorted(table.kernels, key=lambda kernel: kernel.order)
    assert [span["name"] for span in spans] == [kernel.name for kernel in by_order]
    at_us = 0.0
    for span in spans:
        assert span["ts"] == pytest.approx(at_us)
        at_us += span["dur"]
    assert at_us == pytest.approx(table.total_ns / 1000)


def test_chrome_trace_nests_modules_around_their_kernels_when_facts_tell() -> None:
    profile = full_profile()
    modules = events(profile, ph="X", pid=1, tid=thread(profile, 1, "modules"))
    kernels = events(profile, ph="X", pid=1, tid=thread(profile, 1, "kernels"))
    assert {span["args"]["path"] for span in modules} >= {"backbone", "backbone.stage0", "head"}
    for span in kernels:
        path = span["args"].get("module", "")
        around = [
            module["args"]["path"]
            for module in modules
            if module["ts"] <= span["ts"] + 1e-6
            and module["ts"] + module["dur"] >= span["ts"] + span["dur"] - 1e-6
        ]
        parts = path.split(".") if path else []
        assert around == [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def test_chrome_trace_says_that_order_is_unknown_when_the_profile_is_old() -> None:
    profile = bare_profile()
    thread(profile, 1, "kernels, most expensive first")
    with pytest.raises(AssertionError, match="no track 'modules'"):
        thread(profile, 1, "modules")


def test_speedscope_weights_sum_to_the_kernels_when_targets_have_them() -> None:
    profile = full_profile()
    file = json.loads(speedscope(profile))
    assert file["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert [one["name"] for one in file["profiles"]] == [
        target.target for target in profile.targets if target.kernels
    ]
    n_frames = len(file["shared"]["frames"])
    for one, target in zip(file["profiles"], profile.targets, strict=False):
        assert target.kernels is not None
        assert one["type"] == "sampled"
        assert one["unit"] == "nanoseconds"
        assert sum(one["weights"]) == one["endValue"] == target.kernels.total_ns
        assert len(one["samples"]) == len(one["weights"]) == len(target.kernels.kernels)
        assert all(0 <= frame < n_frames for stack in one["samples"] for frame in stack)


def test_speedscope_stack_goes_from_module_over_nodes_to_kernel_when_facts_tell() -> None:
    file = json.loads(speedscope(full_profile()))
    frames = file["shared"]["frames"]
    first, *_, last = file["profiles"][0]["samples"]
    assert [frames[i]["name"] for i in first] == [
        "backbone",
        "backbone.stage0",
        "backbone.stage0.block0",
        "Conv + BatchNormalization + Relu · /backbone/stage0/block0/conv0/Conv_0 +2",
        "Relu_0 (jit_avx512_bf16)",
    ]
    assert (frames[first[3]]["file"], frames[first[3]]["line"]) == ("vision.py", 20)
    assert [frames[i]["name"] for i in last] == ["unattributed", "Reorder_1 (Reorder)"]


def test_speedscope_has_no_profile_when_no_target_has_kernels() -> None:
    profile = Profile(
        **{
            **{name: getattr(full_profile(), name) for name in Profile.__struct_fields__},
            "targets": full_profile().targets[-2:],
        }
    )
    assert json.loads(speedscope(profile))["profiles"] == []


@pytest.mark.parametrize("write", [chrome_trace, speedscope])
def test_trace_escapes_what_cannot_be_seen_when_names_are_hostile(write: Any) -> None:
    text = write(hostile_profile()).decode()
    assert any("\x1b" in name for name in HOSTILE)
    assert "\\\\x1b]0;title" in text
    assert not {"\u202e", "\u2028", "\x1b", "\x00"} & set(text)


@pytest.mark.parametrize(
    ("modules", "shared"),
    [
        ([], ()),
        (["a.b.c"], ("a", "b", "c")),
        (["a.b.c", "a.b.d"], ("a", "b")),
        (["a.b", "a.b.c"], ("a", "b")),
        (["a.x", "ab.x"], ()),
    ],
)
def test_shared_module_is_the_deepest_common_one_when_nodes_are_fused(
    modules: list[str], shared: tuple[str, ...]
) -> None:
    assert shared_module(modules) == shared
