"""Comparisons of profiles: what is refused, what is called faster, and how differences add up."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from hal.errors import TargetError, UnlikeProfiles
from hal.profiling.compare import compare_profiles, compare_targets
from hal.records import files
from hal.records.comparison import Comparison, Unlike
from hal.records.profile import Profile, UnitCost
from tests.unit import compared
from tests.unit.compared import BF16, FP32, ORT, environment, profile, target, timing


def with_timing(name: str, **fields: object) -> Profile:
    """A profile of one target whose timing has these fields."""
    return profile(target(name, 100_000, None, timing=timing(100_000, **fields)))  # type: ignore[arg-type]


def end_to_end(a: Profile, b: Profile) -> object:
    (found,) = compare_profiles(a, b).targets
    return found.end_to_end


def test_profiles_are_compared_target_by_target_when_alike() -> None:
    slow = profile(target(FP32, 120_000, None), target(BF16, 69_900, None))
    found = compare_profiles(profile(), slow, labels=("old", "new"))
    assert [(one.a, one.b) for one in found.targets] == [(FP32, FP32), (BF16, BF16)]
    first, second = (one.end_to_end for one in found.targets)
    assert first is not None
    assert (first.a_ns, first.b_ns, first.faster, first.method) == (100_000, 120_000, "a", "bursts")
    assert (first.n_a, first.n_b) == (12, 12)
    assert first.low is not None
    assert first.high is not None
    assert 1.17 < first.low <= 1.2 <= first.high < 1.23
    assert second is not None
    assert second.faster == ""
    assert (found.a.label, found.b.label, found.only_a, found.only_b) == ("old", "new", (ORT,), ())


def test_nothing_is_called_faster_when_the_interval_holds_1() -> None:
    # 4% apart in the middle, and bursts that wander by 20%.
    wide = (0.8, 1.0, 1.2)
    one = profile(target(FP32, 100_000, None, timing=timing(100_000, wobble=wide)))
    other = profile(target(FP32, 104_000, None, timing=timing(104_000, wobble=wide)))
    found = end_to_end(one, other)
    assert (found.faster, found.method) == ("", "bursts")  # type: ignore[attr-defined]


def test_nothing_is_called_faster_when_bursts_and_medians_contradict_each_other() -> None:
    # Bursts say that B takes twice as long, the median of its runs that it takes less.
    other = msgspec.structs.replace(timing(200_000), median_ns=90_000)
    found = end_to_end(with_timing(FP32), profile(target(FP32, 1, None, timing=other)))
    assert (found.ratio, found.faster, found.method) == (0.9, "", "bursts")  # type: ignore[attr-defined]
    assert found.low > 1.9  # type: ignore[attr-defined]


def test_nothing_is_said_when_there_are_too_few_bursts() -> None:
    few = profile(target(FP32, 50_000, None, timing=timing(50_000, n_bursts=3)))
    found = end_to_end(with_timing(FP32, n_bursts=3), few)
    assert found == msgspec.convert(
        {"a_ns": 100_000, "b_ns": 50_000, "ratio": 0.5, "n_a": 3, "n_b": 3}, type(found)
    )
    assert end_to_end(with_timing(FP32, n_bursts=0), few).faster == ""  # type: ignore[attr-defined]


def test_targets_of_a_profile_are_compared_by_pairs_when_they_ran_in_turn() -> None:
    # Both wander together by 40%, so that only pairs can tell them apart.
    noise = (0.7, 1.0, 1.4, 0.8)
    both = profile(
        target(FP32, 100_000, None, timing=timing(100_000, wobble=noise)),
        target(BF16, 95_000, None, timing=timing(95_000, wobble=noise, n_bursts=10)),
        target(ORT, 95_000, None, timing=timing(95_000, wobble=noise, group=1)),
    )
    paired = compare_targets(both, FP32, BF16).targets[0].end_to_end
    assert paired is not None
    assert (paired.faster, paired.method, paired.n_a, paired.n_b) == ("b", "pairs", 10, 10)
    assert paired.ratio == pytest.approx(0.95, abs=1e-4)
    apart = compare_targets(both, FP32, ORT).targets[0].end_to_end
    assert apart is not None
    assert (apart.faster, apart.method, apart.n_a, apart.n_b) == ("", "bursts", 12, 12)


def test_blocks_show_who_wins_layer_by_layer() -> None:
    (found,) = compare_targets(profile(), FP32, BF16).targets
    assert [
        (block.name, block.ops, block.difference and block.difference.faster, block.share)
        for block in found.blocks
    ] == [
        ("body", ("Conv", "Relu"), "b", pytest.approx(30 / 28)),
        ("body.pool", ("MaxPool",), "a", pytest.approx(-2 / 28)),
        ("head", ("Gemm",), "", pytest.approx(0)),
    ]
    first = found.blocks[0].difference
    assert first is not None
    assert (first.a_ns, first.b_ns, first.ratio, first.method) == (60_000, 30_000, 0.5, "runs")
    assert (first.n_a, first.n_b) == (12, 12)


def test_blocks_and_unattributed_time_add_up_on_both_sides() -> None:
    for one, other in ((FP32, BF16), (FP32, ORT), (ORT, BF16)):
        (found,) = compare_targets(profile(), one, other).targets
        assert found.a_kernels is not None
        assert found.b_kernels is not None
        for side, kernels in (("a", found.a_kernels), ("b", found.b_kernels)):
            costs: list[UnitCost] = [getattr(block, side) for block in found.blocks]
            assert sum(cost.median_ns for cost in costs) + kernels.unattributed_ns == kernels.total_ns
        assert sum(block.share or 0 for block in found.blocks) == pytest.approx(1)
    assert [block.nodes for block in compare_targets(profile(), FP32, ORT).targets[0].blocks] == [
        ("conv", "relu", "pool"),
        ("head",),
    ]


def test_blocks_of_one_target_are_compared_when_profiles_are() -> None:
    (first, *_) = compare_profiles(profile(), profile(target(FP32, 80_000, compared.HALF))).targets
    assert [block.difference and block.difference.faster for block in first.blocks] == ["b", "a", ""]


def test_blocks_tell_a_sure_winner_when_one_side_folded_all_of_it() -> None:
    folding = compared.table(compared.kernel("conv", "relu", median_ns=60_000), folded=("pool", "head"))
    both = profile(target(FP32, 100_000, compared.FUSED), target(BF16, 70_000, folding))
    there = compare_targets(both, FP32, BF16).targets[0].blocks[1].difference
    back = compare_targets(both, BF16, FP32).targets[0].blocks[1].difference
    assert there is not None
    assert back is not None
    assert (there.b_ns, there.ratio, there.faster) == (0, 0, "b")
    assert (back.a_ns, back.ratio, back.low, back.high, back.faster) == (0, None, None, None, "a")


def test_blocks_are_not_compared_when_a_side_does_not_know_their_nodes() -> None:
    knowing_less = compared.table(compared.kernel("conv", "relu", median_ns=1), unknown=("pool", "head"))
    both = profile(target(FP32, 100_000, compared.FUSED), target(BF16, 70_000, knowing_less))
    found = compare_targets(both, FP32, BF16).targets[0].blocks[1]
    assert (found.a is None, found.b is None, found.difference, found.share) == (False, True, None, None)


def test_blocks_call_nobody_faster_when_no_samples_were_recorded() -> None:
    bare = compared.table(*(msgspec.structs.replace(one, samples_ns=()) for one in compared.HALF.kernels))
    both = profile(target(FP32, 100_000, compared.FUSED), target(BF16, 70_000, bare))
    found = compare_targets(both, FP32, BF16).targets[0].blocks[0].difference
    assert found is not None
    assert (found.ratio, found.faster, found.method) == (0.5, "", "")


@pytest.mark.parametrize(
    ("kernels", "facts", "why"),
    [
        (None, compared.FACTS, "B has no kernel times (cpu does not tell)"),
        (compared.HALF, None, "the profile does not tell of the model's nodes"),
    ],
)
def test_end_to_end_is_compared_alone_when_blocks_cannot_be(kernels: object, facts: object, why: str) -> None:
    silent = target(BF16, 70_000, kernels, kernels_missing="cpu does not tell")  # type: ignore[arg-type]
    both = profile(target(FP32, 100_000, compared.FUSED), silent, facts=facts)
    (found,) = compare_targets(both, FP32, BF16).targets
    assert found.end_to_end is not None
    assert found.end_to_end.faster == "b"
    assert found.blocks == ()
    assert found.blocks_missing.startswith(why)


def unlike_fields(a: Profile, b: Profile) -> list[str]:
    with pytest.raises(UnlikeProfiles) as caught:
        compare_profiles(a, b)
    text = caught.value.message
    assert text.startswith("A (A) and B (B) were measured under unlike conditions:")
    assert text.endswith("measure both alike, or compare all the same with --anyway")
    return re.findall(r"(?:  - |conditions: )(.*)", text)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"cpu": "Other CPU"}, "cpu: Example CPU in A, Other CPU in B"),
        ({"n_usable_cpus": 4}, "n_usable_cpus: 2 in A, 4 in B"),
        ({"n_cpus": 4}, "n_cpus: 8 in A, 4 in B"),
        ({"memory_bytes": 8 << 30}, "memory: 24.0 GiB in A, 8.00 GiB in B"),
        ({"system": "Linux 6.9"}, "system: Linux 6.1 in A, Linux 6.9 in B"),
        ({"machine": "arm64"}, "machine: x86_64 in A, arm64 in B"),
        ({"python": "3.12.1"}, "python: 3.11.2 in A, 3.12.1 in B"),
        (
            {"cpu_features": ("avx2", "amx_tile")},
            "cpu_features that the other lacks: none in A, amx_tile in B",
        ),
        (
            {"packages": {"openvino": "2027.1", "torch": "2.13"}},
            "package openvino: 2026.4 in A, 2027.1 in B",
        ),
        ({"settings": {}}, "setting OMP_NUM_THREADS: 2 in A, none in B"),
    ],
)
def test_profiles_are_refused_and_the_field_named_when_environments_differ(
    fields: dict[str, object], told: str
) -> None:
    assert unlike_fields(profile(), environment(profile(), **fields)) == [told]


def test_profiles_are_refused_when_model_inputs_or_hal_differ() -> None:
    base = profile()
    other_model = msgspec.structs.replace(
        base, model=msgspec.structs.replace(base.model, digest="e" * 64, inputs_digest="k" * 64)
    )
    other = msgspec.structs.replace(other_model, hal_version="0.9")
    assert unlike_fields(base, other) == [
        "model digest: 3f2a91c0b7de in A, eeeeeeeeeeee in B",
        "inputs: iiiiiiiiiiii in A, kkkkkkkkkkkk in B",
        "hal_version: 0.1.0 in A, 0.9 in B",
    ]


def test_inputs_are_compared_by_their_origin_when_a_profile_has_no_digest_of_them() -> None:
    base = profile()
    older = msgspec.structs.replace(
        base, model=msgspec.structs.replace(base.model, inputs_digest="", inputs_from="random (seed 0)")
    )
    assert unlike_fields(base, older) == ["inputs: the demo's test set in A, random (seed 0) in B"]


def test_memory_is_alike_when_it_prints_alike() -> None:
    base = profile()
    some_pages_less = environment(base, memory_bytes=base.environment.memory_bytes - 8192)
    assert compare_profiles(base, some_pages_less).unlike == ()


def test_unlike_profiles_are_compared_and_the_fields_kept_when_told_so() -> None:
    base = profile()
    other = msgspec.structs.replace(
        environment(base, cpu="Other CPU"), model=msgspec.structs.replace(base.model, digest="e" * 64)
    )
    found = compare_profiles(base, other, anyway=True)
    assert found.unlike == (
        Unlike(field="model digest", a="3f2a91c0b7de", b="eeeeeeeeeeee"),
        Unlike(field="cpu", a="Example CPU", b="Other CPU"),
    )
    assert all(one.end_to_end is not None and one.blocks == () for one in found.targets)
    assert found.targets[0].blocks_missing == "the models differ, so their layers cannot be matched"


def test_targets_are_chosen_by_pattern() -> None:
    found = compare_profiles(profile(), profile(), targets=["*/bf16", ORT])
    assert [one.a for one in found.targets] == [BF16, ORT]


def test_unknown_targets_are_refused_and_those_there_are_listed() -> None:
    other = profile(target(FP32, 1000, None), target(compared.records.COMPILED, 1000, None))
    text = f"both have {FP32}; only A has {BF16}, {ORT}; only B has {compared.records.COMPILED}"
    with pytest.raises(TargetError, match=rf"^no target of both A and B fits '{BF16}': {re.escape(text)}$"):
        compare_profiles(profile(), other, targets=[FP32, BF16])
    with pytest.raises(TargetError, match=r"^A and B share no target: both have none; only A has "):
        compare_profiles(profile(target(BF16, 1000, None)), other)
    text = f"mine has no target 'x' and no target 'y'; it has {FP32}, {BF16}, {ORT}"
    with pytest.raises(TargetError, match=f"^{text}$"):
        compare_targets(profile(), "x", "y", label="mine")
    with pytest.raises(TargetError, match="is named twice; name two targets: A has "):
        compare_targets(profile(), FP32, FP32)


def test_targets_that_answered_wrongly_or_failed_are_not_compared() -> None:
    wrong = target(BF16, 70_000, None, status="wrong", reason="off by 3")
    failed = compared.records.target(ORT, status="failed", reason="killed by signal 11")
    found = compare_profiles(profile(), profile(target(FP32, 100_000, None), wrong, failed)).targets
    assert [one.reason for one in found] == [
        "",
        f"{BF16} is wrong in B: off by 3",
        f"{ORT} failed in B: killed by signal 11",
    ]
    assert [one.end_to_end is None for one in found] == [False, True, True]
    assert [one.b_lost for one in found] == [False, True, True]
    assert [one.b_lost for one in compare_profiles(profile(wrong), profile()).targets] == [False]
    with pytest.raises(
        TargetError, match=f"^{FP32} and {BF16} of A cannot be compared: {BF16} is wrong in B"
    ):
        compare_targets(profile(target(FP32, 1, None), wrong), FP32, BF16)


def test_notes_say_when_figures_are_unstable_or_measured_with_other_care() -> None:
    shaky = timing(100_000, stable=False, reason="the load changed")
    other = profile(target(FP32, 100_000, None, timing=shaky, policy="less"))
    (found,) = compare_profiles(profile(), other).targets
    assert found.notes == (
        "the figure of B is unstable: the load changed",
        "A and B were not measured for equally long (--time-s)",
    )


@pytest.mark.parametrize(
    ("b_ns", "limit", "n_failed"),
    [(106_000, 0.05, 1), (104_000, 0.05, 0), (104_000, 0.0, 1), (100_000, 0.0, 0), (80_000, 0.0, 0)],
)
def test_slower_names_targets_beyond_the_limit_and_noise(b_ns: int, limit: float, n_failed: int) -> None:
    found = compare_profiles(profile(), profile(target(FP32, b_ns, None)))
    assert len(found.slower(limit)) == n_failed


def test_slower_names_no_target_when_noise_explains_it() -> None:
    wide = (0.5, 1.0, 1.5)
    noisy = [profile(target(FP32, n, None, timing=timing(n, wobble=wide))) for n in (100_000, 107_000)]
    assert compare_profiles(*noisy).slower(0.05) == ()


def test_slower_names_targets_that_no_longer_answer_rightly() -> None:
    failed = compared.records.target(FP32, status="failed", reason="crash")
    assert [one.b for one in compare_profiles(profile(), profile(failed)).slower(9)] == [FP32]
    assert compare_profiles(profile(failed), profile()).slower(9) == ()


def test_comparisons_can_be_saved_and_read_again(tmp_path: Path) -> None:
    found = compare_profiles(profile(), environment(profile(), cpu="Other CPU"), anyway=True)
    assert files.from_json(files.to_json(found), Comparison, "it") == found
    folding = compared.table(folded=("conv", "relu", "pool", "head"))
    infinite = compare_targets(profile(target(FP32, 9, folding), target(BF16, 9, compared.HALF)), FP32, BF16)
    assert files.from_json(files.to_json(infinite), Comparison, "it") == infinite
