"""Execution providers: where each computes, and the options that pin its precision."""

from __future__ import annotations

import os
import re
from typing import Any

import msgspec

#: The runtime's own kernels; every session ends with it, so that no graph is left half placed.
CPU = "CPUExecutionProvider"

#: Not a compute provider: it sends tensors to a remote endpoint and never runs a graph's nodes.
NOT_COMPUTE = ("AzureExecutionProvider",)


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """An execution provider.

    Attributes:
        name: As ONNX Runtime calls it.
        short: The device's variant; empty for the default provider.
        device: Kind of device id, for example ``cuda``.
        kind: ``cpu``, ``gpu``, ``npu`` or ``other``.
        options: Per precision that it can be held to, the provider options that do it. They are
            always given, so that no default decides.
        note: What a reader should know about its precisions.
        then: Providers tried before the CPU for nodes that this one leaves.
        counts: Whether it takes ``device_id``, so that several devices can be told apart.
        needs: Variables that must have a value for a precision to be honest.
    """

    name: str
    short: str
    device: str
    kind: str
    options: dict[str, dict[str, str]]
    note: str = ""
    then: tuple[str, ...] = ()
    counts: bool = False
    needs: dict[str, dict[str, str]] = {}

    @property
    def precisions(self) -> tuple[str, ...]:
        """What ``compile`` accepts, best first."""
        return tuple(
            precision
            for precision in self.options
            if all(os.environ.get(name) == value for name, value in self.needs.get(precision, {}).items())
        )

    def session_list(
        self, precision: str, index: int, available: list[str]
    ) -> list[tuple[str, dict[str, str]]]:
        """Providers and options for a session, in order of precedence."""
        listed = []
        for name in (self.name, *(name for name in self.then if name in available)):
            provider = self if name == self.name else provider_of(name)
            options = dict(provider.options.get(precision) or next(iter(provider.options.values())))
            if provider.counts:
                options["device_id"] = str(index)
            listed.append((name, options))
        if self.name != CPU:
            listed.append((CPU, {}))
        return listed


_CONVERT = "fp16 and bf16 would need a converted model; use a rewrite or another provider"

# Source of every option: ONNX Runtime documentation, the page of each execution provider.
_KNOWN = (
    Provider(
        name=CPU,
        short="",
        device="cpu",
        kind="cpu",
        options={"fp32": {}},
        note="fp16 is emulated by casts to fp32, and bf16 kernels are absent",
    ),
    Provider(
        name="CUDAExecutionProvider",
        short="cuda",
        device="cuda",
        kind="gpu",
        # TensorFloat-32 keeps 10 bits of mantissa and is on by default.
        options={"fp32": {"use_tf32": "0"}},
        note=_CONVERT,
        counts=True,
    ),
    Provider(
        name="TensorrtExecutionProvider",
        short="tensorrt",
        device="cuda",
        kind="gpu",
        options={
            "fp32": {"trt_fp16_enable": "0", "trt_bf16_enable": "0", "trt_int8_enable": "0"},
            "fp16": {"trt_fp16_enable": "1", "trt_bf16_enable": "0", "trt_int8_enable": "0"},
            "bf16": {"trt_fp16_enable": "0", "trt_bf16_enable": "1", "trt_int8_enable": "0"},
        },
        then=("CUDAExecutionProvider",),
        counts=True,
        # TensorRT has no provider option for TF32; NVIDIA's libraries read this variable when they load.
        # Source: NVIDIA, "Accelerating AI Training with TF32 Tensor Cores", NVIDIA_TF32_OVERRIDE.
        needs={"fp32": {"NVIDIA_TF32_OVERRIDE": "0"}},
        note="fp32 needs NVIDIA_TF32_OVERRIDE=0 in the environment: TensorRT computes it in TF32 otherwise",
    ),
    Provider(
        name="OpenVINOExecutionProvider",
        short="openvino",
        device="cpu",
        kind="cpu",
        # Without the second, OpenVINO computes in bf16 on processors that have it.
        options={
            "fp32": {"device_type": "CPU", "load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'},
            "bf16": {"device_type": "CPU", "load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}'},
        },
    ),
    Provider(
        name="QNNExecutionProvider",
        short="qnn",
        device="npu",
        kind="npu",
        options={"fp16": {"backend_type": "htp", "enable_htp_fp16_precision": "1"}},
        note="the accelerator has no fp32; it computes fp32 graphs in fp16",
    ),
    Provider(
        name="CoreMLExecutionProvider",
        short="coreml",
        device="npu",
        kind="npu",
        options={"fp16": {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"}},
        note="Core ML chooses the unit and computes in fp16 on GPU and Neural Engine",
    ),
    Provider(
        name="DmlExecutionProvider",
        short="dml",
        device="gpu",
        kind="gpu",
        options={"fp32": {}},
        note=_CONVERT,
        counts=True,
    ),
    Provider(
        name="MIGraphXExecutionProvider",
        short="migraphx",
        device="rocm",
        kind="gpu",
        options={"fp32": {"migraphx_fp16_enable": "0"}, "fp16": {"migraphx_fp16_enable": "1"}},
        counts=True,
    ),
    Provider(
        name="ROCMExecutionProvider",
        short="rocm",
        device="rocm",
        kind="gpu",
        options={"fp32": {}},
        note=_CONVERT,
        counts=True,
    ),
    Provider(
        name="WebGpuExecutionProvider",
        short="webgpu",
        device="gpu",
        kind="gpu",
        options={"fp32": {}},
        note=_CONVERT,
    ),
    Provider(name="DnnlExecutionProvider", short="dnnl", device="cpu", kind="cpu", options={"fp32": {}}),
    Provider(
        name="XnnpackExecutionProvider", short="xnnpack", device="cpu", kind="cpu", options={"fp32": {}}
    ),
)
_BY_NAME = {provider.name: provider for provider in _KNOWN}
_BY_SHORT = {provider.short: provider for provider in _KNOWN}


def provider_of(name: str, kind: str = "other") -> Provider:
    """What is known of a provider, or what can be said of a stranger's.

    Args:
        name: As ONNX Runtime calls it, or its short name.
        kind: Kind of the hardware it sits on, used for strangers only.
    """
    known = _BY_NAME.get(name) or _BY_SHORT.get(name)
    if known is not None:
        return known
    short = re.sub(r"(plugin)?executionprovider$", "", name.lower())
    return Provider(
        name=name,
        short=re.sub(r"[^a-z0-9_]+", "_", short).strip("_") or "unnamed",
        device=kind,
        kind=kind,
        options={"fp32": {}},
        note="hal knows no option that pins this provider's precision; its error is measured all the same",
    )


def hardware_kind(ep_device: Any) -> str:
    """``cpu``, ``gpu``, ``npu`` or ``other`` of an ``OrtEpDevice``."""
    name = str(ep_device.device.type).rsplit(".", 1)[-1].lower()
    return name if name in ("cpu", "gpu", "npu") else "other"
