from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from hal.backend import BackendRef, DeviceTime, Kernel, KernelRuns
from hal.errors import BackendError, ContractViolation, TargetError
from hal.profiling import switching
from hal.profiling.chain import CHAIN, HOST, ChainBackend, Stage, along, chain_ref
from hal.profiling.links import handoff, measure_links, pairs_of
from hal.records.machine import Handoff, Link, Load, Switching, interpolate
from hal.tensor import as_numpy
from hal.testing import FakeBackend, example_inputs, small_graph, true_outputs
from hal.worker import Deadlines
from tests.unit.linked_backends import Away

KIB = 1024
#: A run takes 1 ms of virtual time, so that few of them fill a burst.
COST = {"default_ns": 1_000_000}


def stage(name: str, *, kind: str = "FakeBackend", device: str = "cpu:0", **fields: Any) -> Stage:
    module = "hal.testing.fake" if kind == "FakeBackend" else "tests.unit.linked_backends"
    devices = [{"id": device, "silicon": fields.pop("silicon", "chip")}]
    ref = BackendRef(f"{module}:{kind}", {"name": name, "devices": devices, **COST, **fields})
    (found,) = FakeBackend(devices=devices).discover()
    return Stage(name=f"{device}/{name}", ref=ref, device=found)


# --- the arithmetic ------------------------------------------------------------------------------


def test_handoff_is_what_both_take_beyond_each_when_rounds_differ() -> None:
    # Per round: 12 - 5 - 4 = 3, 30 - 10 - 9 = 11, 16 - 5 - 4 = 7.
    found = handoff(4096, [12, 30, 16], [[5, 10, 5], [4, 9, 4]])
    assert found == Handoff(n_bytes=4096, median_ns=7, p10_ns=4, p90_ns=10, n=3, alone_ns=(5, 4))


def test_handoff_is_not_negative_when_noise_is_larger_than_it() -> None:
    found = handoff(4096, [10, 12, 11], [[6, 6, 6], [6, 6, 6]])
    assert (found.median_ns, found.p10_ns) == (0, -2)


# --- measured, in child processes on virtual clocks ----------------------------------------------


def test_links_tell_the_cost_when_it_is_known() -> None:
    costly = stage("costly", kind="Charging", handoff_ns=7_000, ns_per_kib=50)
    free = stage("free", kind="Charging", silicon="other")
    links = measure_links([costly, free], sizes=(4 * KIB, 64 * KIB))
    figures = {
        (link.source, link.destination): [(p.n_bytes, p.median_ns, p.p10_ns, p.p90_ns) for p in link.points]
        for link in links
    }
    nothing = [(4 * KIB, 0, 0, 0), (64 * KIB, 0, 0, 0)]
    assert figures == {
        ("cpu:0/costly", "cpu:0/costly"): nothing,
        ("cpu:0/costly", "cpu:0/free"): nothing,
        ("cpu:0/free", "cpu:0/costly"): [
            (4 * KIB, 7_200, 7_200, 7_200),
            (64 * KIB, 10_200, 10_200, 10_200),
        ],
        ("cpu:0/free", "cpu:0/free"): nothing,
    }
    assert [link.same_silicon for link in links] == [True, False, False, True]
    assert all(link.reason == "" for link in links)
    assert all(point.n >= 3 for link in links for point in link.points)


def test_a_pair_costs_only_itself_when_two_backends_cannot_be_in_one_process() -> None:
    ends = [stage("one", kind="Exclusive"), stage("two", kind="Exclusive"), stage("three")]
    links = measure_links(ends, sizes=(4 * KIB,))
    failed = {(link.source, link.destination) for link in links if link.reason}
    assert failed == {("cpu:0/one", "cpu:0/two"), ("cpu:0/two", "cpu:0/one")}
    for link in links:
        if link.reason:
            assert link.points == ()
            assert "exited with status 5" in link.reason
        else:
            assert len(link.points) == 1


def test_pairs_have_the_reason_when_a_backend_cannot_be_opened() -> None:
    links = measure_links(
        [stage("good"), stage("bad", fail=[{"at": "import", "how": "raise"}])], sizes=(4 * KIB,)
    )
    assert [bool(link.reason) for link in links] == [False, True, True, True]
    assert "told to fail at 'import'" in links[-1].reason


