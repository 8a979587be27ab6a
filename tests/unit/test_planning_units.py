"""Laws of units on random graphs, and the cases that real runtimes bring, by hand."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.planning.units import A, B, blocks, kernels_of, remarks, sum_of, sums_ns, units
from hal.records.facts import ModelFacts, NodeFact
from hal.records.profile import KernelCost, KernelTable, Unit, UnitCost


def kernel(nodes: Sequence[str], median_ns: int = 10, samples_ns: tuple[int, ...] = ()) -> KernelCost:
    return KernelCost(
        name="+".join(nodes) or "reorder",
        type="jit",
        nodes=tuple(nodes),
        ops=(),
        device="",
        median_ns=median_ns,
        p10_ns=median_ns - 2,
        p90_ns=median_ns + 3,
        n=50,
        samples_ns=samples_ns,
    )


def table(
    *kernels: KernelCost, folded: Sequence[str] = (), unknown: Sequence[str] = (), defines: bool = True
) -> KernelTable:
    return KernelTable(
        kernels=kernels,
        total_ns=sum(one.median_ns for one in kernels),
        unattributed_ns=sum(one.median_ns for one in kernels if not one.nodes),
        instrumented_ns=1,
        folded=tuple(folded),
        unknown=tuple(unknown),
        defines_units=defines,
    )


def fused(text: str, **more: Sequence[str]) -> KernelTable:
    """A table with one kernel per word, its letters the nodes."""
    return table(*(kernel(list(word)) for word in text.split()), **more)


def graph(
    edges: Mapping[str, str],
    *,
    weights: str = "",
    modules: Mapping[str, str] | None = None,
    ops: Mapping[str, str] | None = None,
) -> ModelFacts:
    """A graph of nodes named by letters, in order: what each reads; ``v`` + name is what it writes."""
    return ModelFacts(
        nodes=tuple(
            NodeFact(
                name=name,
                op=(ops or {}).get(name, f"Op{name}"),
                module=(modules or {}).get(name, ""),
                flops=1,
                reads=tuple(f"v{other}" for other in before) or ("x",),
                writes=(f"v{name}",),
            )
            for name, before in edges.items()
        ),
        value_bytes={"x": 4, **{f"v{name}": 4 for name in edges}},
        weights=frozenset(f"v{name}" for name in weights),
        inputs=("x",),
        outputs=(f"v{list(edges)[-1]}",) if edges else (),
    )


CHAIN = graph({"a": "", "b": "a", "c": "b", "d": "c"})


def sets(found: Sequence[Unit]) -> list[str]:
    return ["".join(unit.nodes) for unit in found]


def test_units_are_what_any_target_fuses_when_targets_fuse_differently() -> None:
    found = units(CHAIN, {"one": fused("ab c d"), "other": fused("a bc d")})
    assert sets(found) == ["abc", "d"]
    assert found[0].costs["one"].median_ns == 20
    assert found[0].costs["other"].median_ns == 20
    assert found[1].costs["one"] == UnitCost(median_ns=10, p10_ns=8, p90_ns=13, n=50)


def test_units_are_single_nodes_when_there_is_no_table() -> None:
    assert sets(units(CHAIN, {})) == ["a", "b", "c", "d"]


def test_units_take_in_a_branch_when_a_fusion_reaches_around_it() -> None:
    diamond = graph({"a": "", "b": "a", "c": "a", "d": "bc"})
    # c is in no kernel, so it must have been computed within the one that covers both ends.
    assert sets(units(diamond, {"one": fused("acd b", unknown="")})) == ["a", "b", "cd"]
    assert sets(units(diamond, {"one": fused("ad b")})) == ["a", "b", "c", "d"]
    assert sets(units(diamond, {"one": fused("ad")})) == ["abcd"]


def test_units_take_in_all_between_when_two_targets_fuse_around_each_other() -> None:
    # One fuses a with d, having computed b and c before; the other fuses b with c.
    crossed = graph({"a": "", "b": "a", "c": "", "d": "c"})
    assert sets(units(crossed, {"one": fused("ad b c"), "other": fused("bc a d")})) == ["abcd"]


def test_units_stay_apart_when_targets_take_an_identity_along_with_different_sides() -> None:
    chain = graph({"a": "", "i": "a", "b": "i"}, ops={"i": "Identity"})
    found = units(chain, {"before": fused("ai b"), "after": fused("a ib"), "alone": fused("a i b")})
    assert sets(found) == ["ai", "b"]
    assert [unit.costs["alone"].median_ns for unit in found] == [20, 10]
    assert [unit.costs["after"].median_ns for unit in found] == [10, 10]


def test_units_hold_a_whole_kernel_when_an_identity_lies_within_it() -> None:
    chain = graph({"a": "", "i": "a", "b": "i"}, ops={"i": "Identity"})
    for fusion in ("aib", "ab", "ab i"):
        assert sets(units(chain, {"one": fused(fusion)})) == ["aib"]


def test_units_begin_with_an_identity_when_it_passes_on_an_input_or_weights() -> None:
    chain = graph(
        {"i": "", "a": "i", "w": "", "j": "w", "b": "aj"},
        ops={"i": "Identity", "j": "Identity"},
        weights="wj",
    )
    assert sets(units(chain, {"one": fused("ia wjb")})) == ["i", "a", "b"]


def test_units_end_at_a_reshape_when_it_feeds_a_residual_branch() -> None:
    # a is a Reshape that costs nothing; its reader e is the Add at the end of the branch b-c-d.
    residual = graph({"a": "", "b": "a", "c": "b", "d": "c", "e": "ad"})
    found = units(residual, {"one": fused("b c d ae")})
    assert sets(found) == ["a", "b", "c", "d", "e"]
    assert found[0].costs["one"].median_ns == 0
    assert found[4].costs["one"].median_ns == 10


def test_units_stay_apart_when_kernels_share_weights() -> None:
    # w is the embedding's table, read at both ends of the model.
    tied = graph({"w": "", "a": "w", "b": "a", "c": "wb"}, weights="w")
    found = units(tied, {"one": fused("wa b wc")})
    assert sets(found) == ["a", "b", "c"]


def test_units_have_weights_of_their_own_when_a_kernel_computes_nothing_else() -> None:
    tied = graph({"w": "", "a": "w", "b": "a"}, weights="w")
    found = units(
        tied, {"runs it": fused("w a b"), "folds it": fused("a b", folded="w"), "joins it": fused("wa b")}
    )
    assert sets(found) == ["w", "a", "b"]
    assert {name: cost.median_ns for name, cost in found[0].costs.items()} == {
        "runs it": 10,
        "folds it": 0,
        "joins it": 0,
    }


def test_units_leave_out_nodes_when_every_target_folded_them() -> None:
    assert sets(units(CHAIN, {"one": fused("a d", folded="bc"), "other": fused("ac d", folded="b")})) == [
        "abc",
        "d",
    ]
    assert sets(units(CHAIN, {"one": fused("b c d", folded="a"), "other": fused("bc d", folded="a")})) == [
        "bc",
        "d",
    ]


def test_units_cost_nothing_when_a_target_folded_all_their_nodes() -> None:
    found = units(CHAIN, {"one": fused("a b c d"), "other": fused("a d", folded="bc")})
    assert [unit.costs["other"].median_ns for unit in found] == [10, 0, 0, 10]


def test_units_have_no_cost_when_a_target_does_not_know_their_nodes() -> None:
    found = units(CHAIN, {"one": fused("a b c d"), "other": fused("a d", unknown="bc")})
    assert ["other" in unit.costs for unit in found] == [True, False, False, True]


def test_units_have_no_cost_where_a_target_that_defines_none_spans_them() -> None:
    tables = {"one": fused("ab c d"), "whole": fused("abc d", defines=False)}
    found = units(CHAIN, tables)
    assert sets(found) == ["ab", "c", "d"]
    assert ["whole" in unit.costs for unit in found] == [False, False, True]
    assert remarks(CHAIN, found, tables) == (
        "whole: 2 of 3 units have no cost of their own, because kernels cover nodes of several",
    )


def test_blocks_join_by_both_tables_when_one_defines_no_units() -> None:
    found = blocks(CHAIN, fused("ab c d"), fused("abc d", defines=False))
    assert sets(found) == ["abc", "d"]
    assert [(unit.costs[A].median_ns, unit.costs[B].median_ns) for unit in found] == [(20, 10), (10, 10)]


def test_units_leave_time_unattributed_when_a_kernel_covers_no_known_node() -> None:
    found = units(CHAIN, {"one": table(kernel("a"), kernel([], 500), kernel(["stranger"], 700))})
    assert sum(unit.costs["one"].median_ns for unit in found if "one" in unit.costs) == 10


def test_names_are_modules_where_told_and_unique() -> None:
    modules = {"a": "net.layer.0.conv", "b": "net.layer.0.act", "c": "net.layer.1", "d": "net.layer.0"}
    facts = graph({"a": "", "b": "a", "c": "b", "d": "c", "e": "d", "f": "e"}, modules=modules)
    names = [unit.name for unit in units(facts, {"one": fused("ab c d e f")})]
    assert names == ["net.layer.0", "net.layer.1", "net.layer.0#2", "e", "f"]
    # layer.0 and layer.1 share no module "layer".
    assert [unit.name for unit in units(facts, {"one": fused("abc d ef")})] == ["net", "net.layer.0", "e"]


def test_names_are_unique_when_a_node_has_the_name_of_a_number() -> None:
    modules = {"a": "m", "b": "m", "c": "m#2", "d": "m"}
    facts = graph({"a": "", "b": "a", "c": "b", "d": "c"}, modules=modules)
    assert [unit.name for unit in units(facts, {})] == ["m", "m#3", "m#2", "m#4"]


def test_percentiles_are_of_sums_by_run_when_all_kernels_have_samples() -> None:
    # Slow in different runs, so that the sum is steady.
    both = [kernel("a", 10, (10, 20, 10, 20)), kernel("b", 10, (20, 10, 20, 10))]
    assert sums_ns(both) == (30, 30, 30, 30)
    assert sum_of(both) == UnitCost(median_ns=20, p10_ns=20, p90_ns=30, n=50)


@pytest.mark.parametrize("samples_ns", [(), (10, 20)])
def test_percentiles_are_summed_when_samples_are_missing_or_of_other_runs(
    samples_ns: tuple[int, ...],
) -> None:
    both = [kernel("a", 10, (10, 20, 10, 20)), kernel("b", 10, samples_ns)]
    assert sums_ns(both) == ()
    assert sum_of(both) == UnitCost(median_ns=20, p10_ns=16, p90_ns=26, n=50)


def test_work_of_a_unit_counts_values_between_its_nodes_not_at_all() -> None:
    first = units(CHAIN, {"one": fused("abc d")})[0]
    assert (first.flops, first.moved_bytes, first.activation_bytes) == (3, 8, 4)


def random_graph(random_: random.Random, n: int) -> ModelFacts:
    """A random acyclic graph; some of its first nodes are weights."""
    nodes, weights = [], set()
    for at in range(n):
        before = random_.sample(range(max(at - 12, 0), at), min(at, random_.choice((0, 1, 1, 1, 2, 3))))
        fixed = all(f"v{one}" in weights for one in before) and random_.random() < 0.3
        if fixed:
            weights.add(f"v{at}")
        op = "Identity" if len(before) == 1 and random_.random() < 0.3 else "Op"
        reads = [f"v{one}" for one in before] + ([] if fixed else ["x"] if not before else [])
        nodes.append(NodeFact(name=f"n{at}", op=op, reads=tuple(reads), writes=(f"v{at}",)))
    return ModelFacts(
        nodes=tuple(nodes), value_bytes={}, weights=frozenset(weights), inputs=("x",), outputs=()
    )


def random_table(random_: random.Random, n: int, *, defines: bool) -> KernelTable:
    kernels = []
    for _ in range(random_.randint(0, n)):
        at = random_.randrange(n)
        near = range(at, min(at + 5, n))
        chosen = sorted(random_.sample(near, random_.randint(0, len(near))))
        kernels.append(kernel([f"n{one}" for one in chosen], random_.randint(3, 99)))
    folded = [f"n{one}" for one in range(n) if random_.random() < 0.2]
    return table(*kernels, folded=folded, defines=defines)


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelFacts, dict[str, KernelTable]]:
    random_ = random.Random(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 30))
    facts = random_graph(random_, n)
    defines = draw(st.lists(st.booleans(), max_size=3))
    return facts, {f"t{i}": random_table(random_, n, defines=one) for i, one in enumerate(defines)}


def successors(facts: ModelFacts) -> dict[str, set[str]]:
    readers: dict[str, set[str]] = {node.name: set() for node in facts.nodes}
    for node in facts.nodes:
        for other in facts.nodes:
            if set(node.writes) & set(other.reads):
                readers[node.name].add(other.name)
    return readers


@settings(max_examples=150, deadline=None)
@given(cases())
def test_units_are_disjoint_and_leave_out_only_what_never_runs(
    case: tuple[ModelFacts, dict[str, KernelTable]],
) -> None:
    facts, tables = case
    found = units(facts, tables)
    covered = [node for unit in found for node in unit.nodes]
    assert len(covered) == len(set(covered))
    assert len({unit.name for unit in found}) == len(found)
    order = [node.name for node in facts.nodes]
    for unit in found:
        assert list(unit.nodes) == sorted(unit.nodes, key=order.index)
    for node in facts.nodes:
        is_fixed = facts.weights.issuperset(node.writes)
        never_runs = is_fixed or (bool(tables) and all(node.name in one.folded for one in tables.values()))
        assert node.name in covered or never_runs


@settings(max_examples=150, deadline=None)
@given(cases())
def test_units_are_convex_and_in_topological_order(case: tuple[ModelFacts, dict[str, KernelTable]]) -> None:
    facts, tables = case
    found = units(facts, tables)
    number = {node: at for at, unit in enumerate(found) for node in unit.nodes}
    readers = successors(facts)
    for at, unit in enumerate(found):
        # Everything behind the unit's exits, dropped nodes included: none of it may be in the unit or before.
        left = {one for node in unit.nodes for one in readers[node] if number.get(one) != at}
        seen: set[str] = set()
        while left:
            one = left.pop()
            seen.add(one)
            left |= readers[one] - seen
        assert all(number.get(one, at + 1) > at for one in seen)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_each_kernel_of_a_defining_table_costs_exactly_one_unit(
    case: tuple[ModelFacts, dict[str, KernelTable]],
) -> None:
    facts, tables = case
    found = units(facts, tables)
    for target, one in tables.items():
        inside = kernels_of(facts, found, one)
        placed = [id(k) for kernels in inside.values() for k in kernels]
        assert len(placed) == len(set(placed))
        costed_ns = sum(unit.costs[target].median_ns for unit in found if target in unit.costs)
        if one.defines_units:
            assert set(placed) == {id(k) for k in one.kernels if k.nodes}
            assert costed_ns == one.total_ns - one.unattributed_ns
        else:
            assert costed_ns <= one.total_ns - one.unattributed_ns


@settings(max_examples=100, deadline=None)
@given(cases())
def test_blocks_add_up_to_all_attributed_time_whatever_the_tables_define(
    case: tuple[ModelFacts, dict[str, KernelTable]],
) -> None:
    facts, tables = case
    if len(tables) < 2:
        return
    one, other = list(tables.values())[:2]
    found = blocks(facts, one, other)
    for key, whole in ((A, one), (B, other)):
        costed_ns = sum(unit.costs[key].median_ns for unit in found if key in unit.costs)
        assert costed_ns == whole.total_ns - whole.unattributed_ns


@settings(max_examples=30, deadline=None)
@given(cases())
def test_units_are_the_same_when_computed_again(case: tuple[ModelFacts, dict[str, KernelTable]]) -> None:
    facts, tables = case
    assert units(facts, tables) == units(facts, dict(reversed(tables.items()))) == units(facts, tables)


def test_units_take_under_a_second_when_there_are_2000_nodes() -> None:
    random_ = random.Random(3)
    facts = random_graph(random_, 2000)
    tables = {f"t{i}": random_table(random_, 2000, defines=i != 3) for i in range(5)}
    began_ns = time.process_time_ns()
    found = units(facts, tables)
    assert (time.process_time_ns() - began_ns) / 1e9 < 1
    assert len(found) > 10


def test_units_do_not_recurse_when_a_chain_is_long() -> None:
    n = 20_000
    nodes = tuple(
        NodeFact(name=f"n{at}", op="Op", reads=(f"v{at - 1}",), writes=(f"v{at}",)) for at in range(n)
    )
    facts = ModelFacts(nodes=nodes, value_bytes={}, weights=frozenset(), inputs=("v-1",), outputs=())
    assert len(units(facts, {"one": table(kernel(["n0", f"n{n - 1}"]))})) == 1
