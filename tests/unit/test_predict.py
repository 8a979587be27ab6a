"""Estimates of kernels, units and models: near a known law, with bars that hold, and marked."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hal import plugins, stats
from hal.errors import InputError, TargetError
from hal.graph.facts import facts as facts_of
from hal.profiling import environment
from hal.profiling.predict import Machine, bound, group_machines, known_machines, predict, predictor
from hal.profiling.predict_past import Seen
from hal.profiling.predict_target import TargetPredictor
from hal.profiling.store import Store
from hal.records.estimate import Estimate, ModelEstimate
from hal.records.profile import Profile
from tests.golden import records
from tests.unit.predict_profiles import (
    CEILING,
    FUSED,
    GAP_NS,
    TARGET,
    chain,
    fused,
    kernel,
    law,
    model_profile,
    noisy,
    profile,
    runs,
)
from tests.unit.stored import day

OPS = [op for ops in FUSED for op in ops]
MODELS = tuple(
    model_profile(size, prefix)
    for prefix, size in zip("abcdef", (60, 300, 900, 4000, 20_000, 90_000), strict=True)
)


def wanted(ops: tuple[str, ...], flops: int | None, moved_bytes: int | None, signature: str = "") -> Seen:
    return Seen(signature, ops, flops, moved_bytes, 0, 0, 0, "", "")


def truth(facts_size: int, prefix: str) -> int:
    facts = chain(OPS, facts_size, prefix)
    kernels = fused(facts, FUSED)
    return sum(one.median_ns for one in kernels) + GAP_NS * len(kernels)


def test_stored_figure_is_given_when_the_same_work_was_measured() -> None:
    known = runs(MODELS[0])
    one = known[0].kernels[0]
    found = TargetPredictor(TARGET, known).kernel(one)
    assert (found.low_ns, found.median_ns, found.high_ns) == (one.p10_ns, one.median_ns, one.p90_ns)
    assert found.n_records == 1
    assert found.source == "the same work, measured in an earlier profile"


def test_bar_spans_the_runs_when_the_same_work_was_measured_in_several() -> None:
    facts = chain(["Conv"], 100)
    known = runs(*(profile(facts, [kernel(time, facts.nodes)], str(time)) for time in (1000, 2000, 4000)))
    found = TargetPredictor(TARGET, known).kernel(known[0].kernels[0])
    assert (found.low_ns, found.median_ns, found.high_ns) == (1200, 2000, 3600)
    assert found.n_records == 3


def test_source_says_so_when_the_cost_of_instruments_was_taken_off() -> None:
    facts = chain(["Conv", "Relu"], 100)
    kernels = [kernel(9000, facts.nodes[:1]), kernel(9000, facts.nodes[1:])]
    known = runs(profile(facts, kernels, "a", end_to_end_ns=10_000, inflated=True))
    found = TargetPredictor(TARGET, known).kernel(known[0].kernels[0])
    assert found.median_ns == 5000
    assert found.source.endswith("less the cost of instruments")


@pytest.mark.parametrize("flops", [50_000, 1_000_000, 30_000_000])
def test_kernel_is_near_the_law_when_other_models_were_measured(flops: int) -> None:
    found = TargetPredictor(TARGET, runs(*MODELS), ceiling=CEILING).kernel(
        wanted(("Conv", "Relu"), flops, 60_000)
    )
    assert found.median_ns == pytest.approx(law(flops, 60_000), rel=0.25)
    assert found.low_ns <= found.median_ns <= found.high_ns
    assert found.n_records == 6


def test_bar_holds_eight_in_ten_truths_when_times_are_noisy() -> None:
    time_of = noisy(0)
    sizes = np.random.default_rng(1).integers(50, 50_000, 12)
    known = runs(*(model_profile(int(size), f"m{i}", FUSED * 3, time_of) for i, size in enumerate(sizes)))
    predictor = TargetPredictor(TARGET, known, ceiling=CEILING)
    held = []
    for seed, size in enumerate(np.random.default_rng(2).integers(50, 50_000, 12)):
        for one in runs(model_profile(int(size), f"t{seed}", FUSED * 3, time_of))[0].kernels:
            found = predictor.kernel(unsigned(one))
            held.append(found.low_ns <= one.median_ns <= found.high_ns)
    assert 0.7 <= np.mean(held) <= 0.92


def unsigned(one: Seen) -> Seen:
    """The same work under a signature nobody has seen."""
    return wanted(one.ops, one.flops, one.moved_bytes)


def test_bar_is_wider_when_fewer_models_were_measured() -> None:
    def width(n: int) -> float:
        known = runs(*(model_profile(500 * (i + 1), f"m{i}", FUSED * 3, noisy(i)) for i in range(n)))
        found = TargetPredictor(TARGET, known, ceiling=CEILING).kernel(
            wanted(("Conv", "Relu"), 150_000, 45_000)
        )
        return math.log(found.high_ns / found.low_ns)

    assert width(2) > width(12)


def test_bar_is_four_times_each_way_when_nothing_judges_it() -> None:
    facts = chain(["Conv"], 100)
    known = runs(profile(facts, [kernel(5000, facts.nodes)], "a"))
    found = TargetPredictor(TARGET, known).kernel(wanted(("Conv",), 2 * 20_000, 80_000))
    assert (found.low_ns, found.high_ns) == (
        pytest.approx(found.median_ns / 4, abs=1),
        pytest.approx(found.median_ns * 4, abs=2),
    )


def test_operator_alone_counts_when_work_is_not_known() -> None:
    found = TargetPredictor(TARGET, runs(*MODELS)).kernel(wanted(("Softmax",), None, None))
    times = [one.median_ns for run in runs(*MODELS) for one in run.kernels if one.ops == ("Softmax",)]
    assert found.median_ns == pytest.approx(stats.median(times), abs=1)
    assert "its work is not known" in found.source


def test_roofline_alone_has_a_wide_bar_when_no_kernel_was_measured() -> None:
    found = TargetPredictor(TARGET, (), ceiling=CEILING).kernel(wanted(("Conv",), 10**9, 10))
    assert found.low_ns < 1e7 < found.high_ns
    assert found.high_ns / found.low_ns > 10
    assert found.n_records == 0
    assert found.source == "roofline alone: no kernel was measured on this target"


def test_launch_is_given_when_neither_work_nor_kernels_are_known() -> None:
    found = TargetPredictor(TARGET, (), ceiling=CEILING).kernel(wanted(("Conv",), None, None))
    assert found.source == "a launch: its work is not known"


def test_predictor_is_refused_when_nothing_is_known() -> None:
    with pytest.raises(
        ValueError, match="nothing is known of cpu:0/openvino/fp32: neither kernels nor a ceiling"
    ):
        TargetPredictor(TARGET, ())


@pytest.mark.parametrize("size", [200, 2500, 30_000])
def test_model_is_near_the_truth_when_it_was_measured_at_other_shapes(size: int) -> None:
    shapes = (model_profile(100, "same"), model_profile(1000, "same"), model_profile(10_000, "same"))
    found = TargetPredictor(TARGET, runs(*MODELS, *shapes), ceiling=CEILING).model(
        chain(OPS, size, "same"), "m", "d"
    )
    assert found.total.median_ns == pytest.approx(truth(size, "same"), rel=0.15)
    assert found.total.low_ns <= truth(size, "same") <= found.total.high_ns
    assert found.between_ns == GAP_NS * len(FUSED)
    assert "bar from 3 runs" in found.total.source


def test_model_is_near_the_truth_when_it_is_new() -> None:
    found = TargetPredictor(TARGET, runs(*MODELS), ceiling=CEILING).model(chain(OPS, 2000, "new"), "m", "d")
    assert found.total.median_ns == pytest.approx(truth(2000, "new"), rel=0.2)
    assert found.total.low_ns <= truth(2000, "new") <= found.total.high_ns
    assert "bar from 6 runs" in found.total.source
    assert [each.cost.median_ns for each in found.groups] == sorted(
        (each.cost.median_ns for each in found.groups), reverse=True
    )


def test_time_between_kernels_is_that_of_stable_runs_when_there_are_any() -> None:
    facts = chain(["Conv"], 100)
    noisy_one = profile(facts, [kernel(5000, facts.nodes)], "b", end_to_end_ns=90_000, created=day(3))
    part = noisy_one.targets[0]
    timing = msgspec.structs.replace(part.timing, stable=False, reason="load")
    noisy_one = msgspec.structs.replace(noisy_one, targets=(msgspec.structs.replace(part, timing=timing),))
    calm = profile(facts, [kernel(5000, facts.nodes)], "a", end_to_end_ns=6000)
    assert TargetPredictor(TARGET, runs(calm, noisy_one)).model(facts, "m", "d").between_ns == 1000
    assert TargetPredictor(TARGET, runs(noisy_one)).model(facts, "m", "d").between_ns == 85_000


def test_total_is_the_measured_one_when_this_shape_was_measured() -> None:
    found = TargetPredictor(TARGET, runs(*MODELS[:2])).model(chain(OPS, 60, "a"), "m", "a@60")
    assert found.total.median_ns == truth(60, "a")
    assert any("was measured here at this shape" in note for note in found.notes)


def test_bars_of_one_operator_add_up_and_of_several_by_squares() -> None:
    facts = chain(["Conv", "Conv", "Tanh"], 100, "a")
    known = runs(profile(facts, [kernel(10_000, [node]) for node in facts.nodes], "a"))
    found = TargetPredictor(TARGET, known).model(facts, "m", "d").kernels
    assert found.median_ns == 30_000
    assert found.high_ns == 30_000 + round(math.hypot(2 * 1000, 1000))  # p90 is a tenth above
    assert found.low_ns == 30_000 - round(math.hypot(2 * 1000, 1000))


def test_oldest_kernels_are_left_out_when_there_are_very_many() -> None:
    facts = chain(["Relu"], 100)
    old, new = (
        runs(profile(facts, [kernel(time, facts.nodes)], name))[0]
        for time, name in ((9000, "a"), (5000, "b"))
    )
    many = [old.kernels[0], *[new.kernels[0]] * 5000]
    found = TargetPredictor(TARGET, (), many).kernel(old.kernels[0])
    assert (found.median_ns, found.n_records) == (5000, 5000)


def test_unit_is_the_sum_of_its_kernels_when_some_nodes_are_asked_for() -> None:
    facts = chain(OPS, 60, "a")
    found = TargetPredictor(TARGET, runs(MODELS[0])).nodes(facts, ["a0", "a1", "a5"], "a@60")
    kernels = fused(facts, FUSED)
    assert found.median_ns == kernels[0].median_ns + kernels[2].median_ns


def test_unit_is_refused_when_none_of_its_nodes_exists() -> None:
    with pytest.raises(ValueError, match=r"none of \['x'\] is a node of the graph"):
        TargetPredictor(TARGET, runs(MODELS[0])).nodes(chain(OPS, 60, "a"), ["x"], "")


def test_bar_allows_for_another_run_when_all_earlier_kernels_fit_the_law() -> None:
    found = TargetPredictor(TARGET, runs(*MODELS), ceiling=CEILING)
    one = found.kernel(wanted(("Conv", "Relu"), 40_000_000, 60_000))
    whole = found.model(chain(OPS, 2500, "a"), "m", "d").total
    assert all(each.high_ns / each.median_ns > 1.049 < each.median_ns / each.low_ns for each in (one, whole))


def test_notes_say_what_is_missing() -> None:
    few = TargetPredictor(TARGET, runs(MODELS[0])).model(chain(OPS, 60, "new"), "m", "d")
    assert few.notes == (
        "models measured on this target: 1; more of them make this better",
        "no ceiling was measured: the best rates of earlier kernels stand in for it",
    )
    none = TargetPredictor(TARGET, (), ceiling=CEILING).model(chain(OPS, 60, "new"), "m", "d")
    assert none.notes == ("no kernel was measured on this target: the roofline alone says little",)


def test_json_of_an_estimate_always_says_that_it_is_one() -> None:
    one = Estimate(low_ns=1, median_ns=2, high_ns=3, source="s", n_records=0)
    assert one.is_estimate
    data = msgspec.json.encode(one)
    assert msgspec.json.decode(data)["kind"] == "estimate"
    with pytest.raises(msgspec.ValidationError, match="Invalid value 'measured'"):
        msgspec.json.decode(data.replace(b'"estimate"', b'"measured"'), type=Estimate)
    whole = TargetPredictor(TARGET, runs(MODELS[0])).model(chain(OPS, 60, "a"), "m", "d")
    assert msgspec.json.decode(msgspec.json.encode(whole), type=ModelEstimate) == whole


# --- targets and machines


def digits_profile(batch: int, target: str = TARGET, **fields: object) -> Profile:
    graph = bound("demo:digits", {"image": (batch, 1, 8, 8)})
    facts = facts_of(graph)
    kernels = fused(facts, [[node.op] for node in facts.nodes])
    return profile(facts, kernels, graph.digest, target=target, **fields)


HERE = environment.describe(plugins.installed())


def machine(*targets: str, **fields: object) -> Machine:
    made = {"environment": HERE, **fields}
    return group_machines([digits_profile(1, target, **made) for target in targets or (TARGET,)], HERE)[0]


def test_predict_estimates_a_batch_that_was_not_measured() -> None:
    (found,) = predict("demo:digits", shapes={"image": (64, 1, 8, 8)}, machines=[machine()])
    (once,) = predict("demo:digits", machines=[machine()])
    assert (found.model, found.target) == ("demo:digits", TARGET)
    assert found.total.median_ns > 1.5 * once.total.median_ns
    assert found.notes == ()


def test_predict_lists_the_fastest_first_when_several_targets_are_known() -> None:
    graph = bound("demo:digits", None)
    facts = facts_of(graph)
    slower = fused(facts, [[node.op] for node in facts.nodes], lambda flops, moved: 9 * law(flops, moved))
    slow = profile(facts, slower, graph.digest, target=records.ORT, environment=HERE, created=day(5))
    known = group_machines([slow, digits_profile(1, environment=HERE)], HERE)
    assert known[0].targets == (records.ORT, TARGET)
    assert [each.target for each in predict("demo:digits", machines=known)] == [TARGET, records.ORT]


def test_predict_takes_the_roofline_when_a_target_of_a_known_device_was_not_measured() -> None:
    (found,) = predict("demo:digits", targets=["cpu:0/tvm/fp32"], machines=[machine()])
    assert found.target == "cpu:0/tvm/fp32"
    assert found.total.n_records == 0


def test_predict_refuses_when_nothing_is_known_of_a_target() -> None:
    with pytest.raises(TargetError) as caught:
        predict("demo:digits", targets=["cuda:0/*"], machines=[machine()])
    assert str(caught.value) == (
        "nothing is known of the target 'cuda:0/*': no kernel was measured on it and no ceiling of its "
        f"device; known are {TARGET}; run hal profile MODEL --target 'cuda:0/*' where the device is, and "
        "hal profiles import where that is another machine"
    )


def test_predict_refuses_when_nothing_was_measured() -> None:
    with pytest.raises(TargetError) as caught:
        predict("demo:digits", machines=[])
    assert str(caught.value) == (
        "no target is known: predictions are made from what was measured, and the store holds no profile "
        "with kernel times; run hal profile on other models, or on this one, first"
    )


def test_predict_refuses_when_dimensions_stay_free(tmp_path: Path) -> None:
    from hal import demo

    with pytest.raises(InputError, match="bind them with --shape"):
        predict(demo.find("digits").model, machines=[machine()])


def test_predict_says_so_when_figures_come_from_another_machine_or_other_software() -> None:
    elsewhere = msgspec.structs.replace(HERE, cpu="Sapphire Rapids")
    (found,) = predict("demo:digits", machines=[machine(environment=elsewhere)])
    assert found.notes[0] == f"for another machine: Sapphire Rapids, {HERE.n_usable_cpus} usable CPUs"
    updated = msgspec.structs.replace(HERE, packages={}, python="3.10.0")
    (found,) = predict("demo:digits", machines=[machine(environment=updated)])
    assert found.notes[0] == "from figures taken when this machine differed in python, packages"


def test_predict_prefers_this_machine_when_another_was_measured_later() -> None:
    elsewhere = msgspec.structs.replace(HERE, cpu="Sapphire Rapids")
    mine = digits_profile(1, environment=HERE, created=day(1))
    other = digits_profile(1, environment=elsewhere, created=day(9))
    third = digits_profile(1, "cuda:0/cuda/fp32", environment=elsewhere, created=day(8))
    machines = group_machines([other, mine, third], HERE)
    assert [each.environment for each in machines] == [HERE, elsewhere]
    assert [each.target for each in predict("demo:digits", machines=machines)] == [TARGET]
    found = predict("demo:digits", targets=["*"], machines=machines)
    strange = {each.target for each in found if each.notes[0].startswith("for another machine")}
    assert {each.target for each in found} - strange == {TARGET}
    assert strange == {"cuda:0/cuda/fp32"}


def test_store_is_read_by_machine_when_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_HOME", str(tmp_path))
    with Store.open() as store:
        store.put(digits_profile(1, environment=HERE))
        store.put(digits_profile(2, environment=HERE, created=day(2)))
    (known,) = known_machines(HERE)
    assert len(known.profiles) == 2
    assert known.targets == (TARGET,)
    assert known.ceilings == (CEILING,)
    assert {record.target for record in known.records} == {TARGET}
    assert predictor(TARGET, known).runs
    (found,) = predict("demo:digits", shapes={"image": (4, 1, 8, 8)})
    assert found.total.n_records > 0
