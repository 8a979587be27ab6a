"""Every real model cut in three over three backends: the answers are those of the reference."""

from __future__ import annotations

import pytest

from hal import plugins
from hal.executor.backend import PLAN, Spot, plan_ref, plan_target
from hal.executor.partitions import Piece
from hal.graph.facts import facts
from hal.planning.costs_units import placeable
from hal.profiling import discover, judge
from hal.profiling.engine import reference_of
from hal.profiling.progress import Silent
from hal.profiling.sources import resolve
from hal.records.profile import Unit
from hal.tensor import as_numpy
from hal.worker import WorkerBackend
from tests.models import MODELS

#: In the order of the partitions; the first one again where a model has no three.
TARGETS = ("cpu:0/onnxruntime/fp32", "cpu:0/openvino/fp32", "cpu:0/cpu/fp32")


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_right_when_a_model_is_cut_in_three(name: str) -> None:
    real = MODELS[name].require()
    subject = resolve(real.path(), real.inputs())
    found = discover(["cpu", "openvino", "onnxruntime"])
    spots = {
        f"{one.device.id}/{one.backend}": Spot(ref=plugins.reference(one.backend), device=one.device)
        for one in found.found
        if not one.device.unavailable and not one.device.variant
    }
    known = facts(subject.graph)
    units = placeable(known, [Unit(name=node.name, nodes=(node.name,)) for node in known.nodes]).units
    at = [round(len(units) * part / 3) for part in range(4)]
    pieces = [
        Piece(target, tuple(node for unit in units[start:end] for node in unit.nodes))
        for target, start, end in zip(TARGETS, at[:-1], at[1:], strict=True)
        if start < end
    ]
    reference, reason = reference_of(subject, Silent())
    if reference is None:
        pytest.skip(reason)
    with WorkerBackend(plan_ref(spots, {"p": pieces})) as backend:
        executable = backend.compile(PLAN, subject.graph, plan_target("p", pieces).configuration)
        answers = [as_numpy(output) for output in executable.run(subject.inputs)]
    errors = judge.compare(executable.signature, reference, answers)
    assert judge.fault(errors, "fp32", subject.graph) == ""
