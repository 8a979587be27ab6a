"""Every real model on every backend of this machine: right answers, real times, attributed kernels."""

from __future__ import annotations

import math

import pytest

import hal
from hal.records.files import from_json, to_json
from hal.records.profile import Profile, TargetProfile
from hal.sampling import Policy
from tests.models import MODELS

#: Answers are judged here, not times: a few runs are enough, and two tests share the cores.
BRIEF = Policy(
    warm_up_min_ns=0,
    warm_up_max_ns=300_000_000,
    burst_ns=10_000_000,
    burst_min_runs=2,
    min_time_ns=20_000_000,
    min_runs=4,
    min_bursts=2,
    max_time_ns=300_000_000,
)
BACKENDS = ("cpu", "openvino", "onnxruntime")
#: What a backend refuses, and a word of its reason. Anything else must run.
REFUSED = {
    ("silero_vad_op16", "openvino"): "If",
}
#: Share of kernel time that must be mapped to nodes of the model.
ATTRIBUTED = 0.98
#: Relative L2 in fp32: rounding grows with depth, and the language model has 30 layers.
LIMITS = {"smollm2": 2e-4}


def check_kernels(target: TargetProfile) -> None:
    assert target.kernels is not None, target.kernels_missing
    assert target.kernels.total_ns > 0
    assert target.kernels.unattributed_ns <= (1 - ATTRIBUTED) * target.kernels.total_ns
    assert target.kernels.unknown == ()
    # Each kernel's time counts once.
    assert target.kernels.total_ns == sum(kernel.median_ns for kernel in target.kernels.kernels)


def check_units(record: Profile) -> None:
    """Each node in one unit at most, and every attributed kernel's time in the units' costs."""
    placed = [node for unit in record.units for node in unit.nodes]
    assert len(placed) == len(set(placed))
    for target in record.targets:
        if target.kernels is None or target.status != "ok":
            continue
        costs_ns = [
            unit.costs[target.target].median_ns for unit in record.units if target.target in unit.costs
        ]
        attributed_ns = target.kernels.total_ns - target.kernels.unattributed_ns
        # Sums of medians and medians of sums differ a little.
        assert sum(costs_ns) == pytest.approx(attributed_ns, rel=0.2, abs=20_000)


@pytest.mark.parametrize(
    "name",
    # ppocr_det_320 is the same model on a smaller image; smollm2 takes two minutes.
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("ppocr_det", "smollm2") else ())
        for name in sorted(MODELS)
    ],
)
def test_profile_is_right_on_every_backend_when_the_model_is_real(name: str) -> None:
    model = MODELS[name].require()
    record = hal.profile(
        model.path(),
        model.inputs(),
        targets=[f"cpu:0/{backend}/*" for backend in BACKENDS],
        policy=BRIEF,
        machine=False,
    )
    assert record.reference, record.notes
    targets = {target.target: target for target in record.targets}
    for backend in BACKENDS:
        target = targets[f"cpu:0/{backend}/fp32"]
        if (name, backend) in REFUSED:
            assert target.status == "refused"
            assert any(node.op == REFUSED[name, backend] and node.reason for node in target.refused)
            continue
        assert target.status == "ok", target.reason
        assert target.relative_l2 is not None
        assert target.relative_l2 <= LIMITS.get(name, 1e-4)
        assert target.timing is not None
        assert target.timing.median_ns > 0
        check_kernels(target)
    for text, target in targets.items():
        if text.endswith("/bf16") and target.status != "refused":
            assert target.status == "ok", target.reason
            assert target.relative_l2 is not None
            # bf16 is really computed: exact answers would mean fp32 in disguise.
            assert 1e-7 < target.relative_l2 < math.inf
            check_kernels(target)
    assert from_json(to_json(record), Profile, "the profile") == record
    check_units(record)


def test_profile_reaches_the_known_accuracy_when_the_demo_runs() -> None:
    record = hal.profile("demo:digits", policy=BRIEF, machine=False)
    measured = {target.target: target.accuracy for target in record.targets if target.status == "ok"}
    assert {f"cpu:0/{backend}/fp32" for backend in BACKENDS} <= set(measured)
    for target, accuracy in measured.items():
        assert accuracy is not None, target
        assert accuracy >= 0.99, target


def test_profile_takes_a_torch_module_when_given_example_inputs() -> None:
    module, arguments = MODELS["minilm"].require().module()
    record = hal.profile(
        module,
        arguments,
        targets=["cpu:0/onnxruntime/fp32", "cpu:0/cpu/fp32"],
        policy=BRIEF,
        machine=False,
    )
    for target in record.targets:
        assert target.status == "ok", target.reason
        assert target.relative_l2 is not None
        assert target.relative_l2 <= 1e-4
