"""The registry: which plugins are installed, and opening one under a guard.

Listing reads metadata only. A plugin's code runs when it is opened, which hal does in a child
process (:mod:`hal.worker`), so that a plugin that crashes or hangs costs nothing but itself.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Hashable
from importlib import metadata
from typing import Any, TypeVar

import msgspec

from hal.backend import API_VERSION, Backend, BackendRef
from hal.errors import ContractViolation, HalError, NoBackend, PluginLoadError, problems
from hal.hookspecs import GROUP, Importer
from hal.host import packages_state

_log = logging.getLogger("hal.plugins")
T = TypeVar("T")

_SCHEME = "plugin:"


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """An entry point in the group ``hal.plugins``.

    Attributes:
        name: Of the entry point and the backend.
        distribution: The distribution that brings it.
        version: Of the distribution.
        entry_point: The module, as ``package.module``.
        failure: Why it is refused; empty where it is not.
    """

    name: str
    distribution: str
    version: str
    entry_point: str
    failure: str = ""


def installed() -> tuple[Plugin, ...]:
    """Installed plugins by name, from metadata alone: nothing is imported.

    ``HAL_PLUGINS``, a list of names separated by commas, restricts them; empty means none.

    Raises:
        PluginLoadError: ``HAL_PLUGINS`` names a plugin that is not installed.
    """
    found = _known(packages_state())
    allowed = _allowed(found)
    plugins = []
    for name in sorted(allowed):
        same_name = sorted(found[name].values(), key=lambda plugin: plugin.distribution)
        if len(same_name) == 1:
            plugins.append(same_name[0])
            continue
        owners = " and ".join(sorted(plugin.distribution for plugin in same_name))
        for plugin in same_name:
            reason = f"the name {name!r} is claimed by {owners}; both are refused: uninstall one of them"
            plugins.append(msgspec.structs.replace(plugin, failure=reason))
    for plugin in plugins:
        _log.debug("plugin %s from %s %s", plugin.name, plugin.distribution, plugin.version)
    return tuple(plugins)


@functools.lru_cache(maxsize=1)
def _known(state: Hashable) -> dict[str, dict[tuple[str, str], Plugin]]:
    """Plugins by name, then by distribution and module; read once for each state of the packages."""
    found: dict[str, dict[tuple[str, str], Plugin]] = defaultdict(dict)
    for entry in metadata.entry_points(group=GROUP):
        distribution, version = _owner(entry)
        plugin = Plugin(name=entry.name, distribution=distribution, version=version, entry_point=entry.value)
        # One distribution can be seen twice, for example from its folder and from site-packages.
        found[entry.name].setdefault((distribution.lower(), entry.value), plugin)
    return dict(found)


def reference(name: str) -> BackendRef:
    """Names an installed plugin's backend across a process boundary.

    Raises:
        PluginLoadError: No such plugin, or it is refused.
    """
    _find(name)
    return BackendRef(f"{_SCHEME}{name}")


def open_backend(ref: BackendRef) -> Backend:
    """Import a plugin and make its backend, in this process.

    Raises:
        NoBackend: The plugin brings none.
        PluginLoadError: Not found, or its import or its factory raised; the text has the cause.
        ContractViolation: What it returned is not a backend of this contract's version.
    """
    started_ns = time.perf_counter_ns()
    name = ref.entry_point.removeprefix(_SCHEME)
    if name != ref.entry_point:
        backend = _call_hook(_find(name), "hal_backend")
        what = f"plugin {name!r}"
        if backend is None:
            raise NoBackend(f"{what} brings no backend; it has no hook 'hal_backend'")
    else:
        what = repr(ref.entry_point)
        backend = _call(ref)
    accepted = _check(backend, what)
    if name != ref.entry_point and accepted.name != name:
        raise ContractViolation(
            f"{what} is refused: its backend calls itself {accepted.name!r}; "
            "Backend.name must be the name of the entry point"
        )
    _log.debug("opened %s in %.0f ms", what, (time.perf_counter_ns() - started_ns) / 1e6)
    return accepted


def importers() -> tuple[tuple[str, Importer], ...]:
    """Importers of framework models, opened in this process, where the model's framework lives.

    A plugin that fails to open is logged and left out: the caller's error names what was asked for.
    """
    found = []
    for plugin in installed():
        if plugin.failure:
            continue
        try:
            importer = _call_hook(plugin, "hal_importer")
        except HalError as error:
            _log.warning("plugin %s has no usable importer: %s", plugin.name, error)
            continue
        if importer is not None:
            found.append((plugin.name, importer))
    return tuple(found)


def _owner(entry: metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution, as far as its metadata can be read."""
    try:
        if entry.dist is not None and entry.dist.metadata["Name"]:
            return entry.dist.metadata["Name"], entry.dist.version
    except (AttributeError, KeyError, TypeError):  # what importlib.metadata raises for a broken folder
        _log.warning("the metadata of the distribution that brings plugin %s cannot be read", entry.name)
    return "unknown", ""


