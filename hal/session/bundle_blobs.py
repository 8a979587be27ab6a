"""Compiled partitions in bundles: taken at the seam where a backend compiles, and given back there.

A blob is code of a native runtime, and no runtime reads a stranger's safely. A digest inside the same file
tells damage, not who wrote it. So blobs are read only where the caller says that the file is to be trusted,
and even then used only where all they were made by and for is the same here: else the partition is compiled.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from hal import host, plugins
from hal.backend import (
    Backend,
    BackendRef,
    BlobLoader,
    CompiledBlob,
    Configuration,
    Device,
    Executable,
)
from hal.errors import BundleError, PluginError, StorageError
from hal.executor.executor import Place, compile_plan
from hal.executor.partitions import Piece
from hal.graph.model import Graph
from hal.planning.twins import SPINNING
from hal.session import bundle
from hal.session.around import Around

A = TypeVar("A")
_log = logging.getLogger("hal.session")


def key_of(version: str, device: Device, graph: Graph, configuration: Configuration) -> str:
    """What a blob was made by and for, as a digest: 64 hexadecimal digits.

    Args:
        version: Of the plugin.
        device: As the backend tells of it now, with the versions of driver and runtime in its properties.
        graph: The partition.
        configuration: As it was given to the backend. Whether idle threads spin is left out: that depends on
            which other sessions are open, and is no matter of code.
    """
    options = {name: value for name, value in configuration.options if name != SPINNING}
    code = Configuration.of(configuration.precision, options)
    said = (version, device, host.cpu_features(), graph.digest, code)
    return hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


def version_of(backend: str, installed: Sequence[plugins.Plugin]) -> str:
    """Distribution and version of a backend's plugin, from metadata; empty where none has the name."""
    found = (plugin for plugin in installed if plugin.name == backend)
    return next((f"{plugin.distribution} {plugin.version}" for plugin in found), "")


def blobs_of(graph: Graph, pieces: Sequence[Piece], places: Mapping[str, Place]) -> list[bundle.Blob]:
    """Compile the partitions of a plan once more and take what their backends export.

    Partitions whose backend exports nothing, or nothing that it loads again, are left out.

    Args:
        graph: Of the plan; where it is compiled as a whole, from bytes, so that a blob refers to no file.
        pieces: Of the plan.
        places: Of their targets.

    Raises:
        PluginError: A backend cannot compile its partition.
    """
    found: list[bundle.Blob] = []
    taking = {
        end: Place(place.ref, _Taking(place.backend, found), place.device) for end, place in places.items()
    }
    compile_plan(graph, pieces, taking).close()
    return found


def ref_with_blobs(backend: str, path: str, opened: bundle.Opened) -> BackendRef:
    """Names a backend that loads its partitions from a bundle where it can.

    Args:
        backend: An installed plugin's.
        path: The bundle's, absolute.
        opened: The bundle as it was read; it must still be the same when the backend is opened.
    """
    return BackendRef(f"{__name__}:with_blobs", {"backend": backend, "path": path, "digest": opened.digest})


def with_blobs(backend: str, path: str, digest: str) -> Backend:
    """What :func:`ref_with_blobs` names. Where the blobs cannot be had any more, all is compiled.

    Raises:
        PluginError: The backend cannot be opened.
    """
    opened = plugins.open_backend(plugins.reference(backend))
    try:
        found = bundle.read(path, wanted=lambda member: member.backend == backend)
    except (BundleError, StorageError) as error:
        _log.warning("blobs are not used: %s", error)
        return opened
    if found.digest != digest:
        _log.warning("blobs are not used: %r was replaced while it was loaded", path)
        return opened
    keys = {member.key: member.name for member in found.manifest.members if member.backend == backend}
    return _Giving(opened, {key: found.members[name] for key, name in keys.items()})


class _Keyed(Around):
    """A backend whose blobs are known by its version."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self._version = version_of(inner.name, plugins.installed())


class _Taking(_Keyed):
    """Exports what it compiles."""

    def __init__(self, inner: Backend, found: list[bundle.Blob]) -> None:
        super().__init__(inner)
        self._found = found

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        executable = self._inner.compile(device, graph, configuration)
        able, loader = executable.ability(CompiledBlob), self._inner.ability(BlobLoader)
        if able is None or loader is None:
            return executable
        try:
            content = able.blob()
            # What refers to a file of this machine, or is half exported, must not be found out later.
            loader.load_blob(device, content, configuration).close()
        except PluginError as error:
            _log.warning("%s exports no blob of %s that it can load: %s", self.name, graph.name, error)
            return executable
        key = key_of(self._version, device, graph, configuration)
        self._found.append(bundle.Blob(self.name, key, content))
        return executable


class _Giving(_Keyed):
    """Loads what it has a blob of, and compiles all else."""

    def __init__(self, inner: Backend, blobs: Mapping[str, bytes]) -> None:
        super().__init__(inner)
        self._blobs = dict(blobs)

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        # Each is wanted once; what is compiled after a failure is compiled anew.
        blob = self._blobs.pop(key_of(self._version, device, graph, configuration), None)
        loader = self._inner.ability(BlobLoader)
        if blob is not None and loader is not None:
            try:
                executable = loader.load_blob(device, blob, configuration)
            except PluginError as error:
                _log.warning("%s does not load its blob and compiles: %s", self.name, error)
            else:
                if executable.signature == graph.signature:
                    _log.debug("%s loaded its blob of %s", self.name, graph.name)
                    return executable
                _log.warning("%s loads a blob of another graph and compiles", self.name)
                executable.close()
        return self._inner.compile(device, graph, configuration)