def test_pairs_have_the_reason_when_a_backend_hangs() -> None:
    deadlines = Deadlines(compile_ns=2_000_000_000)
    links = measure_links(
        [stage("bad", fail=[{"at": "compile", "how": "hang"}])], sizes=(4 * KIB,), deadlines=deadlines
    )
    assert "within 2.00 s" in links[0].reason


def test_small_sizes_stand_when_a_large_one_fails() -> None:
    (link,) = measure_links([stage("small", kind="OnlySmall")], sizes=(4 * KIB, 8 * KIB))
    assert [point.n_bytes for point in link.points] == [4 * KIB]
    assert link.reason == "from 8.00 KiB on: only small tensors fit; use smaller shapes"


def test_pairs_are_all_ordered_pairs_and_the_host_when_a_device_has_its_own_memory() -> None:
    ends = [stage("one"), stage("two", device="cuda:0")]
    routes = [(route.source, route.destination) for pair in pairs_of(ends) for route in pair.routes]
    assert sorted(routes) == sorted(
        [
            ("cpu:0/one", "cpu:0/one"),
            ("cpu:0/one", "cuda:0/two"),
            ("cuda:0/two", "cpu:0/one"),
            ("cuda:0/two", "cuda:0/two"),
            (HOST, "cuda:0/two"),
            ("cuda:0/two", HOST),
        ]
    )


def test_links_to_the_host_have_points_when_a_device_has_its_own_memory() -> None:
    links = measure_links([stage("gpu", kind="Away", device="cuda:0")], sizes=(4 * KIB,), parts=(0,))
    assert [(link.source, link.destination) for link in links] == [
        (HOST, "cuda:0/gpu"),
        ("cuda:0/gpu", HOST),
        ("cuda:0/gpu", "cuda:0/gpu"),
    ]
    assert all(len(link.points) == 1 for link in links)


# --- the chain -----------------------------------------------------------------------------------


def chained(*stages: Stage) -> ChainBackend:
    return ChainBackend(stages)


def logs(chain: ChainBackend, path: tuple[int | str, ...]) -> list[str]:
    """What each run of a path read and where its outputs went."""
    graph = small_graph("scalar")
    executable = chain.compile(CHAIN, graph, along("fp32", path))
    executable.run(example_inputs(graph))
    away = chain.backends[0]
    assert isinstance(away, Away)
    found = list(away.log)
    executable.close()
    return found


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ((0,), ["device -> device"]),
        ((HOST, 0), ["host -> device"]),
        ((0, HOST), ["device -> host"]),
        ((0, 1), ["device -> device", "device -> device"]),
        ((0, 2), ["device -> host"]),
        ((2, 0), ["host -> device"]),
    ],
)
def test_tensors_stay_on_the_device_when_the_next_stage_can_read_them_there(
    path: tuple[int | str, ...], expected: list[str]
) -> None:
    gpu, cpu = stage("gpu", kind="Away", device="cuda:0"), stage("cpu")
    assert logs(chained(gpu, gpu, cpu), path) == expected


def test_chain_answers_as_its_stages_in_a_row_when_it_runs() -> None:
    graph = small_graph("scalar")  # -(x * x)
    inputs = example_inputs(graph)
    executable = chained(stage("one"), stage("two")).compile(CHAIN, graph, along("fp32", (0, 1)))
    expected = true_outputs(graph, true_outputs(graph, inputs))
    np.testing.assert_array_equal(as_numpy(executable.run(inputs)[0]), expected[0])
    target = np.zeros_like(expected[0])
    assert executable.run(inputs, [target])[0] is target
    np.testing.assert_array_equal(target, expected[0])
    assert executable.signature == graph.signature


def test_chain_places_inputs_again_when_other_ones_are_given() -> None:
    graph = small_graph("scalar")
    executable = chained(stage("gpu", kind="Away", device="cuda:0")).compile(
        CHAIN, graph, along("fp32", (0,))
    )
    for seed in (0, 1):
        inputs = example_inputs(graph, seed)
        answer = as_numpy(executable.run(inputs)[0])
        np.testing.assert_array_equal(answer, true_outputs(graph, inputs)[0])


