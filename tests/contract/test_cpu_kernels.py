"""Kernel times of PyTorch on the CPU: eager and compiled, on the digits model that ships with hal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import hal.demo
from hal.backend import Configuration, KernelRuns
from hal.graph.model import Graph
from hal_cpu.backend import CpuBackend
from hal_torch.kernels import HostMarks, NodeByNode, absorb
from hal_torch.provenance import _assigned, align, homes, matched


@pytest.fixture(scope="module")
def digits() -> Graph:
    path = Path(hal.demo.__file__).parent / "digits.onnx"
    return Graph.load(path).bind({"image": (8, 1, 8, 8)})


def image() -> np.ndarray:
    return np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32)


def runs(graph: Graph, mode: str, precision: str = "fp32") -> KernelRuns:
    backend = CpuBackend()
    configuration = Configuration.of(precision, {"mode": mode, "threads": 1})
    executable = backend.compile(backend.discover()[0], graph, configuration)
    return executable.kernel_runs([image()], 3)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_kernels_cover_every_node_and_fit_into_the_run(digits: Graph, mode: str) -> None:
    found = runs(digits, mode)
    assert len(found.run_ns) == 3
    covered = {name for kernel in found.kernels for name in kernel.nodes} | set(found.folded)
    assert covered == set(digits.nodes)
    assert all(len(kernel.durations_ns) == 3 and min(kernel.durations_ns) > 0 for kernel in found.kernels)
    for run, end_to_end_ns in enumerate(found.run_ns):
        assert sum(kernel.durations_ns[run] for kernel in found.kernels) <= end_to_end_ns


def test_eager_kernels_are_one_per_node_with_its_type(digits: Graph) -> None:
    found = runs(digits, "eager")
    for kernel in found.kernels:
        assert len(kernel.nodes) == 1
        assert digits.nodes[kernel.nodes[0]].op_type == kernel.type


def test_compiled_kernels_are_fewer_than_nodes_and_named_once(digits: Graph) -> None:
    found = runs(digits, "compiled")
    assert len(found.kernels) < len(digits.nodes)
    names = [kernel.name for kernel in found.kernels]
    assert len(names) == len(set(names))
    assert any(len(kernel.nodes) > 1 for kernel in found.kernels)


class _Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        low, high = torch.split(torch.cat([x, y]), 2)
        return low.sigmoid(), torch.clamp(high, min=0.0, max=1.0)


def test_node_by_node_runs_nested_arguments_methods_and_tuples() -> None:
    stepper = NodeByNode(torch.fx.symbolic_trace(_Twice()))
    x, y = torch.arange(2.0), torch.arange(2.0) + 1
    pairs = stepper.run([x, y], HostMarks())
    kernels = [node.name for _, node in stepper.kernels]
    assert kernels == ["cat", "split", "sigmoid", "clamp"]
    assert all(start <= end for start, end in pairs)


def test_align_maps_launches_by_order_and_leaves_strangers_alone() -> None:
    kernels = [
        ("cpp_fused_add_0", frozenset({"a"})),
        ("extern_kernels.mm", frozenset({"b"})),
        ("torch.ops.mkldnn._convolution_pointwise.default", frozenset({"c", ""})),
        ("cpp_fused_add_0", frozenset({"d"})),
    ]
    events = [
        "graph_1_cpp_fused_add_0",
        "aten::mm",
        "aten::copy_",
        "mkldnn::_convolution_pointwise",
        "graph_1_cpp_fused_add_0",
    ]
    assert align(events, kernels) == [
        frozenset("a"),
        frozenset("b"),
        frozenset(),
        frozenset("c"),
        frozenset("d"),
    ]


class _Chain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.neg() + 1).relu().exp()


def test_absorb_gives_lost_nodes_to_their_readers_only_when_every_launch_is_known() -> None:
    module = torch.fx.symbolic_trace(_Chain())
    known = [frozenset({"relu"}), frozenset({"exp"})]
    assert absorb(module, known) == [frozenset({"neg", "add", "relu"}), frozenset({"exp"})]
    unsure = [frozenset({"relu"}), frozenset[str](), frozenset({"exp"})]
    assert absorb(module, unsure) == unsure


def test_absorb_gives_a_last_view_to_what_makes_the_value_it_views() -> None:
    module = torch.fx.symbolic_trace(_Ends())
    assert absorb(module, [frozenset({"relu"}), frozenset({"exp"})]) == [
        frozenset({"relu"}),
        frozenset({"exp", "reshape"}),
    ]


class _Ends(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.reshape(x.relu().exp(), (-1,))


class _Choice(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.fx.symbolic_trace(_Chain())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def test_code_of_a_branch_belongs_to_the_node_that_calls_it_whatever_its_own_nodes_are_called() -> None:
    outer = torch.nn.Module()
    outer.add_module("choice", _Choice())
    graph = torch.fx.Graph()
    graph.output(graph.call_module("choice", (graph.call_function(torch.relu, (graph.placeholder("x"),)),)))
    module = torch.fx.GraphModule(outer, graph)
    found = homes(module)
    own, branch = (type(m).forward.__code__.co_filename for m in (module, module.choice.body))
    assert found == {own: "", branch: "choice"}
    # The inner graph has a node `relu` of its own.
    inside = f'  File "{branch}", line 5, in forward\n    relu = add.relu();  add = None\n           ^^^\n'
    outside = f'  File "{own}", line 4, in forward\n    relu = torch.relu(x);  x = None\n           ^^^\n'
    assert _assigned(inside, found) == "choice"
    assert _assigned(outside, found) == "relu"
    assert _assigned(outside + inside, found) == "relu"
    assert _assigned('  File "elsewhere.py", line 1, in f\n    relu = 1\n', found) == ""


def test_matched_tells_regions_by_their_kernels_when_a_body_ran_twice() -> None:
    body = [("cpp_fused_add_0", frozenset({"loop"})), ("extern_kernels.mm", frozenset({"loop"}))]
    end = [("cpp_fused_exp_0", frozenset({"exp"}))]
    ran, last = ["graph_1_cpp_fused_add_0", "aten::mm"], ["graph_2_cpp_fused_exp_0"]
    loop = [frozenset({"loop"}), frozenset({"loop"})]
    assert matched([ran, last], [body, end]) == [loop, [frozenset({"exp"})]]
    assert matched([ran, ran, last], [body, end]) == [loop, loop, [frozenset({"exp"})]]
    other = [("cpp_fused_exp_0", frozenset({"another"}))]
    assert matched([last], [end, other]) == [[frozenset()]]
