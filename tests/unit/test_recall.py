"""What the store saves from being measured again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

import hal
from hal.backend import Kernel, KernelRuns
from hal.errors import ContractViolation
from hal.profiling.kernels import table
from hal.profiling.store import Store
from hal.records.facts import ModelFacts, NodeFact
from hal.records.profile import Profile, TargetProfile
from hal.testing import small_graph
from tests.throwaway import Plugins
from tests.unit.test_profiling import ONE, QUICK

TWO = [{"id": "cpu:0", "precisions": ["fp32", "bf16"]}]


class Steps:
    """Progress that remembers which targets were compiled."""

    def __init__(self) -> None:
        self.compiled: list[str] = []

    def stage(self, text: str) -> None:
        if text.startswith("compiling "):
            self.compiled.append(text.removeprefix("compiling "))

    def advance(self, n_done: int, n_total: int) -> None:
        pass


def measured(**options: object) -> tuple[Profile, list[str]]:
    steps = Steps()
    arguments = {"policy": QUICK, "machine": False, "progress": steps, **options}
    return hal.profile(small_graph("chain"), **arguments), steps.compiled  # type: ignore[arg-type]


def test_second_profile_measures_nothing_when_nothing_changed(plugins: Plugins) -> None:
    plugins.add_fake("one", devices=TWO)
    first, compiled = measured()
    assert compiled == ["cpu:0/one/fp32", "cpu:0/one/bf16"]
    again, compiled = measured()
    assert compiled == []
    assert again == first
    with Store.open() as store:
        assert len(store.summaries()) == 1


def test_second_profile_measures_all_when_fresh_ones_are_asked_for(plugins: Plugins) -> None:
    plugins.add_fake("one", devices=ONE)
    measured()
    assert measured(fresh=True)[1] == ["cpu:0/one/fp32"]


@pytest.mark.parametrize(
    "change",
    [
        {"policy": msgspec.structs.replace(QUICK, min_runs=7)},
        {
            "inputs": {
                spec.name: np.full(spec.shape, 2, spec.dtype)
                for spec in small_graph("chain").signature.inputs
            }
        },
    ],
    ids=["policy", "inputs"],
)
def test_second_profile_measures_again_when_something_changed(
    plugins: Plugins, change: dict[str, object]
) -> None:
    plugins.add_fake("one", devices=ONE)
    measured()
    assert measured(**change)[1] == ["cpu:0/one/fp32"]


def test_second_profile_measures_again_when_the_environment_changed(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.add_fake("one", devices=ONE)
    measured()
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert measured()[1] == ["cpu:0/one/fp32"]


def test_second_profile_measures_kernels_when_the_first_left_them_out(plugins: Plugins) -> None:
    plugins.add_fake("one", devices=ONE)
    assert measured(kernels=False)[0].targets[0].kernels is None
    again, compiled = measured()
    assert compiled == ["cpu:0/one/fp32"]
    assert again.targets[0].kernels is not None
    assert measured(kernels=False)[1] == []


def test_failed_target_is_tried_again(plugins: Plugins) -> None:
    plugins.add_fake("good", devices=ONE)
    plugins.add_fake("bad", devices=ONE, fail=[{"at": "compile", "how": "raise"}])
    measured()
    again, compiled = measured()
    assert compiled == ["cpu:0/bad/fp32"]
    assert {target.target: target.status for target in again.targets} == {
        "cpu:0/good/fp32": "ok",
        "cpu:0/bad/fp32": "failed",
    }


def test_targets_of_different_runs_get_no_ratio(plugins: Plugins) -> None:
    plugins.add_fake("one", devices=TWO)
    measured(targets=["*/fp32"])
    both, compiled = measured()
    assert compiled == ["cpu:0/one/bf16"]
    groups = [target.timing.group for target in both.targets if target.timing]
    assert len(set(groups)) == 2
    assert len(both.ratios) == 1  # the fastest against itself
    assert [unit.costs.keys() for unit in both.units] == [{"cpu:0/one/fp32", "cpu:0/one/bf16"}] * len(
        both.units
    )


def test_profile_stands_with_a_note_when_the_store_cannot_be_used(
    plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.add_fake("one", devices=ONE)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "data").write_text("a file where a folder is wanted")
    monkeypatch.setenv("HAL_HOME", str(tmp_path / "home"))
    record, _ = measured()
    assert record.targets[0].status == "ok"
    (note,) = [note for note in record.notes if "store" in note]
    assert note.startswith("the store could not be used, so nothing was taken from it or kept: ")


def test_energy_is_told_when_the_device_counts_it(plugins: Plugins) -> None:
    plugins.add_fake("one", devices=ONE, telemetry={"energy_total_mj": 5, "power_mw": 70})
    target: TargetProfile = measured()[0].targets[0]
    assert target.energy is not None
    assert (target.energy.per_run_mj, target.energy.source) == (0.0, "NVML")  # its counter stands still
    assert target.telemetry == {"power_mw": 70}


def test_memory_is_told_over_time(plugins: Plugins) -> None:
    plugins.add_fake("one", devices=ONE)
    memory = measured()[0].targets[0].memory
    assert memory is not None
    steps = [sample.step for sample in memory.samples]
    assert steps[:3] == ["load", "compile", "warm-up"]
    assert steps[-1] == "kernels"
    assert steps.count("burst") >= QUICK.min_bursts
    times = [sample.at_ns for sample in memory.samples]
    assert times == sorted(times)


FACTS = ModelFacts(
    nodes=(
        NodeFact(name="a", op="Conv", flops=100, reads=("x", "w"), writes=("y",)),
        NodeFact(name="b", op="Relu", flops=10, reads=("y",), writes=("z",)),
    ),
    value_bytes={"x": 8, "w": 4, "y": 16, "z": 16},
    weights=frozenset({"w"}),
    inputs=("x",),
    outputs=("z",),
)


def kernel(name: str, nodes: tuple[str, ...], *durations_ns: int) -> Kernel:
    return Kernel(name=name, type="t", nodes=nodes, durations_ns=durations_ns)


def test_table_counts_a_node_once_when_several_kernels_compute_it() -> None:
    runs = KernelRuns(
        kernels=(kernel("pack", ("a",), 1, 2), kernel("main", ("a", "b"), 50, 60), kernel("copy", (), 7, 7)),
        run_ns=(70, 80),
        defines_units=False,
    )
    found = table(runs, FACTS, plain_ns=70)
    by_name = {cost.name: cost for cost in found.kernels}
    assert [cost.name for cost in found.kernels] == ["main", "copy", "pack"]
    assert (by_name["main"].flops, by_name["main"].moved_bytes) == (110, 8 + 4 + 16)
    assert (by_name["main"].weight_bytes, by_name["main"].activation_bytes) == (4, 16)
    assert (by_name["pack"].flops, by_name["pack"].moved_bytes) == (None, None)
    assert [by_name[name].order for name in ("pack", "main", "copy")] == [0, 1, 2]
    assert by_name["main"].samples_ns == (50, 60)
    assert (found.total_ns, found.unattributed_ns, found.unknown) == (55 + 7 + 2, 7, ())
    assert found.overhead == pytest.approx(75 / 70 - 1)
    assert found.inflated
    assert not found.defines_units


def test_table_is_refused_when_kernels_and_runs_disagree() -> None:
    with pytest.raises(ContractViolation, match="told of no run"):
        table(KernelRuns(kernels=(), run_ns=()), FACTS)
    with pytest.raises(ContractViolation, match="'k' has 1 durations for 2 runs"):
        table(KernelRuns(kernels=(kernel("k", (), 1),), run_ns=(1, 2)), FACTS)