def test_chain_sums_its_stages_clocks_when_all_have_one() -> None:
    graph = small_graph("scalar")  # two nodes, 1 ms each, and 100 ns
    timed = chained(stage("one"), stage("two")).compile(CHAIN, graph, along("fp32", (0, 1)))
    clock = timed.ability(DeviceTime)
    assert clock is not None
    assert clock.timed_run(example_inputs(graph)) == 2 * (2_000_000 + 100)


def test_chain_takes_the_hosts_clock_when_a_stage_has_none() -> None:
    graph = small_graph("scalar")
    hour_ns = 3_600_000_000_000
    slow = stage("one", default_ns=hour_ns)
    timed = chained(slow, stage("two", abilities=[])).compile(CHAIN, graph, along("fp32", (0, 1)))
    assert 0 < timed.timed_run(example_inputs(graph)) < hour_ns


def test_chain_computes_in_the_first_precision_when_a_stage_has_not_the_one_asked_for() -> None:
    half = stage("half")
    half.ref.configuration["devices"] = [{"id": "cpu:0", "precisions": ["bf16"]}]
    lowered = Stage(name=half.name, ref=half.ref, device=FakeBackend(**half.ref.configuration).discover()[0])
    graph = small_graph("chain")
    inputs = example_inputs(graph)
    executable = chained(lowered).compile(CHAIN, graph, along("fp32", (0,)))
    answer, exact = as_numpy(executable.run(inputs)[0]), true_outputs(graph, inputs)[0]
    assert not np.array_equal(answer, exact)
    np.testing.assert_allclose(answer, exact, rtol=1e-2)


def test_chain_supports_what_every_stage_does_when_it_is_asked() -> None:
    picky = stage("picky", refuse={"Neg": "it does not subtract"})
    graph = small_graph("scalar")
    answers = chained(stage("one"), picky, stage("three")).capability(CHAIN, graph, "fp32")
    assert {graph.nodes[name].op_type: answer.yes for name, answer in answers.items()} == {
        "Mul": True,
        "Neg": False,
    }


@pytest.mark.parametrize("path", ["", "2", "0-x", "host", "host-host", "0-host-1", "-1"])
def test_chain_refuses_a_path_when_it_leads_nowhere(path: str) -> None:
    configuration = along("fp32", (path,))
    text = (
        f"path {path!r} cannot be taken; expected numbers below 2 joined by '-', with 'host' at either end "
        "where wanted"
    )
    with pytest.raises(TargetError, match=f"^{re.escape(text)}$"):
        chained(stage("one"), stage("two")).compile(CHAIN, small_graph("scalar"), configuration)


def test_chain_refuses_a_graph_when_its_outputs_cannot_be_its_inputs() -> None:
    text = (
        "graph 'add' cannot be chained: it takes {takes} and gives {gives}; expected equal types and shapes"
    )
    graph = small_graph("add")
    takes, gives = (", ".join(map(str, specs)) for specs in (graph.signature.inputs, graph.signature.outputs))
    with pytest.raises(ContractViolation, match=f"^{re.escape(text.format(takes=takes, gives=gives))}$"):
        chained(stage("one"), stage("two")).compile(CHAIN, graph, along("fp32", (0, 1)))


def test_chain_says_so_when_a_transfer_cannot_be_told_apart() -> None:
    text = (
        "a transfer to or from cuda:0/gpu cannot be told from its runs: "
        "it keeps no tensors on a device of its own (ability DeviceTensors)"
    )
    gpu = stage("gpu", device="cuda:0", abilities=[])
    with pytest.raises(BackendError, match=f"^{re.escape(text)}$"):
        chained(gpu).compile(CHAIN, small_graph("scalar"), along("fp32", (HOST, 0)))


def test_chain_opens_a_backend_once_when_it_stands_twice() -> None:
    one = stage("one")
    chain = chained(one, one, stage("two"))
    assert chain.backends[0] is chain.backends[1]
    assert chain.backends[0] is not chain.backends[2]
    assert chain.discover() == (CHAIN,)
    assert [spec.name for spec in chain.options(CHAIN)] == ["path", "cut"]
    assert chain_ref([one]).configuration["stages"][0]["name"] == "cpu:0/one"


