"""What is here: every plugin asked in a child of its own, all at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from hal import plugins as registry
from hal.backend import Backend, Configuration, Device, OptionSpec, Target
from hal.errors import ContractViolation, HalError, NoBackend, TargetError, problems
from hal.plugins import Plugin
from hal.profiling.privacy import scrub
from hal.profiling.progress import Progress, Silent
from hal.records.profile import PluginInfo
from hal.records.targets import PRECISIONS, is_device_id, is_name
from hal.worker import Deadlines, WorkerBackend

_log = logging.getLogger("hal.profiling")


class Found(msgspec.Struct, frozen=True):
    """A device as a backend names it, with the options its compile understands."""

    backend: str
    device: Device
    options: tuple[OptionSpec, ...]

    def targets(self, *, compiled: bool) -> list[Target]:
        """One target per precision; with ``compiled``, the compiled mode of eager backends too."""
        made = []
        for precision in self.device.precisions:
            configurations = [Configuration.of(precision)]
            if compiled and any(o.name == "mode" and "compiled" in o.choices for o in self.options):
                configurations.append(Configuration.of(precision, {"mode": "compiled"}))
            made += [
                Target(self.device.id, self.backend, configuration, self.device.variant)
                for configuration in configurations
            ]
        return made


class Discovery(msgspec.Struct, frozen=True):
    """The devices of this machine and the plugins that were asked."""

    found: tuple[Found, ...]
    plugins: tuple[PluginInfo, ...]
    installed: tuple[Plugin, ...]

    @property
    def devices(self) -> tuple[tuple[str, Device], ...]:
        """(backend, device) pairs, the unavailable ones among them."""
        return tuple((found.backend, found.device) for found in self.found)

    def targets(self, patterns: Sequence[str] | None = None, *, compiled: bool = False) -> list[Target]:
        """The targets that can be used now.

        Args:
            patterns: Whole targets, with options if wanted, or shell patterns such as
                ``cpu:0/*/bf16``; None for all.
            compiled: Add the compiled mode of backends that run eagerly by default.

        Raises:
            TargetError: A pattern fits nothing; the text lists what is there, and why the rest is not.
        """
        from fnmatch import fnmatchcase

        usable = [f for f in self.found if not f.device.unavailable]
        everything = [target for found in usable for target in found.targets(compiled=True)]
        offered = [target for found in usable for target in found.targets(compiled=compiled)]
        if patterns is None:
            if not offered:
                nothing = "the plugins bring no devices" if self.installed else "no plugin is installed"
                raise TargetError(f"no device can be used: {self._why_not() or nothing}")
            return offered
        chosen: dict[str, Target] = {}
        for pattern in patterns:
            matching = [target for target in offered if fnmatchcase(str(target), pattern)]
            matching = matching or [target for target in everything if fnmatchcase(str(target), pattern)]
            if not matching and not set("*?[") & set(pattern):
                matching = [self._explicit(pattern, usable)]
            if not matching:
                raise TargetError(self._nothing_fits(pattern, everything))
            chosen.update((str(target), target) for target in matching)
        return list(chosen.values())

    def device(self, target: Target) -> Device:
        """The device of a target.

        Raises:
            TargetError: It is not here.
        """
        for found in self.found:
            key = (found.backend, found.device.id, found.device.variant)
            if key == (target.backend, target.device, target.variant):
                return found.device
        raise TargetError(self._nothing_fits(str(target), []))

    def _explicit(self, text: str, usable: Sequence[Found]) -> Target:
        target = Target.parse(text)
        for found in usable:
            key = (found.backend, found.device.id, found.device.variant)
            if key != (target.backend, target.device, target.variant):
                continue
            if target.configuration.precision not in found.device.precisions:
                raise TargetError(
                    f"{target.device} with {target.backend} does not compute in "
                    f"{target.configuration.precision}; it offers {', '.join(found.device.precisions)}"
                )
            return target
        everything = [t for found in usable for t in found.targets(compiled=True)]
        raise TargetError(self._nothing_fits(text, everything))

    def _nothing_fits(self, pattern: str, everything: Sequence[Target]) -> str:
        missing = self._why_not()
        return f"no target here fits {pattern!r}; available: {', '.join(map(str, everything)) or 'none'}" + (
            f"; not available: {missing}" if missing else ""
        )

    def _why_not(self) -> str:
        reasons = [
            f"{f.device.id}/{f.backend} ({f.device.unavailable})" for f in self.found if f.device.unavailable
        ]
        reasons += [f"plugin {plugin.name} ({plugin.failure})" for plugin in self.plugins if plugin.failure]
        restriction = os.environ.get("HAL_PLUGINS")
        if restriction is not None:
            reasons.append(f"HAL_PLUGINS restricts the plugins to {restriction.strip() or 'none'}")
        return "; ".join(reasons)


def discover(
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    deadlines: Deadlines | None = None,
) -> Discovery:
    """Ask every plugin for its devices.

    Args:
        names: Plugins to ask; None for all installed.
        progress: Told of each plugin that has answered.
        deadlines: For each plugin's steps; a plugin that hangs is reported when they pass.

    Raises:
        PluginLoadError: A name in ``names`` or ``HAL_PLUGINS`` is not installed.
    """
    progress = progress or Silent()
    installed = registry.installed()
    for name in names or ():
        registry.reference(name)
    wanted = [plugin for plugin in installed if names is None or plugin.name in names]
    progress.stage(f"asking {len(wanted)} plugins for devices")
    found: list[Found] = []
    infos: list[PluginInfo] = []
    # Importing frameworks is mostly waiting for disks and loaders; the children share the cores.
    with ThreadPoolExecutor(max_workers=max(len(wanted), 1)) as pool:
        answers = pool.map(lambda plugin: _ask(plugin, deadlines), wanted)
        for n_done, (plugin, (devices, failure)) in enumerate(zip(wanted, answers, strict=True), 1):
            found.extend(devices)
            infos.append(
                PluginInfo(
                    name=plugin.name,
                    distribution=plugin.distribution,
                    version=plugin.version,
                    failure=scrub(failure),
                )
            )
            progress.advance(n_done, len(wanted))
    return Discovery(tuple(found), tuple(infos), installed)


def _ask(plugin: Plugin, deadlines: Deadlines | None) -> tuple[list[Found], str]:
    if plugin.failure:
        return [], plugin.failure
    try:
        ref = registry.reference(plugin.name)
        with WorkerBackend(ref, deadlines=deadlines) as backend:
            devices = backend.discover()
            _check_devices(backend.name, devices)
            return [Found(backend.name, device, _options(backend, device)) for device in devices], ""
    except NoBackend:  # it only imports models, as hal-torch does: no failure
        return [], ""
    except HalError as error:
        _log.warning("plugin %s: %s", plugin.name, error)
        return [], error.message


def _check_devices(backend: str, devices: Sequence[Device]) -> None:
    """Refuse devices that no target could name.

    Raises:
        ContractViolation: Names every device and what is wrong with it.
    """
    found, seen = [], set()
    for device in devices:
        if not is_device_id(device.id):
            found.append(f"device {device.id!r}: its id must be KIND:INDEX, for example cpu:0")
        if unknown := [precision for precision in device.precisions if precision not in PRECISIONS]:
            found.append(f"device {device.id!r}: unknown precisions {unknown}; known are {list(PRECISIONS)}")
        if device.variant and not is_name(device.variant):
            found.append(
                f"device {device.id!r}: variant {device.variant!r} must be lower-case letters and digits"
            )
        if (device.id, device.variant) in seen:
            found.append(f"device {device.id!r} with variant {device.variant!r} is listed twice")
        seen.add((device.id, device.variant))
    if found:
        raise ContractViolation(problems(f"backend {backend!r} discovered devices hal cannot use", found))


def _options(backend: Backend, device: Device) -> tuple[OptionSpec, ...]:
    return () if device.unavailable else tuple(backend.options(device))
