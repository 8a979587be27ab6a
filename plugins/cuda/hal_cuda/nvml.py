"""What NVIDIA's management library (NVML) tells of the GPUs, each reading guarded by itself.

Source: NVIDIA, "NVML API Reference Guide": device queries, MIG management, clocks event reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hal.errors import BackendError

#: Reasons for lowered clocks that say something is wrong or limited; idle and user settings do not.
#: Source: NVML API Reference Guide, "nvmlClocksEventReasons".
_SLOWED = {
    0x0004: "power limit",
    0x0008: "hardware slowdown",
    0x0020: "software thermal slowdown",
    0x0040: "hardware thermal slowdown",
    0x0080: "power brake",
}


class NvmlFailure(BackendError):
    """NVML cannot be used; the text is the reason in one line."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a slice of one where MIG is on.

    Attributes:
        handle: NVML's handle.
        name: The maker's name.
        uuid: ``GPU-...`` or ``MIG-...``.
        pci: PCI address of the chip, ``0000:0b:00.0``; empty where NVML does not tell.
        is_mig: Whether this is a slice.
    """

    handle: Any
    name: str
    uuid: str
    pci: str
    is_mig: bool = False

    @property
    def silicon(self) -> str:
        """Identity of the compute: a slice's own, else the PCI address."""
        return self.uuid if self.is_mig or not self.pci else self.pci


@dataclass(frozen=True)
class Readings:
    """Values that NVML told, and why it did not tell the others.

    Attributes:
        values: By name; integers with the unit as suffix, or a text or yes and no.
        missing: Reason by name.
    """

    values: dict[str, int | str | bool]
    missing: dict[str, str]

    def numbers(self) -> dict[str, int]:
        """Only what is a number."""
        return {
            name: value
            for name, value in self.values.items()
            if isinstance(value, int) and not isinstance(value, bool)
        }


