"""Execution providers that are packages of their own, loaded into ONNX Runtime at run time."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Hashable, Mapping
from pathlib import Path

from hal.errors import BackendError
from hal.host import packages_state
from hal_onnxruntime.runtime import onnxruntime, tidy

_log = logging.getLogger("hal.onnxruntime")

#: More libraries: ``NAME=FILE`` pairs, separated as in ``PATH``.
ENVIRONMENT = "HAL_ONNXRUNTIME_EP_LIBRARIES"

# ONNX Runtime keeps registrations for the whole process: by name, the file, or why it failed.
_registered: dict[str, str] = {}
_failed: dict[str, str] = {}


def known_libraries(configured: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Files by registration name, from the configuration, the environment and installed packages.

    Returns:
        The files, and for each installed package that cannot name its file the reason.

    Raises:
        BackendError: The environment variable is not a list of ``NAME=FILE``.
    """
    found, broken = (dict(part) for part in _installed(packages_state()))
    for pair in filter(None, os.environ.get(ENVIRONMENT, "").split(os.pathsep)):
        name, equals, file = pair.partition("=")
        if not equals or not name or not file:
            raise BackendError(
                f"{ENVIRONMENT} holds {pair!r}; expected NAME=FILE pairs separated by {os.pathsep!r}, "
                "where FILE is an execution provider's library"
            )
        found[name] = file
    found.update(configured)
    return found, broken


def register(libraries: Mapping[str, str]) -> dict[str, str]:
    """Load libraries into ONNX Runtime, once per process.

    Returns:
        By name of those that did not load, the reason in one line.
    """
    failures: dict[str, str] = {}
    for name, file in libraries.items():
        if _registered.get(name) == file:
            continue
        if name not in _failed:
            try:
                if not Path(file).is_file():
                    raise FileNotFoundError(f"there is no file {Path(file).name}")
                onnxruntime().register_execution_provider_library(name, file)
            except Exception as error:  # noqa: BLE001 - a stranger's library; the reason is kept
                _failed[name] = f"the execution provider library {name!r} does not load: {tidy(error)}"
            else:
                _registered[name] = file
                continue
        failures[name] = _failed[name]
    return failures


@functools.lru_cache(maxsize=1)
def _installed(state: Hashable) -> tuple[dict[str, str], dict[str, str]]:
    """Provider packages follow a convention: ``-ep-`` in the name and a ``get_library_path()``.

    Reading the metadata of all packages takes tens of milliseconds, which is done once for each ``state``.

    Source: ONNX Runtime documentation, "Plugin Execution Provider Library Packaging Guidance".
    """
    found: dict[str, str] = {}
    broken: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if "-ep-" not in name:
            continue
        module = name.replace("-", "_")
        spec = importlib.util.find_spec(module)
        # Read before importing: a name is a hint, and importing a stranger's package may do anything.
        if spec is None or spec.origin is None or not _offers_library(Path(spec.origin)):
            continue
        try:
            found[name] = str(importlib.import_module(module).get_library_path())
        except Exception as error:  # noqa: BLE001 - a stranger's package; the reason is kept
            broken[name] = f"the package {name} does not name its library: {tidy(error)}"
    _log.debug("execution provider packages: %s, broken: %s", sorted(found), broken)
    return found, broken


def _offers_library(file: Path) -> bool:
    try:
        return "def get_library_path" in file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        _log.debug("%s cannot be read: %s", file.name, error)
        return False