def test_chain_closes_what_it_compiled_when_a_later_stage_fails() -> None:
    chain = chained(stage("one", fail=[{"at": "close", "how": "bug"}]), stage("two", refuse={"Mul": "no"}))
    # The first stage's close raises, which shows that it was called.
    with pytest.raises(ZeroDivisionError):
        chain.compile(CHAIN, small_graph("scalar"), along("fp32", (0, 1)))


# --- planning ------------------------------------------------------------------------------------


def link_of(*points: tuple[int, int], reason: str = "") -> Link:
    return Link(
        source="a",
        destination="b",
        same_silicon=True,
        reason=reason,
        points=tuple(
            Handoff(n_bytes=size, median_ns=cost, p10_ns=cost, p90_ns=cost, n=5) for size, cost in points
        ),
    )


@pytest.mark.parametrize(
    ("n_bytes", "cost_ns"),
    [
        (1_000, 100),
        (2_000, 300),
        (1_500, 200),
        (4_000, 1_300),
        (3_000, 800),
        (8_000, 3_300),
        (500, 0),
        (0, 0),
    ],
)
def test_cost_lies_on_lines_between_sizes_when_interpolated(n_bytes: int, cost_ns: int) -> None:
    link = link_of((1_000, 100), (2_000, 300), (4_000, 1_300))
    assert interpolate(link, n_bytes) == cost_ns


def test_cost_is_the_same_for_all_sizes_when_one_was_measured() -> None:
    assert [interpolate(link_of((4_096, 70)), size) for size in (0, 4_096, 1 << 30)] == [70, 70, 70]


def test_cost_says_why_when_a_link_was_not_measured() -> None:
    text = (
        "the handoff from a to b was not measured: the child was killed by signal 11; "
        "measure again with hal devices --measure"
    )
    with pytest.raises(TargetError, match=f"^{re.escape(text)}$"):
        interpolate(link_of(reason="the child was killed by signal 11"), 4_096)


# --- what alternating costs -----------------------------------------------------------------------


def pair(first: int, second: int, first_alone: int, second_alone: int) -> switching.Pair:
    named = {"0": first, "1": second, "0 alone": first_alone, "1 alone": second_alone}
    kernels = [
        Kernel(name=name, type="step", nodes=(), durations_ns=(ns, ns + 2, ns + 1))
        for name, ns in named.items()
    ]
    return switching.Pair(KernelRuns(kernels=tuple(kernels), run_ns=(1,), defines_units=False))


def test_switching_is_what_a_part_takes_beyond_alone_and_its_handoff() -> None:
    sizes = range(len(switching.SIZES))
    # By size, the first takes 1 us alone and the second 10; in turn, 3 and 5 us more for the size of both.
    pairs = {
        (one, two): pair(
            1_000 * (one + 1) + 3_000 * (one + two), 10_000 * (two + 1) + 2_000 + 5_000 * (one + two),
            1_000 * (one + 1), 10_000 * (two + 1),
        )
        for one in sizes
        for two in sizes
    }  # fmt: skip
    points = (Handoff(n_bytes=4096, median_ns=2_000, p10_ns=0, p90_ns=0, n=9),)
    link = Link(source="a", destination="b", same_silicon=True, points=points)
    there = switching.switching(link, switching.SIZES, pairs, 1)
    assert there.n_nodes == (1, 13, 78, 416)
    assert there.source_ns == (1_001, 2_001, 3_001, 4_001)
    assert there.destination_ns == (10_001, 20_001, 30_001, 40_001)
    assert there.extra_ns == tuple(tuple(5_000 * (one + two) for two in sizes) for one in sizes)
    # What comes back to the first part is the next request: nothing is handed over.
    back = switching.switching(link, switching.SIZES, pairs, 0)
    assert (back.source_ns, back.destination_ns) == (there.destination_ns, there.source_ns)
    assert back.extra_ns == tuple(tuple(3_000 * (one + two) for two in sizes) for one in sizes)


