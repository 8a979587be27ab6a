"""Kernels of earlier profiles, cut into models again, and how graphs are grouped after them."""

from __future__ import annotations

import msgspec
import pytest

from hal.profiling.predict_groups import ALONE, FUSED_ELSEWHERE, SAME_NODES, group
from hal.profiling.predict_past import lone_records, past_runs
from hal.records.kernels import KernelRecord
from tests.unit.predict_profiles import FUSED, GAP_NS, TARGET, chain, kernel, model_profile, profile, runs
from tests.unit.stored import day

OPS = [op for ops in FUSED for op in ops]


def test_kernels_are_joined_when_they_share_nodes() -> None:
    facts = chain(["Conv", "Relu", "Softmax"], 100)
    conv, relu, softmax = facts.nodes
    kernels = [kernel(5000, [conv]), kernel(700, [conv, relu]), kernel(900, [softmax])]
    (run,) = runs(profile(facts, kernels, "a"))
    assert [(one.ops, one.median_ns, one.p90_ns) for one in run.kernels] == [
        (("Conv", "Relu"), 5700, 6270),
        (("Softmax",), 900, 990),
    ]
    assert run.rest_ns == 3 * GAP_NS  # each kernel's time counts once


def test_unattributed_kernels_count_as_rest() -> None:
    facts = chain(["Conv"], 100)
    (run,) = runs(profile(facts, [kernel(5000, facts.nodes), kernel(400, [])], "a", end_to_end_ns=6000))
    assert run.rest_ns == 1000


def test_times_sum_to_the_plain_run_when_instruments_inflate_them() -> None:
    facts = chain(["Conv", "Relu", "Softmax"], 100)
    kernels = [kernel(time, [node]) for time, node in zip((20_000, 5000, 4000), facts.nodes, strict=True)]
    (run,) = runs(profile(facts, kernels, "a", end_to_end_ns=20_000, inflated=True))
    assert [one.median_ns for one in run.kernels] == [17_000, 2000, 1000]  # 3 us less for each
    assert all(one.corrected for one in run.kernels)
    assert run.rest_ns == 0


def test_small_kernels_keep_a_tenth_when_instruments_took_more_than_they() -> None:
    facts = chain(["Conv", "Relu"], 100)
    kernels = [kernel(20_000, facts.nodes[:1]), kernel(1000, facts.nodes[1:])]
    (run,) = runs(profile(facts, kernels, "a", end_to_end_ns=15_000, inflated=True))
    assert [one.median_ns for one in run.kernels] == [14_900, 100]


def test_times_stay_when_kernels_run_side_by_side() -> None:
    facts = chain(["Conv", "Relu"], 100)
    kernels = [kernel(5000, facts.nodes[:1]), kernel(4000, facts.nodes[1:])]
    (run,) = runs(profile(facts, kernels, "a", end_to_end_ns=6000))
    assert [one.median_ns for one in run.kernels] == [5000, 4000]
    assert run.rest_ns == -3000


def test_profiles_are_left_out_when_they_have_no_facts_or_another_target() -> None:
    facts = chain(["Conv"], 100)
    kernels = [kernel(5000, facts.nodes)]
    assert runs(profile(None, kernels, "a"), profile(facts, kernels, "b", target="cpu:0/cpu/fp32")) == ()


def test_newest_run_counts_when_a_model_was_measured_twice() -> None:
    facts = chain(["Conv"], 100)
    new = profile(facts, [kernel(7000, facts.nodes)], "a", created=day(5))
    old = profile(facts, [kernel(5000, facts.nodes)], "a", created=day(1))
    assert [run.kernels[0].median_ns for run in past_runs([new, old], TARGET)] == [7000]


def test_lone_records_are_those_of_models_without_a_profile() -> None:
    def record(model: str) -> KernelRecord:
        return KernelRecord(
            signature="s",
            target=TARGET,
            ops=("Conv",),
            flops=1,
            moved_bytes=2,
            median_ns=3,
            p10_ns=3,
            p90_ns=3,
            n=9,
            model=model,
        )

    known = runs(model_profile(100, "a"))
    (found,) = lone_records([record("a@100"), record("gone")], known)
    assert (found.digest, found.ops, found.nodes) == ("gone", ("Conv",), ())


def test_graph_is_cut_as_before_when_only_shapes_differ() -> None:
    groups, free = group(chain(OPS, 900, "a"), runs(model_profile(100, "a"), model_profile(100, "b")))
    assert [tuple(node.op for node in each.nodes) for each in groups] == list(FUSED)
    assert {each.cause for each in groups} == {SAME_NODES}
    assert free == []


def test_longest_known_chain_is_taken_when_the_model_is_new() -> None:
    facts = chain(["Conv", "Add", "Relu", "Conv", "Relu", "Tanh"], 100, "new")
    groups, _ = group(facts, runs(model_profile(100, "a")))
    assert [(tuple(node.op for node in each.nodes), each.cause) for each in groups] == [
        (("Conv", "Add", "Relu"), FUSED_ELSEWHERE),
        (("Conv", "Relu"), FUSED_ELSEWHERE),
        (("Tanh",), ALONE),
    ]


def test_chain_follows_edges_and_not_the_order_of_nodes() -> None:
    facts = chain(["Conv", "Tanh", "Relu"], 100, "new")
    groups, _ = group(facts, runs(model_profile(100, "a")))  # the Relu reads the Tanh
    assert [len(each.nodes) for each in groups] == [1, 1, 1]


def test_nodes_are_free_when_they_come_from_weights_alone_or_their_operator_usually_is() -> None:
    past = chain(["Conv", "Reshape", "Relu"], 100, "a")
    known = runs(profile(past, [kernel(5000, past.nodes[:1]), kernel(900, past.nodes[2:])], "a"))
    facts = chain(["Conv", "Reshape", "Relu"], 100, "new")
    folded = msgspec.structs.replace(facts.nodes[0], name="folded", op="Mul", writes=("neww0",))
    groups, free = group(msgspec.structs.replace(facts, nodes=(folded, *facts.nodes)), known)
    assert free == ["folded", "new1"]
    assert [each.nodes[0].name for each in groups] == ["new0", "new2"]


@pytest.mark.parametrize("prefix", ["a", "new"])
def test_each_node_is_in_one_group_or_free(prefix: str) -> None:
    facts = chain(["Conv", "Relu", "Conv", "Add", "Conv", "Add", "Relu", "Tanh", "MatMul"], 100, prefix)
    past = chain(["Conv", "Relu", "Conv", "Add", "Conv", "Add", "Relu", "Tanh", "MatMul"], 50, "a")
    known = runs(
        model_profile(100, "b"), profile(past, [kernel(10, past.nodes[:4]), kernel(9, past.nodes[5:])], "a")
    )
    groups, free = group(facts, known)
    names = [node.name for each in groups for node in each.nodes] + free
    assert sorted(names) == sorted(node.name for node in facts.nodes)
