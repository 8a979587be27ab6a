"""Records written by hand, from which the exact tables beside this file are rendered."""

from __future__ import annotations

import msgspec
import numpy as np

from hal.backend import Fallback, Finding
from hal.plugins import Plugin
from hal.profiling.discovery import Discovery, Found
from hal.profiling.running import RunResult
from hal.records.machine import Ceiling, Environment
from hal.records.profile import (
    ColdStart,
    Energy,
    KernelCost,
    KernelTable,
    MemoryPeak,
    ModelInfo,
    OutputError,
    PluginInfo,
    Profile,
    Ratio,
    RefusedNode,
    TargetProfile,
    Timing,
)
from hal.records.targets import Device, OptionSpec, TensorSpec
from hal.testing import CheckResult

FP32 = "cpu:0/openvino/fp32"
BF16 = "cpu:0/openvino/bf16"
ORT = "cpu:0/onnxruntime/fp32"
COMPILED = "cpu:0/cpu/fp32+mode=compiled"
WRONG = "cpu:0/cpu/fp16"


def timing(median_ns: int, *, spread: float = 0.05, stable: bool = True, reason: str = "") -> Timing:
    return Timing(
        median_ns=median_ns,
        p10_ns=round(median_ns * (1 - spread)),
        p90_ns=round(median_ns * (1 + 2 * spread)),
        n=480,
        interval_low_ns=round(median_ns * 0.99),
        interval_high_ns=round(median_ns * 1.01),
        stable=stable,
        reason=reason,
    )


def error(relative_l2: float | None) -> tuple[OutputError, ...]:
    return (OutputError(name="scores", relative_l2=relative_l2, max_abs=relative_l2, sqnr_db=60.0),)


def kernel(
    name: str,
    median_ns: int,
    nodes: tuple[str, ...],
    ops: tuple[str, ...],
    type: str,
    *,
    flops: int | None = None,
    moved_bytes: int | None = None,
    limit: str = "",
) -> KernelCost:
    return KernelCost(
        name=name,
        type=type,
        nodes=nodes,
        ops=ops,
        device="",
        median_ns=median_ns,
        p10_ns=median_ns,
        p90_ns=median_ns,
        n=50,
        flops=flops,
        moved_bytes=moved_bytes,
        limit=limit,
    )


def target(
    name: str, median_ns: int = 0, relative_l2: float | None = 3.2e-7, **fields: object
) -> TargetProfile:
    if median_ns:
        fields = {
            "timing": timing(median_ns),
            "cold_start": ColdStart(start_ns=900_000_000, compile_ns=212_000_000, first_run_ns=3_100_000),
            "memory": MemoryPeak(loaded_bytes=100 << 20, peak_bytes=142 << 20),
            "errors": error(relative_l2),
            **fields,
        }
    return (
        msgspec.convert({"target": name, "status": "ok"}, TargetProfile)
        if not fields
        else TargetProfile(
            target=name,
            status=str(fields.pop("status", "ok")),
            **fields,  # type: ignore[arg-type]
        )
    )


def profile(*targets: TargetProfile, **fields: object) -> Profile:
    whole: dict[str, object] = {
        "schema_version": 1,
        "hal_version": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "model": ModelInfo(
            name="digits",
            digest="3f2a91c0b7de55aa",
            opset=17,
            n_nodes=14,
            weight_bytes=231_000,
            inputs=(TensorSpec("image", "float32", (1, 1, 8, 8)),),
            outputs=(TensorSpec("scores", "float32", (1, 10)),),
            inputs_from="the demo's test set",
        ),
        "environment": Environment(
            system="Linux 6.1",
            machine="x86_64",
            cpu="Example CPU",
            cpu_features=("avx2",),
            n_cpus=8,
            n_usable_cpus=2,
            memory_bytes=24 << 30,
            python="3.11.2",
            packages={"openvino": "2026.4", "torch": "2.13"},
            settings={"OMP_NUM_THREADS": "2"},
        ),
        "plugins": (),
        "devices": (),
        "targets": targets,
        "reference": "onnx ReferenceEvaluator",
        "ceilings": (
            Ceiling(
                device="cpu:0",
                precision="fp32",
                flops_per_s=1.11e11,
                bytes_per_s=1.64e10,
                compute_target=ORT,
                copy_target=FP32,
            ),
        ),
    }
    return Profile(**{**whole, **fields})  # type: ignore[arg-type]


KERNELS = KernelTable(
    kernels=(
        kernel("Conv_3", 61_000, ("/conv2/Conv", "/bn2/BatchNormalization", "/relu2/Relu"),
               ("Conv", "BatchNormalization", "Relu"), "jit_avx512_f32",
               flops=4_600_000, moved_bytes=300_000, limit="compute"),
        kernel("MatMul_9", 20_000, ("/head/Gemm",), ("Gemm",), "gemm_mlas_f32",
               flops=33_000, moved_bytes=260_000, limit="memory"),
        kernel("Reorder_1", 4_000, (), (), "Reorder"),
        kernel("Softmax_10", 2_000, ("/Softmax",), ("Softmax",), "jit_softmax", flops=80, moved_bytes=80),
    ),
    total_ns=87_000,
    unattributed_ns=4_000,
    instrumented_ns=120_000,
    plain_ns=100_000,
    folded=("/Shape",),
    unknown=("/Identity", "/Cast"),
)  # fmt: skip

