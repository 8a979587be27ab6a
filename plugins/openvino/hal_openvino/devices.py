"""Devices as OpenVINO lists them, in hal's words."""

from __future__ import annotations

import re
from typing import Any

from hal import host
from hal.backend import Device, OptionValue
from hal.errors import BackendError, TargetError
from hal_openvino.failures import summary

_KINDS = {"CPU": "cpu", "GPU": "gpu", "NPU": "npu"}
# OpenVINO's own words for the formats a device computes in, most exact first.
_CAPABILITIES = (("FP32", "fp32"), ("BF16", "bf16"), ("FP16", "fp16"))


def discover(core: Any) -> list[Device]:
    """Every device that OpenVINO lists, and why it lists no GPU or NPU where it does not.

    Raises:
        BackendError: OpenVINO cannot list devices.
    """
    try:
        names = list(core.available_devices)
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot list devices: {summary(error)}; reinstall openvino") from error
    devices = [_describe(core, name) for name in names]
    present = {device.kind for device in devices}
    devices += [_absent(core, name) for name in ("GPU", "NPU") if _KINDS[name] not in present]
    return devices


def openvino_name(device: Device) -> str:
    """OpenVINO's name of a device that :func:`discover` returned.

    Raises:
        TargetError: It is another backend's device.
    """
    name = device.properties.get("openvino_device")
    if not name:
        raise TargetError(f"{device.id} ({device.name}) is not openvino's; expected one of its discover()")
    return str(name)


def supported_properties(core: Any, name: str) -> tuple[str, ...]:
    """Names of the properties that a device's plugin knows."""
    return tuple(core.get_property(name, "SUPPORTED_PROPERTIES"))


def _describe(core: Any, name: str) -> Device:
    kind, _, index = name.partition(".")
    family = _KINDS.get(kind, "other")
    word = family if family != "other" else "".join(c for c in kind.lower() if c.isalnum())
    identity = f"{word}:{int(index) if index.isdigit() else 0}"
    told = _told(core, name)
    capabilities = tuple(told.get("OPTIMIZATION_CAPABILITIES", ()))
    # An NPU that lists FP16 alone would compute fp32 models in fp16, so fp32 is not promised for it.
    precisions = tuple(ours for theirs, ours in _CAPABILITIES if theirs in capabilities) or ("fp32",)
    silicon = _silicon(told, identity)
    shares_host = family == "cpu" or str(told.get("DEVICE_TYPE", "")).endswith("INTEGRATED")
    return Device(
        id=identity,
        name=str(told.get("FULL_DEVICE_NAME", name)).strip(),
        kind=family,
        silicon=silicon if family != "cpu" else identity,
        memory_pool="host" if shares_host else silicon,
        memory_bytes=host.total_memory_bytes() if shares_host else _memory_bytes(told),
        precisions=precisions,
        properties=_properties(name, told, capabilities),
    )


def _told(core: Any, name: str) -> dict[str, Any]:
    """What the device answers; a property that it lists and then refuses is left out."""
    told: dict[str, Any] = {}
    wanted = {
        "FULL_DEVICE_NAME",
        "OPTIMIZATION_CAPABILITIES",
        "DEVICE_TYPE",
        "DEVICE_ARCHITECTURE",
        "DEVICE_UUID",
        "DEVICE_PCI_INFO",
        "GPU_DEVICE_TOTAL_MEM_SIZE",
        "NPU_DEVICE_TOTAL_MEM_SIZE",
        "NPU_DRIVER_VERSION",
        "NPU_COMPILER_VERSION",
    }
    for key in wanted.intersection(supported_properties(core, name)):
        try:
            told[key] = core.get_property(name, key)
        except (RuntimeError, TypeError):  # TypeError: the value has no Python form
            continue
    return told


def _silicon(told: dict[str, Any], identity: str) -> str:
    # OpenVINO writes "{domain: 0 bus: 0x3 device: 0x0 function: 0}".
    numbers = re.findall(r"0x[0-9a-fA-F]+|\d+", str(told.get("DEVICE_PCI_INFO", "")))
    if len(numbers) == 4:
        domain, bus, slot, function = (int(number, 0) for number in numbers)
        return f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"
    uuid = told.get("DEVICE_UUID")
    return f"uuid:{uuid}" if uuid else identity


def _memory_bytes(told: dict[str, Any]) -> int | None:
    for key in ("GPU_DEVICE_TOTAL_MEM_SIZE", "NPU_DEVICE_TOTAL_MEM_SIZE"):
        if key in told:
            return int(told[key])
    return None


def _properties(name: str, told: dict[str, Any], capabilities: tuple[str, ...]) -> dict[str, OptionValue]:
    import openvino

    found: dict[str, OptionValue] = {
        "openvino_device": name,
        "openvino_version": openvino.get_version(),
        "capabilities": ", ".join(capabilities),
    }
    for key in ("DEVICE_ARCHITECTURE", "NPU_DRIVER_VERSION", "NPU_COMPILER_VERSION"):
        if key in told:
            found[key.lower()] = str(told[key])
    return found


def _absent(core: Any, name: str) -> Device:
    try:
        core.get_property(name, "AVAILABLE_DEVICES")
        reason = f"OpenVINO's {name} plugin finds no device"
    except RuntimeError as error:
        reason = f"OpenVINO's {name} plugin does not load: {_library(summary(error))}"
    kind = _KINDS[name]
    return Device(
        id=f"{kind}:0",
        name=f"{name} (not found)",
        kind=kind,
        silicon=f"{kind}:0",
        memory_pool=f"{kind}:0",
        unavailable=reason,
        properties={"openvino_device": name},
    )


def _library(text: str) -> str:
    """The loader's own words, after the name of the library that it was loading."""
    return text.partition('": ')[2] or text
