from __future__ import annotations

from html.parser import HTMLParser

import msgspec
import pytest
from onnx import TensorProto, helper

from hal.errors import OutputExists, UserError
from hal.graph.model import Graph
from hal.records.facts import ModelFacts, NodeFact
from hal.records.plan import Bound
from hal.report import annotated, plan_html, write_annotated
from hal.report.plan_drawing import bars, graph
from hal.report.plan_words import gap_text
from tests.unit.planned import CPU, FACTS, GPU, plan, single


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_plan_page_loads_nothing_and_runs_nothing_when_parsed() -> None:
    for tag, attributes in Elements(plan_html(plan(), FACTS)).found:
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href", "onclick", "onload"} & set(attributes)


def test_plan_page_escapes_names_when_they_are_hostile() -> None:
    evil = "</title><script>alert(1)</script>\x1b[2J"
    made = plan(
        model=msgspec.structs.replace(plan().model, name=evil),
        notes=(evil,),
        partitions=tuple(msgspec.structs.replace(p, reason=evil) for p in plan().partitions),
    )
    text = plan_html(made, FACTS)
    assert "<script" not in text
    assert "\x1b" not in text


def test_plan_page_shows_each_finalist_and_failure_when_measured() -> None:
    text = plan_html(plan(), FACTS)
    assert "out of memory: 9.0 GiB asked for" in text
    assert "1.170x" in text


def test_bars_lie_on_the_lane_of_their_device_when_devices_differ() -> None:
    drawing = bars(plan())
    assert [name for name, _ in drawing.rows] == ["cuda:0 (A GPU)", "cpu:0 (A processor)"]
    gpu, cpu = drawing.shapes
    assert gpu.y < cpu.y
    assert gpu.x == 0
    assert gpu.x + gpu.width == pytest.approx(0.6 * drawing.width)
    assert cpu.x + cpu.width == pytest.approx(drawing.width)
    assert [line.crosses for line in drawing.lines] == [True]


def test_graph_draws_each_node_below_what_it_reads_when_facts_are_known() -> None:
    drawing = graph(plan(), FACTS)
    assert len(drawing.shapes) == 4
    heights = [shape.y for shape in drawing.shapes]
    assert heights == sorted(set(heights))
    assert [shape.colour for shape in drawing.shapes] == ["t0", "t0", "t1", "t1"]
    assert [line.crosses for line in drawing.lines] == [False, True, False]


def test_graph_draws_partitions_when_the_model_is_too_large() -> None:
    nodes = tuple(NodeFact(name=f"n{i}", op="Relu") for i in range(3000))
    facts = ModelFacts(nodes=nodes, value_bytes={}, weights=frozenset(), inputs=(), outputs=())
    drawing = graph(plan(), facts)
    assert len(drawing.shapes) == 2
    assert "partition" in drawing.caption


@pytest.mark.parametrize(
    ("gap", "text"),
    [
        (0.0, "optimal by these costs"),
        (0.00001, "within less than 0.1% of the best possible by these costs"),
        (0.032, "within 3.2% of the best possible by these costs"),
        (1.0, "no bound proven"),
    ],
)
def test_gap_text_says_optimal_only_when_the_gap_is_zero(gap: float, text: str) -> None:
    assert gap_text(plan(bound=Bound(value=1.0, source="x", gap=gap))) == text


def chain() -> Graph:
    made = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["a"], name="conv"),
            helper.make_node("Neg", ["a"], ["b"], name="relu"),
            helper.make_node("Abs", ["b"], ["c"], name="pool"),
            helper.make_node("Relu", ["c"], ["y"], name="head"),
        ],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    return Graph.load(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def of(model: Graph):
    return plan(model=msgspec.structs.replace(plan().model, digest=model.digest))


def test_annotated_model_says_target_of_each_node_when_planned() -> None:
    import onnx

    model = chain()
    proto = annotated(model, of(model))
    told = {node.name: {p.key: p.value for p in node.metadata_props} for node in proto.graph.node}
    assert told["conv"]["hal.target"] == told["relu"]["hal.target"] == GPU
    assert told["head"] == {"hal.target": CPU, "hal.partition": "1"}
    assert told["pool"]["hal.reason"] == "its output is wanted on the host"
    onnx.checker.check_model(proto)
    assert not model.to_proto().graph.node[0].metadata_props


def test_annotated_model_is_refused_when_the_plan_is_of_another() -> None:
    with pytest.raises(UserError, match=r"the plan is of 'digits' with digest 3f2a91c0b7de; the model's is"):
        annotated(chain(), plan())


def test_annotated_model_is_not_written_when_the_file_exists(tmp_path) -> None:
    model = chain()
    path = tmp_path / "m.onnx"
    write_annotated(model, of(model), path)
    with pytest.raises(OutputExists):
        write_annotated(model, of(model), path)
    assert Graph.load(path).nodes.keys() == model.nodes.keys()


def test_single_plan_draws_one_bar_when_everything_is_on_one_target() -> None:
    assert len(bars(single()).shapes) == 1
