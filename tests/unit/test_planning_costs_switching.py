from __future__ import annotations

import msgspec
import numpy as np
import pytest

from hal.choosing.planner import plan
from hal.planning.check import check
from hal.planning.costs import Modelled, model
from hal.planning.costs_links import Place
from hal.planning.costs_switching import Switches
from hal.planning.explain import reasons
from hal.planning.plans import plan_of, ranked
from hal.planning.portfolio import solve
from hal.planning.problem import Assignment
from hal.planning.simulate import simulate
from hal.planning.twins import plain_twin
from hal.records.machine import Link, Load, Switching
from hal.records.targets import Target
from tests.unit.placeable import (
    BF16,
    FP32,
    GPU,
    ONNXRUNTIME,
    OPENVINO,
    ORT,
    RESTING,
    device,
    link,
    on,
    profile,
    times_table,
)

ONE = f"{ORT}+threads=1"


def flat(least: int, most: int) -> Switching:
    """The least after, or for, a part of one node; the most where both have ten."""
    return Switching(
        n_nodes=(1, 10),
        source_ns=(1_000, 1_000_000_000),
        destination_ns=(1_000, 1_000_000_000),
        extra_ns=((least, least), (least, most)),
    )


def with_grid(made: Link, least: int, most: int) -> Link:
    return msgspec.structs.replace(made, switching=flat(least, most))


#: Going to ONNX Runtime costs 1 to 5 us, to OpenVINO 2 to 9; another part of the same 0.1 to 0.4 us.
LINKS = (
    with_grid(link(OPENVINO, OPENVINO, 0, 0, alone_ns=(1_000, 1_000)), 100, 400),
    with_grid(link(ONNXRUNTIME, ONNXRUNTIME, 0, 0, alone_ns=(1_000, 1_000)), 100, 400),
    with_grid(link(OPENVINO, ONNXRUNTIME, 1_000, 1_000, alone_ns=(1_000, 1_000)), 1_000, 5_000),
    with_grid(link(ONNXRUNTIME, OPENVINO, 1_000, 1_000, alone_ns=(1_000, 1_000)), 2_000, 9_000),
)


def places(*targets: str) -> list[Place]:
    return [Place(Target.parse(name), device(name.split("/")[0])) for name in targets]


def loads(*n_nodes: int) -> list[Load]:
    return [Load(n, 1.0) for n in n_nodes]


# --- what a part takes longer -------------------------------------------------------------------


def test_parts_cost_what_the_other_backend_before_makes_them_when_two_alternate() -> None:
    switches = Switches(LINKS, places(FP32, ORT))
    # Round and round: the first part comes after the second of the request before.
    assert switches.extra_ns([0, 1], loads(10, 10)) == [9_000, 5_000]
    assert switches.extra_ns([0, 1], loads(1, 10)) == [2_000, 1_000]


def test_part_costs_nothing_more_when_it_is_alone() -> None:
    assert Switches(LINKS, places(FP32, ORT)).extra_ns([1], loads(10)) == [0]


def test_parts_of_one_backend_leave_it_warm_when_they_follow_each_other() -> None:
    switches = Switches(LINKS, places(FP32, BF16, ORT))
    # OpenVINO in fp32, in bf16, ONNX Runtime: the second comes to OpenVINO's code, but its own data is gone.
    assert switches.extra_ns([0, 1, 2], loads(10, 10, 10)) == [9_000 + 400, 400, 5_000]


def test_all_that_ran_between_counts_when_a_backend_comes_back() -> None:
    switches = Switches(LINKS, places(FP32, BF16, ORT))
    found = switches.extra_ns([0, 1, 2], loads(3, 7, 10))
    # Before ONNX Runtime OpenVINO computed ten nodes, in two parts.
    assert found[2] == 5_000


def test_parts_on_other_silicon_do_not_count() -> None:
    switches = Switches(LINKS, places(FP32, GPU))
    assert switches.extra_ns([0, 1, 0], loads(10, 10, 10)) == [400, 0, 400]


def test_least_is_that_of_any_target_on_the_silicon() -> None:
    assert Switches(LINKS, places(FP32, ORT, GPU)).least_ns().tolist() == [2_000, 1_000, 0]
    assert Switches(LINKS, places(FP32, BF16, ORT)).least_ns().tolist() == [100, 100, 1_000]
    assert Switches((), places(FP32, ORT)).least_ns().tolist() == [0, 0]
    assert not Switches((), places(FP32, ORT))


# --- in problems and plans ----------------------------------------------------------------------


def modelled() -> Modelled:
    """conv is faster on OpenVINO, the rest on ONNX Runtime."""
    return model(
        profile(
            on(FP32, 301_000, times_table(100_000, 100_000, 100_000)),
            on(ORT, 301_000, times_table(200_000, 50_000, 50_000)),
            links=LINKS,
        )
    )


