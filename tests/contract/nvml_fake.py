"""NVIDIA's management library, written by hand: the functions of pynvml that hal_cuda calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Error(Exception):
    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


NOT_SUPPORTED = (3, "Not Supported")


class FakeNvml:
    """GPUs as dicts; a value that is a tuple (code, text) is raised.

    Args:
        gpus: Per GPU: name, uuid, pci, and readings; ``slices`` lists MIG slices in the same form.
        init: Raised by nvmlInit.
    """

    NVMLError = Error
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, *gpus: dict[str, Any], init: tuple[int, str] | None = None) -> None:
        self.gpus, self.init = gpus, init
        self.driver: Any = b"550.54"
        self.cuda: Any = 12040
        self.count: Any = len(gpus)

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init:
            raise Error(*self.init)

    def nvmlSystemGetDriverVersion(self) -> Any:  # noqa: N802
        return _tell(self.driver)

    def nvmlSystemGetCudaDriverVersion(self) -> Any:  # noqa: N802
        return _tell(self.cuda)

    def nvmlDeviceGetCount(self) -> Any:  # noqa: N802
        return _tell(self.count)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        if "lost" in self.gpus[index]:
            raise Error(15, "GPU is lost")
        return self.gpus[index]

    def nvmlDeviceGetPciInfo(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return SimpleNamespace(busId=_tell(handle.get("pci", NOT_SUPPORTED)))

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        used = _tell(handle.get("used", NOT_SUPPORTED))
        return SimpleNamespace(used=used, total=handle["total"])

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: dict[str, Any]) -> int:  # noqa: N802
        return int(_tell(handle.get("energy", NOT_SUPPORTED)))

    def nvmlDeviceGetUtilizationRates(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=_tell(handle.get("load", NOT_SUPPORTED)))

    def nvmlDeviceGetTemperature(self, handle: dict[str, Any], sensor: int) -> Any:  # noqa: N802
        return _tell(handle.get("celsius", NOT_SUPPORTED))

    def nvmlDeviceGetClockInfo(self, handle: dict[str, Any], kind: int) -> Any:  # noqa: N802
        return _tell(handle.get("mhz", NOT_SUPPORTED))

    def nvmlDeviceGetMaxClockInfo(self, handle: dict[str, Any], kind: int) -> Any:  # noqa: N802
        return _tell(handle.get("max_mhz", NOT_SUPPORTED))

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        if "slices" not in handle:
            raise Error(*NOT_SUPPORTED)
        return [int(bool(handle["slices"])), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], index: int) -> Any:  # noqa: N802
        if index >= len(handle["slices"]):
            raise Error(6, "Not Found")
        return handle["slices"][index]

    def nvmlDeviceGetEccMode(self, handle: dict[str, Any]) -> Any:  # noqa: N802
        return [_tell(handle.get("ecc", NOT_SUPPORTED)), 0]

    def __getattr__(self, name: str) -> Any:
        keys = {
            "nvmlDeviceGetName": "name",
            "nvmlDeviceGetUUID": "uuid",
            "nvmlDeviceGetPowerUsage": "power",
            "nvmlDeviceGetEnforcedPowerLimit": "power_limit",
            "nvmlDeviceGetPersistenceMode": "persistence",
            "nvmlDeviceGetCurrentClocksThrottleReasons": "reasons",  # as before driver 535
        }
        if name not in keys:
            raise AttributeError(name)
        return lambda handle: _tell(handle.get(keys[name], NOT_SUPPORTED))


def _tell(value: Any) -> Any:
    if isinstance(value, tuple):
        raise Error(*value)
    return value