def test_switching_is_not_negative_when_noise_is_larger_than_it() -> None:
    pairs = {(one, two): pair(10, 10, 20, 20) for one in range(4) for two in range(4)}
    points = (Handoff(n_bytes=4096, median_ns=0, p10_ns=0, p90_ns=0, n=9),)
    link = Link(source="a", destination="b", same_silicon=True, points=points)
    found = switching.switching(link, switching.SIZES, pairs, 1)
    assert not any(map(any, found.extra_ns))
    assert found.source_ns == (21, 22, 23, 24)


def grid() -> Switching:
    return Switching(
        n_nodes=(1, 10),
        source_ns=(1_000, 100_000),
        destination_ns=(1_000, 100_000),
        extra_ns=((0, 10), (20, 50)),
    )


@pytest.mark.parametrize(
    ("source", "destination", "extra_ns"),
    [
        (Load(1, 1_000), Load(1, 1_000), 0),
        (Load(1, 10_000), Load(1, 1_000), 10),
        (Load(1, 10_000), Load(1, 10_000), 20),
        # Nodes say more than the time, or the time more than the nodes.
        (Load(10, 1_000), Load(1, 100_000), 50),
        (Load(500, 1), Load(500, 1), 50),
        (Load(0, 0), Load(1, 9e9), 10),
    ],
)
def test_extra_time_lies_between_the_parts_measured(source: Load, destination: Load, extra_ns: float) -> None:
    assert grid().at(source, destination) == pytest.approx(extra_ns)


def test_links_have_switching_when_ends_share_a_silicon_and_the_hosts_clock() -> None:
    one, other = (stage(name, abilities=[]) for name in ("one", "other"))
    elsewhere = stage("elsewhere", silicon="another", abilities=[])
    links = measure_links([one, other, elsewhere], sizes=(4 * KIB,), parts=(0, 1))
    grids = {(link.source[-5:], link.destination[-5:]): link.switching for link in links}
    assert {ends for ends, found in grids.items() if found is not None} == {
        ("0/one", "0/one"),
        ("0/one", "other"),
        ("other", "0/one"),
        ("other", "other"),
        ("where", "where"),
    }
    found = grids["0/one", "other"]
    assert found is not None
    assert found.n_nodes == (1, 13)
    assert found.source_ns[0] < found.source_ns[1]
    assert len(found.extra_ns) == len(found.extra_ns[0]) == 2


def test_links_have_no_switching_when_ends_compute_by_clocks_of_their_own() -> None:
    links = measure_links([stage("one"), stage("other")], sizes=(4 * KIB,))
    assert [link.switching for link in links] == [None] * 4


def test_links_stand_without_switching_when_it_cannot_be_measured() -> None:
    (link,) = measure_links([stage("small", kind="OnlySmall")], sizes=(4 * KIB,))
    assert (len(link.points), link.switching, link.reason) == (1, None, "")


def test_parts_of_a_chain_are_its_graph_when_it_is_cut() -> None:
    graph, cut = switching.graph(1, 0)
    assert (len(graph.nodes), cut) == (14, 13)
    chain = chained(stage("one", abilities=[]), stage("other", abilities=[]))
    whole = chain.compile(CHAIN, graph, along("fp32", (0,)))
    parts = chain.compile(CHAIN, graph, along("fp32", (0, 1), cut))
    given = [switching.values()]
    assert given[0].nbytes == switching.N_BYTES
    (right,), (found,) = whole.run(given), parts.run(given)
    np.testing.assert_array_equal(as_numpy(found), as_numpy(right))
    runs = parts.kernel_runs(given, 3)
    assert [kernel.name for kernel in runs.kernels] == ["0", "1", "0 alone", "1 alone"]
    assert [len(kernel.durations_ns) for kernel in runs.kernels] == [3] * 4
    in_turn = [kernel.durations_ns for kernel in runs.kernels[:2]]
    assert runs.run_ns == tuple(map(sum, zip(*in_turn, strict=True)))
    # The first has 13 nodes, the second one.
    assert min(in_turn[0]) > max(in_turn[1])