FULL = profile(
    target(ORT, 141_000, accuracy=0.995, kernels_missing="the profiling file was empty"),
    target(
        FP32, 98_400, accuracy=0.995, kernels=KERNELS, energy=Energy(per_run_mj=1.234, source="RAPL package")
    ),
    target(
        BF16,
        70_100,
        relative_l2=2.13e-3,
        accuracy=0.9933,
        timing=timing(70_100, spread=0.3, stable=False, reason="the median is known to +-9% only"),
        fallbacks=(Fallback("/Softmax", "bf16", "fp32", "no kernel for bf16"),),
    ),
    target(
        WRONG,
        51_000,
        relative_l2=None,
        status="wrong",
        reason="output 'scores' is off by inf (relative L2); fp16 explains at most 0.05",
        kernels=KERNELS,
    ),
    target(
        COMPILED,
        status="refused",
        reason="cpu cannot run node 'If_12' (If): control flow and 8 more",
        refused=(
            RefusedNode(node="If_12", op="If", reason="control flow"),
            *(RefusedNode(node=f"Loop_{i}", op="Loop", reason="control flow") for i in range(8)),
        ),
    ),
    target("cpu:0/onnxruntime-openvino/fp32", status="failed", reason="the child was killed by signal 11"),
    plugins=(
        PluginInfo(name="npu", distribution="hal-npu", version="0.3", failure="import failed: no driver"),
    ),
    notes=("cuda:0 (cuda) cannot be used: no NVIDIA driver",),
    ratios=(
        Ratio(target=ORT, baseline=FP32, median=1.433, p10=1.39, p90=1.5, n_rounds=24),
        Ratio(target=FP32, baseline=FP32, median=1.0, p10=1.0, p90=1.0, n_rounds=24),
        Ratio(target=BF16, baseline=FP32, median=0.712, p10=0.65, p90=0.99, n_rounds=24),
    ),
)

CPU = Device(
    id="cpu:0",
    name="Example CPU",
    kind="cpu",
    silicon="numa:0",
    memory_pool="host",
    memory_bytes=24 << 30,
    precisions=("fp32", "bf16"),
)
NO_GPU = Device(
    id="cuda:0", name="NVIDIA GPU", kind="gpu", silicon="", memory_pool="", unavailable="no NVIDIA driver"
)
OPTIONS = (
    OptionSpec(name="mode", kind="str", default="eager", choices=("eager", "compiled"), help="How to run."),
    OptionSpec(name="threads", kind="int", default=2, help="Threads to use."),
    OptionSpec(name="spin", kind="bool", default=False, choices=(False, True), help="Wait busily."),
)
DISCOVERY = Discovery(
    (
        Found("cpu", CPU, OPTIONS),
        Found("openvino", msgspec.structs.replace(CPU, variant="hetero"), ()),
        Found("onnxruntime", CPU, ()),
        Found("cuda", NO_GPU, ()),
    ),
    (
        PluginInfo(name="cpu", distribution="hal-cpu", version="0.1.0"),
        PluginInfo(name="npu", distribution="hal-npu", version="0.3", failure="import failed: no driver"),
    ),
    (),
)

FINDINGS = (
    ("hal", Finding(severity="ok", subject="Python", message="3.11.2 is supported")),
    (
        "hal",
        Finding(
            severity="warning",
            subject="CPU governor",
            message="powersave keeps the clock low",
            advice="set it to performance while measuring",
        ),
    ),
    (
        "cuda",
        Finding(
            severity="problem",
            subject="NVIDIA driver",
            message="version 470 is older than CUDA 13 needs (580)",
            advice="upgrade the driver",
        ),
    ),
    ("openvino", Finding(severity="note", subject="NPU", message="none found", advice="")),
)

PLUGINS = (
    Plugin(name="cpu", distribution="hal-cpu", version="0.1.0", entry_point="hal_cpu.plugin"),
    Plugin(
        name="npu",
        distribution="hal-npu",
        version="0.3",
        entry_point="hal_npu",
        failure="the name 'npu' is claimed by hal-npu and other-npu; both are refused: uninstall one of them",
    ),
)

CHECKS = (
    CheckResult(name="claimed_support_is_true", outcome="passed", meaning="A yes compiles and answers."),
    CheckResult(
        name="inputs_are_left_alone",
        outcome="failed",
        message="cpu:0/cpu/fp32 chain: input 0 was changed\ncpu:0/cpu/bf16 chain: input 0 was changed",
        meaning="Inputs are borrowed.",
    ),
    CheckResult(name="kernel_times_are_real", outcome="skipped", message="no kernel times are offered"),
)

OUTPUTS = {
    "scores": np.array([[0.01, 0.9, 0.02]], np.float32),
    "state": np.array([1.0, np.nan, np.inf], np.float32),
    "ids": np.array([[3, 1]], np.int64),
    "label": np.array(["a", "b"]),
    "none": np.zeros((0, 4), np.float32),
}

RUN = RunResult(
    target=FP32,
    chosen_because="fastest of 3 fp32 targets, measured now",
    inputs_from="random (seed 0)",
    outputs=OUTPUTS,
)