def _allowed(found: dict[str, Any]) -> set[str]:
    wanted = os.environ.get("HAL_PLUGINS")
    if wanted is None:
        return set(found)
    names = {name.strip() for name in wanted.split(",") if name.strip()}
    unknown = sorted(names - set(found))
    if unknown:
        raise PluginLoadError(
            f"HAL_PLUGINS names {', '.join(map(repr, unknown))}, not installed; "
            f"installed are {', '.join(sorted(found)) or 'none'}"
        )
    return names


def _find(name: str) -> Plugin:
    plugins = installed()
    for plugin in plugins:
        if plugin.name == name:
            if plugin.failure:
                raise PluginLoadError(f"plugin {name!r} is refused: {plugin.failure}")
            return plugin
    raise PluginLoadError(
        f"there is no plugin {name!r}; installed are {', '.join(p.name for p in plugins) or 'none'} "
        f"(entry-point group {GROUP!r}, restricted by HAL_PLUGINS)"
    )


def _call_hook(plugin: Plugin, hook: str) -> Any:
    import pluggy

    from hal import hookspecs

    manager = pluggy.PluginManager("hal")
    manager.add_hookspecs(hookspecs)
    what = f"plugin {plugin.name!r} ({plugin.distribution} {plugin.version})"
    # The boundary to a stranger's code: whatever it raises becomes one error with its reason.
    try:
        module = importlib.import_module(plugin.entry_point)
    except (Exception, SystemExit) as error:
        raise PluginLoadError(f"{what} failed to import: {_cause(error)}") from error
    try:
        manager.register(module, plugin.name)
        manager.check_pending()
        return getattr(manager.hook, hook)()
    except (Exception, SystemExit) as error:
        raise PluginLoadError(f"{what} failed in its hook {hook!r}: {_cause(error)}") from error


def _call(ref: BackendRef) -> Any:
    module_name, _, attribute = ref.entry_point.partition(":")
    if not module_name or not attribute:
        raise PluginLoadError(
            f"{ref.entry_point!r} names no backend; expected MODULE:ATTRIBUTE or {_SCHEME}NAME"
        )
    try:
        factory = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
        return factory(**ref.configuration)  # type: ignore[operator]
    except (Exception, SystemExit) as error:
        raise PluginLoadError(f"{ref.entry_point!r} failed to open: {_cause(error)}") from error


def _check(backend: Any, what: str) -> Backend:
    found = []
    if not isinstance(backend, Backend):
        raise ContractViolation(
            f"{what} returned {type(backend).__name__}; expected an instance of hal.backend.Backend"
        )
    if backend.api_version != API_VERSION:
        found.append(
            f"it was written for contract version {backend.api_version!r}, this hal has {API_VERSION!r}; "
            "upgrade whichever is older"
        )
    if not isinstance(getattr(backend, "name", None), str) or not backend.name:
        found.append("it has no name; set Backend.name to the name of its entry point")
    if found:
        raise ContractViolation(problems(f"{what} is refused", found))
    return backend


def _cause(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text}"
