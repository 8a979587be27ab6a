"""Which execution providers really work here, and on which device."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, helper

from hal import host
from hal.backend import Configuration, Device, OptionValue
from hal.errors import HalError
from hal_onnxruntime import libraries
from hal_onnxruntime.loading import Endpoint, open_session
from hal_onnxruntime.options import choices_of, session_options
from hal_onnxruntime.providers import CPU, NOT_COMPUTE, hardware_kind, provider_of
from hal_onnxruntime.runtime import native_stderr, onnxruntime, tidy

# More devices of one kind than any machine holds; the search ends at the first that does not work.
_MOST_DEVICES = 16
_NVIDIA = Path("/proc/driver/nvidia/gpus")


class Found(msgspec.Struct, frozen=True):
    """A device, and how to reach it."""

    device: Device
    endpoint: Endpoint


def discover(configured: Mapping[str, str]) -> list[Found]:
    """Providers compiled in and loaded from libraries, each proved by running a tiny model.

    Args:
        configured: Provider libraries by registration name, besides those found by themselves.

    Raises:
        BackendError: onnxruntime is missing or too old, or the environment names libraries wrongly.
    """
    package = onnxruntime()
    files, broken = libraries.known_libraries(configured)
    with native_stderr():
        broken = {**broken, **libraries.register(files)}
    # A library's provider is listed twice: as a name and as devices. Only the devices say where.
    loaded = [device for device in package.get_ep_devices() if "library_path" in device.ep_metadata]
    offered = {device.ep_name for device in loaded}
    names = [name for name in package.get_available_providers() if name not in NOT_COMPUTE]
    found = list(_compiled_in([name for name in names if name not in offered]))
    found.extend(_loaded(loaded))
    giving = {str(device.ep_metadata["library_path"]) for device in loaded}
    reasons = {
        name: f"the execution provider library {name!r} loads, but offers no device on this machine"
        for name, file in files.items()
        if name not in broken and file not in giving
    }
    found.extend(
        _missing({**broken, **reasons}, {(entry.device.id, entry.device.variant) for entry in found})
    )
    return found


def _compiled_in(names: list[str]) -> Iterator[Found]:
    for name in sorted(names, key=lambda name: (name != CPU, name)):
        provider = provider_of(name)
        for index in range(_MOST_DEVICES if provider.counts else 1):
            endpoint = Endpoint(provider, index)
            reason = _prove(endpoint)
            if reason and index:
                break
            yield Found(_device(endpoint, reason), endpoint)
            if reason:
                break


def _loaded(ep_devices: list[Any]) -> Iterator[Found]:
    counts: dict[tuple[str, str], int] = {}
    for ep_device in ep_devices:
        kind = hardware_kind(ep_device)
        provider = provider_of(ep_device.ep_name, kind)
        # A library says which hardware it sits on; a table of names need not be right for it.
        device_kind = (
            "cuda" if kind == "gpu" and ep_device.device.vendor.upper().startswith("NVIDIA") else kind
        )
        provider = msgspec.structs.replace(provider, device=device_kind, kind=kind, counts=False)
        index = counts.get((provider.name, device_kind), 0)
        counts[provider.name, device_kind] = index + 1
        endpoint = Endpoint(provider, index, ep_device)
        yield Found(_device(endpoint, _prove(endpoint)), endpoint)


def _missing(reasons: Mapping[str, str], taken: set[tuple[str, str]]) -> Iterator[Found]:
    for name, reason in reasons.items():
        endpoint = Endpoint(provider_of(name.removeprefix("onnxruntime-ep-")))
        device = _device(endpoint, reason)
        if (device.id, device.variant) in taken:
            # The same provider is compiled in as well: the library is told apart by its own name.
            device = msgspec.structs.replace(device, variant=re.sub(r"[^a-z0-9]+", "_", f"ep_{name.lower()}"))
        yield Found(device, endpoint)


def _prove(endpoint: Endpoint) -> str:
    """Why the provider does not compute 1 + 1, in one line; empty where it does."""
    provider = endpoint.provider
    options = session_options(choices_of(Configuration("fp32", (("threads", 1),))))
    reason = ""
    with native_stderr() as words:
        try:
            session = open_session(_tiny_model(), options, endpoint, provider.precisions[0])
            answer = session.run(None, {"x": np.ones(4, np.float32)})[0]
            if not np.array_equal(answer, np.full(4, 2, np.float32)):
                reason = f"computes 1 + 1 = {answer[0]}"
        except HalError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - every class of the runtime's derives from Exception only
            reason = f"fails to run a tiny model: {tidy(error)}"
    # Why a library does not load is only written to the log; the error just names the library.
    told = [tidy(line) for line in words if "with error: " in line]
    return f"{provider.name} does not load: {told[0]}" if reason and told else reason


def _tiny_model() -> bytes:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"], name="proof")], "proof", ends[:1], ends[1:]
    )
    # Old versions, so that no provider refuses the proof for being too new.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def _device(endpoint: Endpoint, unavailable: str) -> Device:
    provider, index = endpoint.provider, endpoint.index
    properties: dict[str, OptionValue] = {"provider": provider.name}
    if provider.note:
        properties["precisions"] = provider.note
    if not unavailable:
        properties["onnxruntime"] = onnxruntime().__version__
    if provider.kind == "cpu":
        name, silicon, pool = host.cpu_name(), "cpu:0", "host"
        memory: int | None = host.total_memory_bytes()
    else:
        silicon = pool = f"{provider.device}:{index}"
        name, memory = f"{provider.kind} of {provider.name}", None
        if endpoint.ep_device is not None and endpoint.ep_device.device.vendor:
            name = f"{endpoint.ep_device.device.vendor} {provider.kind}"
        if provider.device == "cuda" and len(gpus := _nvidia_gpus()) == 1:
            name, silicon, pool = gpus[0]
    return Device(
        id=f"{provider.device}:{index}",
        name=name,
        kind=provider.kind,
        silicon=silicon,
        memory_pool=pool,
        memory_bytes=memory,
        precisions=provider.precisions,
        variant=provider.short,
        unavailable=unavailable,
        properties=properties,
    )


def _nvidia_gpus() -> list[tuple[str, str, str]]:
    """Name, PCI address and UUID of each GPU, as NVIDIA's Linux driver tells them (and NVML too).

    Which of several is ``cuda:0`` the driver does not tell here, so only a single one is believed.
    """
    found = []
    for file in sorted(_NVIDIA.glob("*/information")) if _NVIDIA.is_dir() else ():
        pairs = (line.partition(":") for line in file.read_text(errors="replace").splitlines())
        facts = {key.strip(): value.strip() for key, _, value in pairs}
        if facts.get("GPU UUID"):
            found.append((facts.get("Model", "NVIDIA GPU"), file.parent.name, facts["GPU UUID"]))
    return found