class Nvml:
    """A session with NVML, which lasts as long as the process.

    Args:
        api: The module ``pynvml``, or an object with its functions; None imports it.

    Raises:
        NvmlFailure: The module, the library or the driver is missing or refuses.
    """

    def __init__(self, api: Any = None) -> None:
        if api is None:
            try:
                import pynvml
            except ImportError as error:
                raise NvmlFailure(f"pynvml cannot be imported ({error}); install nvidia-ml-py") from error
            api = pynvml
        self._api = api
        try:
            api.nvmlInit()
        except api.NVMLError as error:
            raise NvmlFailure(self._reason(error)) from error

    def system(self) -> Readings:
        """``driver``, a text, and ``cuda_version``, the newest CUDA it supports (12040 is 12.4)."""
        api = self._api
        return self._readings(
            {
                "driver": lambda: _text(api.nvmlSystemGetDriverVersion()),
                "cuda_version": lambda: int(api.nvmlSystemGetCudaDriverVersion()),
            }
        )

    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU; where MIG is on, its slices instead.

        Raises:
            NvmlFailure: NVML cannot count them.
        """
        try:
            n_gpus = self._api.nvmlDeviceGetCount()
        except self._api.NVMLError as error:
            raise NvmlFailure(self._reason(error)) from error
        found: list[Gpu] = []
        for index in range(n_gpus):
            try:
                whole = self._gpu(self._api.nvmlDeviceGetHandleByIndex(index))
            except self._api.NVMLError:
                continue  # lost, or no permission: PyTorch does not list it either
            found.extend(self._slices(whole) or (whole,))
        return tuple(found)

    def readings(self, gpu: Gpu) -> Readings:
        """Current power, temperature, clock, memory and load, with the units as suffixes."""
        api, handle = self._api, gpu.handle
        return self._readings(
            {
                "power_mw": lambda: int(api.nvmlDeviceGetPowerUsage(handle)),
                "temperature_celsius": lambda: int(
                    api.nvmlDeviceGetTemperature(handle, api.NVML_TEMPERATURE_GPU)
                ),
                "clock_hz": lambda: 1_000_000 * int(api.nvmlDeviceGetClockInfo(handle, api.NVML_CLOCK_SM)),
                "memory_used_bytes": lambda: int(api.nvmlDeviceGetMemoryInfo(handle).used),
                "utilisation_percent": lambda: int(api.nvmlDeviceGetUtilizationRates(handle).gpu),
                # Since the driver was loaded; Volta and later.
                "energy_total_mj": lambda: int(api.nvmlDeviceGetTotalEnergyConsumption(handle)),
            }
        )

    def settings(self, gpu: Gpu) -> Readings:
        """What changes rarely: memory size, ECC, persistence, MIG, and why clocks are lowered."""
        api, handle = self._api, gpu.handle
        return self._readings(
            {
                "memory_total_bytes": lambda: int(api.nvmlDeviceGetMemoryInfo(handle).total),
                "clock_max_hz": lambda: (
                    1_000_000 * int(api.nvmlDeviceGetMaxClockInfo(handle, api.NVML_CLOCK_SM))
                ),
                "power_limit_mw": lambda: int(api.nvmlDeviceGetEnforcedPowerLimit(handle)),
                "ecc": lambda: bool(api.nvmlDeviceGetEccMode(handle)[0]),
                "persistence": lambda: bool(api.nvmlDeviceGetPersistenceMode(handle)),
                "slowed_by": lambda: self._slowed_by(handle),
            }
        )

    def _gpu(self, handle: Any) -> Gpu:
        told = self._readings(
            {
                "name": lambda: _text(self._api.nvmlDeviceGetName(handle)),
                "uuid": lambda: _text(self._api.nvmlDeviceGetUUID(handle)),
                "pci": lambda: _pci(_text(self._api.nvmlDeviceGetPciInfo(handle).busId)),
            }
        ).values
        return Gpu(
            handle, str(told.get("name", "NVIDIA GPU")), str(told.get("uuid", "")), str(told.get("pci", ""))
        )

    def _slices(self, whole: Gpu) -> tuple[Gpu, ...]:
        api = self._api
        try:
            if api.nvmlDeviceGetMigMode(whole.handle)[0] != api.NVML_DEVICE_MIG_ENABLE:
                return ()
            n_slices = api.nvmlDeviceGetMaxMigDeviceCount(whole.handle)
        except api.NVMLError:
            return ()  # GPUs without MIG answer "Not Supported"
        found = []
        for index in range(n_slices):
            try:
                handle = api.nvmlDeviceGetMigDeviceHandleByIndex(whole.handle, index)
                name, uuid = _text(api.nvmlDeviceGetName(handle)), _text(api.nvmlDeviceGetUUID(handle))
            except api.NVMLError:
                continue  # a place where no slice was made
            found.append(Gpu(handle, name, uuid, whole.pci, is_mig=True))
        return tuple(found)

    def _slowed_by(self, handle: Any) -> str:
        # Renamed in driver 535; older modules have the old name only.
        read = getattr(self._api, "nvmlDeviceGetCurrentClocksEventReasons", None)
        reasons = int((read or self._api.nvmlDeviceGetCurrentClocksThrottleReasons)(handle))
        return ", ".join(text for bit, text in _SLOWED.items() if reasons & bit)

    def _readings(self, wanted: dict[str, Callable[[], int | str | bool]]) -> Readings:
        values: dict[str, int | str | bool] = {}
        missing: dict[str, str] = {}
        for name, read in wanted.items():
            try:
                values[name] = read()
            except self._api.NVMLError as error:
                missing[name] = str(error)
        return Readings(values, missing)

    def _reason(self, error: Any) -> str:
        if error.value == self._api.NVML_ERROR_LIBRARY_NOT_FOUND:
            return "no NVIDIA driver (libnvidia-ml was not found)"
        return f"the NVIDIA driver answers with error {error.value}: {error}"


def same(uuid: str, other: str) -> bool:
    """Whether two UUIDs name one device; PyTorch leaves out the prefix ``GPU-`` or ``MIG-``."""
    short, other_short = (text.lower().removeprefix("gpu-").removeprefix("mig-") for text in (uuid, other))
    return bool(short) and short == other_short


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _pci(bus_id: str) -> str:
    """``00000000:0B:00.0`` as Linux writes it, ``0000:0b:00.0``."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}" if rest else bus_id.lower()
