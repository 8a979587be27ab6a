"""Estimates for machines that are not here: kernels, costs, marks, and models without weights."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from examples.decoder import TINY, decoder
from hal.errors import InputError, ModelError, TargetError
from hal.graph.cut import Cutter
from hal.graph.facts import facts
from hal.graph.fusion import is_view, kernels
from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal.planning.costs import model
from hal.profiling.imagined import ESTIMATED, estimated, planned, stored
from hal.profiling.predict import Machine
from hal.profiling.preflight import preflight
from hal.records.machines import combine
from hal.records.plan import Constraints
from hal.testing import small_graph
from tests.unit.imagined_machines import CALL_NS, LAUNCH_NS, ceiling, machine
from tests.unit.predict_profiles import TARGET, model_profile


def without_weights(tmp_path: Path) -> Path:
    path = tmp_path / "decoder.onnx"
    path.write_bytes(decoder(TINY).SerializeToString())
    return path


# --- models without weights ----------------------------------------------------------------------


def test_a_model_is_read_for_planning_when_its_weights_are_absent(tmp_path: Path) -> None:
    path = without_weights(tmp_path)
    graph = planned(path)
    assert graph.weight_bytes == sum(t.nbytes for t in _tensors(graph))
    assert graph.weight_bytes > 2 * TINY.parameters
    whole = facts(Graph.load(decoder(TINY, seed=0)))
    known = facts(graph)
    assert [node.flops for node in known.nodes] == [node.flops for node in whole.nodes]
    assert known.value_bytes == whole.value_bytes
    assert known.weights == whole.weights


def _tensors(graph: Graph) -> list[object]:
    return [value.const_value for value in graph.model.graph.initializers.values()]


def test_a_model_is_refused_when_its_weights_are_absent_and_wanted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is missing; expected the file beside the model"):
        Graph.load(without_weights(tmp_path))
    with pytest.raises(ModelError, match="is missing; expected the file beside the model"):
        preflight(without_weights(tmp_path), {})


def test_a_graph_says_what_is_missing_when_it_was_read_for_planning_and_is_to_run(tmp_path: Path) -> None:
    graph = planned(without_weights(tmp_path))
    for use in (graph.to_proto, graph.file, graph.serialized):
        with pytest.raises(
            ModelError, match=r"without its weights: 'weights.data', which holds .* is not there"
        ):
            use()


def test_a_digest_does_not_depend_on_weights_when_these_are_not_read(tmp_path: Path) -> None:
    path = without_weights(tmp_path)
    first = planned(path).digest
    (tmp_path / "weights.data").write_bytes(b"\1" * (1 << 20))
    assert planned(path).digest == first
    assert Graph.load(path).digest != first


def test_a_decoder_answers_and_looks_back_only_when_it_has_weights() -> None:
    model = decoder(TINY, dtype=onnx.TensorProto.FLOAT, seed=0)
    onnx.checker.check_model(model, full_check=True)
    tokens = np.arange(TINY.sequence)[np.newaxis] % TINY.vocabulary
    other = tokens.copy()
    other[0, 8:] = 3
    first = next(iter(reference_outputs(model, {"tokens": tokens}).values()))
    second = next(iter(reference_outputs(model, {"tokens": other}).values()))
    np.testing.assert_array_equal(first[:, :8], second[:, :8])
    assert not np.allclose(first[:, 8:], second[:, 8:])
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(tensor.dims)) for tensor in weights) == TINY.parameters + 1  # and a scale


# --- kernels -------------------------------------------------------------------------------------


def test_kernels_are_convex_and_cover_each_node_once_when_a_decoder_is_fused() -> None:
    graph = planned(Graph.load(decoder(TINY), has_weights=False))
    found, folded = kernels(facts(graph))
    named = [node.name for group in found for node in group]
    assert sorted([*named, *folded]) == sorted(graph.nodes)
    # Two norms, q, k, v, attention, its projection, two of the feed-forward network; words, norm, head.
    assert len(found) == 9 * TINY.layers + 3
    cutter = Cutter(graph)
    for group in found:
        inside = {node.name for node in group}
        for node in group[:-1]:
            readers = {name for name in graph.nodes if set(node.writes) & set(cutter.reads(name))}
            assert readers <= inside


def test_a_node_stays_alone_when_others_read_what_it_would_join() -> None:
    found, _ = kernels(facts(small_graph("residual")))
    by_ops = [tuple(node.op for node in group) for group in found]
    assert sum(map(len, by_ops)) == len(small_graph("residual").nodes)
    values = {v: group for group in found for node in group for v in node.writes}
    for group in found:
        for node in group[1:]:
            assert any(values.get(value) is group for value in node.reads)


def test_a_kernel_costs_nothing_when_it_only_renames_memory() -> None:
    node = facts(small_graph("chain")).nodes[0]
    view = msgspec.structs.replace(node, op="Reshape")
    assert is_view((view,))
    assert not is_view((view, node))
    assert not is_view((msgspec.structs.replace(view, domain="mine"),))


# --- estimates -----------------------------------------------------------------------------------


def test_a_unit_costs_a_launch_and_its_roofline_when_nothing_is_stored() -> None:
    graph = small_graph("convolution")
    profile = estimated(graph, combine([("a", machine(1, cpu_speed=2.0))]))
    work = facts(graph)
    for unit in profile.units:
        done = work.work(unit.nodes)
        slowest = max(done.flops or 0, done.moved_bytes or 0)
        gpu, cpu = unit.costs["cuda:0/emulator/fp32"], unit.costs["cpu:0/emulator/fp32"]
        assert gpu.median_ns == LAUNCH_NS + slowest
        assert cpu.median_ns == round(LAUNCH_NS + slowest / 2)
        assert gpu.n == cpu.n == 0
        assert gpu.p10_ns < gpu.median_ns < gpu.p90_ns
    target = profile.targets[0]
    assert target.timing is not None
    assert target.timing.median_ns == CALL_NS + sum(u.costs[target.target].median_ns for u in profile.units)


def test_an_estimate_is_marked_when_it_is_made() -> None:
    profile = estimated("demo:digits", combine([("a", machine(1))]))
    assert profile.notes[0].startswith(ESTIMATED)
    assert all(
        target.timing and target.timing.n == 0 and not target.timing.stable for target in profile.targets
    )
    assert all(target.timing and target.timing.reason == ESTIMATED for target in profile.targets)
    assert any("a launch of 100 ns and the roofline" in note for note in profile.notes)
    assert "a: written by hand" in profile.notes


def test_a_problem_adds_up_to_the_estimate_when_it_is_modelled() -> None:
    found = combine([("a", machine(2))])
    profile = estimated("demo:digits", found)
    modelled = model(profile, Constraints(), machine=found)
    assert modelled.estimated
    for at, target in enumerate(profile.targets):
        assert target.timing is not None
        total = modelled.problem.call[at] + modelled.problem.time[:, at].sum()
        assert total == pytest.approx(target.timing.median_ns, rel=1e-3)


def test_rounding_is_told_as_an_error_when_a_target_has_fewer_bits_than_the_graph() -> None:
    one = machine(1)
    halves = (*one.ceilings, ceiling("cuda:0", 4.0, "fp16"), ceiling("cuda:0", 4.0, "bf16"))
    found = combine([("a", msgspec.structs.replace(one, ceilings=halves))])

    def errors(graph: Graph) -> dict[str, float | None]:
        return {target.target: target.relative_l2 for target in estimated(graph, found).targets}

    wide = errors(small_graph("chain"))
    assert wide["cuda:0/emulator/fp32"] == 0
    assert 0 < (wide["cuda:0/emulator/fp16"] or 0) < (wide["cuda:0/emulator/bf16"] or 0) < 0.1
    half = errors(Graph.load(decoder(TINY), has_weights=False))
    assert half["cuda:0/emulator/fp16"] == 0
    assert (half["cuda:0/emulator/bf16"] or 0) > 0


def test_stored_kernels_are_used_when_the_profile_is_of_their_machine() -> None:
    past = model_profile(1000, "past")
    one = machine(1)
    mine = msgspec.structs.replace(one, environment=past.environment)
    found = combine([("b", machine(1)), ("a", mine)])
    known = {"a": Machine(environment=past.environment, profiles=(past,))}
    graph = small_graph("chain")
    profile = estimated(graph, found, known=known)
    name = TARGET.replace("cpu:0", "cpu:1")
    assert name in {target.target for target in profile.targets}
    assert all(unit.costs[name].n == 0 < unit.costs[name].median_ns for unit in profile.units)
    # The law of the stored kernels has a launch thirty times as long as the profile's devices.
    assert sum(unit.costs[name].median_ns for unit in profile.units) > 3000 * len(profile.units)
    assert any(f"{name}: sum of" in note for note in profile.notes)


def test_nothing_is_found_when_the_store_has_no_kernels_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAL_HOME", str(tmp_path))
    assert stored([("a", machine(1))]) == {}


def test_an_estimate_is_refused_when_the_machine_has_no_ceilings() -> None:
    bare = msgspec.structs.replace(combine([("a", machine(1))]), ceilings=())
    with pytest.raises(
        TargetError, match=r"the machine profile has no ceilings of its devices \(cuda:0, cpu:0\)"
    ):
        estimated(small_graph("chain"), bare)


def test_shapes_are_asked_for_when_they_are_free() -> None:
    free = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    shape = ["batch", 4]
    graph = onnx.helper.make_graph(nodes, "free", [free("x", 1, shape)], [free("y", 1, shape)])
    found = combine([("a", machine(1))])
    given = Graph.load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]))
    with pytest.raises(InputError, match="dimensions without a number"):
        estimated(given, found)
    assert estimated(given, found, shapes={"x": (3, 4)}).model.inputs[0].shape == (3, 4)
