"""hal.choose over fake plugins on a virtual clock: which placement wins, and what is told of the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from onnx import TensorProto, helper

from hal import plugins as registry
from hal.choosing.choose import choose, chosen, profiled
from hal.choosing.planner import asked
from hal.errors import Infeasible, PlanError, TargetError
from hal.graph.model import Graph
from hal.profiling import environment
from hal.profiling.store import Store
from hal.records.plan import Plan
from tests.throwaway import Plugins
from tests.unit.known_machine import know_the_machine

MODULE = """
import json
from hal.hookspecs import hookimpl
from tests.unit.placed_backends import OneClock, Threaded

@hookimpl
def hal_backend():
    return {kind}(**json.loads({configuration!r}))
"""
#: Matrix products are ten times faster in bf16, everything else in fp32.
SPLIT: Mapping[str, int] = {
    "cpu:0/fp32/MatMul": 1_000_000,
    "cpu:0/bf16/MatMul": 100_000,
    "cpu:0/fp32/Neg": 100_000,
    "cpu:0/bf16/Neg": 1_000_000,
}
FP32, BF16 = "cpu:0/one/fp32", "cpu:0/one/bf16"


def graph() -> Graph:
    """Two products, then two activations."""
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["a"], name="a"),
        helper.make_node("MatMul", ["a", "x"], ["b"], name="b"),
        helper.make_node("Neg", ["b"], ["c"], name="c"),
        helper.make_node("Neg", ["c"], ["y"], name="y"),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, (4, 4))] for name in "xy"]
    proto = helper.make_graph(nodes, "split", *ends)
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def one_plugin(
    plugins: Plugins, *, kind: str = "OneClock", is_known: bool = True, **configuration: Any
) -> None:
    device = {"id": "cpu:0", "precisions": ["fp32", "bf16"], "memory_pool": "host"}
    configuration = {"name": "one", "devices": [device], "overhead_ns": 1_000, **configuration}
    plugins.add("one", MODULE.format(kind=kind, configuration=json.dumps(configuration)))
    if is_known:
        know_the_machine()


def placements(plan: Plan) -> list[tuple[str, ...]]:
    return [tuple(part.split(" ")[0] for part in f.placement.split(", then ")) for f in plan.finalists]


def test_the_mixed_plan_is_chosen_when_it_was_measured_to_be_faster(plugins: Plugins) -> None:
    one_plugin(plugins, costs_ns=SPLIT)
    plan = choose(graph(), max_error=0.5)
    assert [(part.target, part.nodes) for part in plan.partitions] == [
        (BF16, ("a", "b")),
        (FP32, ("c", "y")),
    ]
    assert plan.measured is not None
    assert plan.measured.median_ns == 402_000
    # Every single target was measured beside it, and the chosen one is the fastest.
    assert {(FP32,), (BF16,), (BF16, FP32)} <= set(placements(plan))
    ratios = {f.placement: f.ratio for f in plan.finalists}
    assert min(ratio for ratio in ratios.values() if ratio is not None) == 1.0
    assert ratios[f"{FP32} (4 nodes)"] == pytest.approx(2_201 / 402, rel=0.01)
    assert all(not f.failure for f in plan.finalists)
    assert plan.errors[0].relative_l2 is not None
    assert 0 < plan.errors[0].relative_l2 < 0.1
    assert plan.predicted.latency_ns == pytest.approx(402_000, rel=0.1)


def test_the_single_target_is_chosen_when_no_mixed_plan_is_faster(plugins: Plugins) -> None:
    one_plugin(plugins, costs_ns={"cpu:0/fp32": 1_000_000, "cpu:0/bf16": 900_000})
    plan = choose(graph(), max_error=0.5)
    assert [part.target for part in plan.partitions] == [BF16]
    assert set(placements(plan)) == {(FP32,), (BF16,)}
    assert plan.predicted.latency_ns == plan.measured.median_ns  # type: ignore[union-attr]


def test_one_thread_is_chosen_when_it_is_faster_than_all(plugins: Plugins) -> None:
    one_plugin(plugins, kind="Threaded", one_thread=0.5, costs_ns={"cpu:0/fp32": 1_000_000})
    plan = choose(graph())
    assert [part.target for part in plan.partitions] == [f"{FP32}+threads=1"]
    # Threads that do not help need not be put to rest: that was not measured.
    assert set(placements(plan)) == {(FP32,), (f"{FP32}+threads=1",)}


def test_all_threads_are_chosen_when_they_are_faster_than_one(plugins: Plugins) -> None:
    costs = {"cpu:0/fp32": 1_000_000, "cpu:0/bf16": 1_500_000}
    one_plugin(plugins, kind="Threaded", one_thread=1.8, costs_ns=costs)
    job, profile = profiled(graph(), constraints=asked(max_error=0.5))
    # Parts of mixed plans run with their threads at rest.
    assert {target.target for target in profile.targets} == {
        f"{name}{option}" for name in (FP32, BF16) for option in ("", "+threads=1", "+spinning=false")
    }
    plan = chosen(job, profile, asked(max_error=0.5))
    assert [part.target for part in plan.partitions] == [FP32]


def test_neither_links_nor_resting_threads_are_measured_when_there_is_one_target(plugins: Plugins) -> None:
    costs = {"cpu:0/fp32": 1_000_000}
    one_plugin(plugins, kind="Threaded", is_known=False, one_thread=1.8, costs_ns=costs)
    job, profile = profiled(graph(), constraints=asked())
    assert [target.target for target in profile.targets] == [FP32, f"{FP32}+threads=1"]
    with Store.open() as store:
        assert store.machine(environment.describe(registry.installed())) is None
    plan = chosen(job, profile, asked())
    assert placements(plan) == [(FP32,)]


def test_threads_stay_as_they_are_when_the_target_says_so(plugins: Plugins) -> None:
    one_plugin(plugins, kind="Threaded", one_thread=1.8, costs_ns={"cpu:0/fp32": 1_000_000})
    _, profile = profiled(graph(), constraints=asked(targets=[f"{FP32}+spinning=true+threads=2"]))
    assert [target.target for target in profile.targets] == [f"{FP32}+spinning=true+threads=2"]


def test_only_fp32_is_measured_when_no_error_is_allowed(plugins: Plugins) -> None:
    one_plugin(plugins, costs_ns=SPLIT)
    plan = choose(graph())
    assert placements(plan) == [(FP32,)]


def test_a_plan_is_out_when_its_measured_error_is_above_the_limit(plugins: Plugins) -> None:
    # Predicted errors are those of the whole model, so a limit between them lets some plans in.
    one_plugin(plugins, costs_ns=SPLIT)
    error = choose(graph(), max_error=0.5).errors[0].relative_l2
    assert error is not None
    plan = choose(graph(), max_error=error / 2)
    assert plan.errors[0].relative_l2 is not None
    assert plan.errors[0].relative_l2 <= error / 2


def test_nodes_stay_where_they_are_pinned(plugins: Plugins) -> None:
    one_plugin(plugins, costs_ns=SPLIT)
    plan = choose(graph(), max_error=0.5, pinned={"c": BF16})
    home = {node: part.target for part in plan.partitions for node in part.nodes}
    assert home == {"a": BF16, "b": BF16, "c": BF16, "y": FP32}


def test_one_partition_is_all_there_is_when_no_more_are_allowed(plugins: Plugins) -> None:
    one_plugin(plugins, costs_ns=SPLIT)
    plan = choose(graph(), max_error=0.5, max_partitions=1)
    assert {len(found) for found in placements(plan)} == {1}


def test_the_plan_is_found_again_with_the_profile_of_the_store(plugins: Plugins) -> None:
    one_plugin(plugins, costs_ns=SPLIT)
    first, second = choose(graph(), max_error=0.5), choose(graph(), max_error=0.5)
    assert [part.nodes for part in first.partitions] == [part.nodes for part in second.partitions]
    assert msgspec.json.decode(msgspec.json.encode(first), type=Plan) == first


# --- errors -------------------------------------------------------------------------------------------


def test_a_finalist_that_answers_wrongly_is_out_and_says_why(plugins: Plugins) -> None:
    one_plugin(plugins, costs_ns=SPLIT, fail=[{"at": "run", "how": "wrong"}])
    with pytest.raises(TargetError, match=r"no target is left to place 'split' on.*wrong: output 'y' is off"):
        choose(graph())


def test_a_plan_is_refused_when_memory_cannot_hold_it(plugins: Plugins) -> None:
    one_plugin(plugins, costs_ns=SPLIT)
    with pytest.raises(Infeasible, match="host"):
        choose(graph(), memory={"cpu:0": 10})


def test_all_failures_are_told_when_no_finalist_can_be_run(plugins: Plugins) -> None:
    # The profile is taken from the store; then every run fails.
    one_plugin(plugins, costs_ns=SPLIT)
    choose(graph())
    plugins.replace("one", MODULE.format(kind="OneClock", configuration=json.dumps(_broken())))
    with pytest.raises(PlanError) as caught:
        choose(graph())
    assert caught.value.message.startswith(
        "no placement of 'split' could be carried out: only cpu:0/one/fp32: failed: the fake backend was told"
    )


def _broken() -> Mapping[str, Any]:
    device = {"id": "cpu:0", "precisions": ["fp32", "bf16"], "memory_pool": "host"}
    return {"name": "one", "devices": [device], "fail": [{"at": "run", "how": "raise"}]}