def split(made: Modelled) -> Assignment:
    """conv on OpenVINO, the rest on ONNX Runtime."""
    target = np.array([0] + [1] * (made.problem.n_units - 1), np.int32)
    return Assignment(target, target)


def test_problem_charges_the_least_and_a_plan_what_its_order_costs() -> None:
    made = modelled()
    assert made.least_switch.tolist() == [2_000, 1_000]
    assert made.problem.call.tolist() == [3_000, 2_000]
    # Calls of 1 us, a handoff of 1 us, kernels.
    plain = 1_000 + 100_000 + 1_000 + 1_000 + 100_000
    assert simulate(made.problem, split(made)).latency == pytest.approx(plain + 3_000)
    sizes = [len(unit.nodes) for unit in made.placed.units]
    first, second = Load(sizes[0], 1e5), Load(sum(sizes[1:]), 1e5)
    extra = flat(2_000, 9_000).at(second, first) + flat(1_000, 5_000).at(first, second)
    assert extra > 3_000
    found = plan_of(made, split(made), solver="test")
    assert found.predicted.latency_ns == pytest.approx(plain + extra, abs=2)
    assert check(made.carried_out(split(made)), split(made)).values.latency == pytest.approx(plain + extra)


def test_one_partition_takes_what_was_measured_when_turns_are_charged() -> None:
    made = modelled()
    whole = Assignment(np.zeros(made.problem.n_units, np.int32), np.zeros(made.problem.n_units, np.int32))
    assert plan_of(made, whole, solver="test").predicted.latency_ns == 301_000


def test_plans_are_ranked_by_what_they_cost_when_carried_out() -> None:
    made = modelled()
    solution = solve(made.problem, budget_s=60)
    found = ranked(made, solution)
    values = [one.objective for one in found.proposals]
    assert values == sorted(values)
    for one in found.proposals:
        problem = made.carried_out(one.assignment)
        assert one.objective == simulate(problem, one.assignment).latency
    assert found.bound <= values[0]
    assert found.gap == pytest.approx((values[0] - found.bound) / values[0])


def test_bound_is_at_most_a_single_target_when_turns_are_charged_to_it_in_the_problem() -> None:
    # Nothing is gained by a mix. In the problem the single target pays for turns that it does not take.
    made = model(
        profile(on(FP32, 100_000), on(ORT, 301_000, times_table(200_000, 50_000, 50_000)), links=LINKS)
    )
    solution = solve(made.problem, budget_s=60)
    found = ranked(made, solution)
    assert solution.best.objective == pytest.approx(102_000)
    assert found.best.objective == pytest.approx(100_000)
    assert found.bound == pytest.approx(100_000)
    assert found.is_optimal


def test_solution_stays_as_it_is_when_no_turns_were_measured() -> None:
    made = model(profile())
    solution = solve(made.problem, budget_s=60)
    assert ranked(made, solution) is solution
    assert made.carried_out(split(made)) is made.problem


def test_mix_is_left_out_when_taking_turns_costs_more_than_it_saves() -> None:
    dear = tuple(msgspec.structs.replace(one, switching=flat(60_000, 60_000)) for one in LINKS)
    made = profile(
        on(FP32, 301_000, times_table(100_000, 100_000, 100_000)),
        on(ORT, 301_000, times_table(200_000, 50_000, 50_000)),
        links=dear,
    )
    assert len(plan(made, budget_s=60).partitions) == 1


def test_runner_up_has_the_cost_of_turns_when_they_were_measured() -> None:
    made = modelled()
    why = reasons(made, split(made))
    # The head of the plan on ONNX Runtime too: a single target, which takes no turns.
    assert why[0].runner_up is not None
    here = check(made.carried_out(split(made)), split(made)).values.latency
    assert why[0].runner_up.objective == pytest.approx(301_000)
    assert here < 301_000


# --- twins --------------------------------------------------------------------------------------


def test_plain_twin_is_the_target_without_what_mixed_plans_set() -> None:
    assert plain_twin(RESTING) == ORT
    assert plain_twin(ONE) == ORT
    assert plain_twin(ORT) is None
    assert plain_twin(f"{ORT}+threads=2") is None
    assert plain_twin(f"{ORT}+spinning=true") is None


@pytest.mark.parametrize(("one_ns", "is_whole"), [(80_000, True), (120_000, True), (130_000, False)])
def test_target_is_for_whole_models_when_more_threads_help_little(one_ns: int, is_whole: bool) -> None:
    made = model(profile(on(FP32, 100_000), on(ORT, 100_000), on(ONE, one_ns)))
    assert made.only_whole == ({1} if is_whole else set())
    assert any("is offered for the whole model" in note for note in made.notes) == is_whole


def test_target_stays_for_parts_when_its_twin_was_not_measured() -> None:
    failed = msgspec.structs.replace(on(ONE, 50_000), status="failed", reason="it died")
    made = model(profile(on(FP32, 100_000), on(ORT, 100_000), failed))
    assert made.only_whole == frozenset()
