"""Facts of real models: how much is known, operations against PyTorch's counter, modules and lines."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from hal.graph.facts import facts
from hal.graph.model import Graph
from hal.graph.shapes import known
from hal.records.facts import ModelFacts, NodeFact
from hal_torch.bridge import bridge
from hal_torch.importer import TorchImporter
from tests.models import MODELS

torch = pytest.importorskip("torch")

#: Models with an If on the value of an input, whose branches do different work.
BRANCHING = {"silero_vad_op16", "silero_vad_op18"}
#: With products or convolutions outside LSTM, which PyTorch's counter does not count on CPUs.
COUNTED = ("ppocr_det_320", "ppocr_rec", "ppocr_cls", "magika", "minilm", "smollm2", "silero_vad_op15")


@functools.cache  # graphs and facts are frozen
def bound(name: str) -> Graph:
    model = MODELS[name].require()
    return Graph.load(model.path()).bind(model.shapes)


def values(found: ModelFacts) -> set[str]:
    return {value for node in found.nodes for value in (*node.reads, *node.writes)}


@pytest.mark.parametrize("name", sorted(set(MODELS) - BRANCHING))
def test_facts_know_all_work_and_sizes_when_model_is_bound(name: str) -> None:
    found = facts(bound(name))
    assert [node.name for node in found.nodes if node.flops is None] == []
    assert sorted(values(found) - set(found.value_bytes)) == []
    work = found.work([node.name for node in found.nodes])
    assert work.flops is not None
    assert work.flops > 0
    # All of it together reads the inputs and weights, and writes the outputs.
    assert work.moved_bytes is not None
    assert work.activation_bytes == sum(found.value_bytes[value] for value in found.outputs)


@pytest.mark.parametrize("name", sorted(BRANCHING))
def test_facts_leave_the_branch_open_when_it_depends_on_an_input(name: str) -> None:
    found = facts(bound(name))
    assert [node.op for node in found.nodes if node.flops is None] == ["If"]


def product_flops(graph: Graph) -> int:
    """Operations of products and convolutions without their biases, as PyTorch counts them."""
    shapes, total = known(graph.model), 0
    by_name = facts(graph).by_name()
    for node in graph.model.graph:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            biased = len(node.inputs) > 2 and node.inputs[2] is not None
            count = by_name[str(node.name)].flops
            assert count is not None
            total += count - ((shapes.n_elements(node.outputs[0]) or 0) if biased else 0)
    return total


@pytest.mark.parametrize("name", COUNTED)
def test_operations_agree_with_pytorchs_counter_when_model_runs(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    graph, inputs = bound(name), MODELS[name].inputs()
    module = bridge(graph.model)
    args = [torch.from_numpy(inputs[spec.name]) for spec in graph.signature.inputs]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*args)
    assert product_flops(graph) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    ("name", "start", "file"),
    [
        (
            "minilm",
            ("encoder", "encoder", "layer.0", "attention"),
            "transformers/models/bert/modeling_bert.py:",
        ),
        (
            "smollm2",
            ("language_model", "model", "layers.0", "self_attn"),
            "transformers/models/llama/modeling_llama.py:",
        ),
    ],
)
def test_facts_name_module_and_line_when_pytorch_exported_the_model(
    name: str, start: tuple[str, ...], file: str
) -> None:
    found = facts(bound(name))
    products = [node for node in found.nodes if node.op == "MatMul"]
    assert all(node.module and node.source for node in products)
    inside = [node for node in products if node.levels[: len(start)] == start]
    assert inside
    assert any(node.source.startswith(file) for node in inside)
    for node in found.nodes:
        assert not node.source.startswith("/")
        assert "site-packages" not in node.source
        assert not node.source.startswith("torch/")


def test_facts_name_the_scope_when_another_framework_exported_the_model() -> None:
    magika = facts(bound("magika"))
    assert any(node.levels[-2:] == ("MagikaV2", "Conv_0") for node in magika.nodes)
    silero = facts(bound("silero_vad_op15"))
    assert any(node.levels == ("model", "encoder.2", "reparam_conv") for node in silero.nodes)


def test_facts_agree_when_like_layers_repeat() -> None:
    found = facts(bound("minilm"))
    layers: dict[str, list[NodeFact]] = {}
    for node in found.nodes:
        if node.levels[2:3] and node.levels[2].startswith("layer."):
            layers.setdefault(node.levels[2], []).append(node)
    assert len(layers) == 6
    del layers["layer.0"]  # also makes the mask and the shapes that all share
    kinds = {tuple(sorted(node.signature for node in nodes)) for nodes in layers.values()}
    assert len(kinds) == 1


class Half(torch.nn.Module):
    """Halves what it is given."""

    def forward(self, x: Any) -> Any:
        y = x * 0.5  # the line of Mul
        return shifted(y)  # the line of Sin: PyTorch keeps the lines of forward methods only


class Net(torch.nn.Module):
    """A layer of PyTorch's, one of the file's, and a function of the file's."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Half(), Half()])
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.linear(x)  # the line of Gemm


def shifted(x: Any) -> Any:
    return torch.sin(x)


def test_facts_name_the_right_line_when_a_module_is_imported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    TorchImporter().to_onnx(Net(), torch.ones(2, 4), tmp_path / "model.onnx")
    found = facts(Graph.load(tmp_path / "model.onnx"))
    lines = Path(__file__).read_text().splitlines()
    here = Path(__file__).name
    seen = set()
    for node in found.nodes:
        marked = [n for n, line in enumerate(lines, 1) if f"# the line of {node.op}" in line]
        if marked:
            file, _, line = node.source.rpartition(":")
            assert file.endswith(here)
            assert int(line) == marked[0]
            seen.add((node.op, node.module, node.levels))
    assert seen == {
        ("Mul", "blocks.0", ("blocks.0",)),
        ("Sin", "blocks.0", ("blocks.0",)),
        ("Mul", "blocks.1", ("blocks.1",)),
        ("Sin", "blocks.1", ("blocks.1",)),
        ("Gemm", "linear", ("linear",)),
    }
    assert str(Path(__file__).parent).encode() not in (tmp_path / "model.onnx").read_bytes()
