"""Compiled blobs in bundles: used where they are trusted and fit, else the partition is compiled."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import hal
from hal import plugins as registry
from hal.backend import Configuration
from hal.errors import BackendError
from hal.executor.partitions import Piece, pieces_of
from hal.graph.model import Graph
from hal.session import bundle, bundle_blobs
from hal.session.bundle_blobs import blobs_of, key_of, version_of
from hal.testing import FakeBackend
from tests.throwaway import Plugins
from tests.unit.bundled import graph, plan_of
from tests.unit.bundling import (
    GRAPH,
    ONE,
    TELLING,
    TWO,
    WHOLE,
    X,
    Y,
    add,
    device_of,
    forget_modules,
    saved,
    telling,
)
from tests.unit.placed_backends import Noting, places


@pytest.fixture(autouse=True)
def _anew() -> None:
    """Each test has plugins of its own, of the same names."""
    forget_modules()


# --- compiled blobs --------------------------------------------------------------------------------------


def asked_when_loaded(told: Path, path: Path, **options: Any) -> list[str]:
    told.write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what changed, which other tests look at
        loaded = hal.load(path, **options)
    with loaded:
        np.testing.assert_array_equal(loaded(X), Y)
    return told.read_text().split()


def test_blobs_are_used_only_when_the_caller_trusts_the_file(plugins: Plugins, tmp_path: Path) -> None:
    told, path = telling(plugins, tmp_path), tmp_path / "m.hal"
    saved(path, WHOLE, blobs=True).close()
    (blob,) = [m for m in bundle.read(path).manifest.members if m.backend]
    assert blob.backend == "one"
    assert asked_when_loaded(told, path) == ["compile"]
    assert asked_when_loaded(told, path, blobs=True) == ["load_blob"]


def test_a_bundle_has_no_blobs_when_none_are_asked_for(plugins: Plugins, tmp_path: Path) -> None:
    told, path = telling(plugins, tmp_path), tmp_path / "m.hal"
    saved(path, WHOLE).close()
    assert not any(member.backend for member in bundle.read(path).manifest.members)
    assert asked_when_loaded(told, path, blobs=True) == ["compile"]


def test_every_partition_has_its_blob_when_there_are_several(plugins: Plugins, tmp_path: Path) -> None:
    told = telling(plugins, tmp_path)
    add(plugins, "two")
    path = tmp_path / "m.hal"
    pieces = ((ONE, ("first",)), (TWO, ("act",)), (ONE, ("last",)))
    saved(path, *pieces, blobs=True).close()
    assert [m.backend for m in bundle.read(path).manifest.members if m.backend] == ["one", "two", "one"]
    assert asked_when_loaded(told, path, blobs=True) == ["load_blob", "load_blob"]


def test_a_blob_is_rebuilt_when_the_plugin_is_another_version(plugins: Plugins, tmp_path: Path) -> None:
    told, path = telling(plugins, tmp_path), tmp_path / "m.hal"
    saved(path, WHOLE, blobs=True).close()
    plugins.upgrade("one", "1.3.0")
    assert asked_when_loaded(told, path, blobs=True) == ["compile"]


def test_a_blob_is_rebuilt_when_the_device_is_another(plugins: Plugins, tmp_path: Path) -> None:
    told, path = telling(plugins, tmp_path), tmp_path / "m.hal"
    saved(path, WHOLE, blobs=True).close()
    device = device_of("one", properties={"driver": "2"})
    configuration = json.dumps({"name": "one", "devices": [device]})
    plugins.replace("one", TELLING.format(told=str(told), configuration=configuration))
    forget_modules()
    assert asked_when_loaded(told, path, blobs=True) == ["compile"]


def test_a_blob_is_rebuilt_when_it_is_damaged(plugins: Plugins, tmp_path: Path) -> None:
    told, path = telling(plugins, tmp_path), tmp_path / "m.hal"
    saved(path, WHOLE, blobs=True).close()
    content = path.read_bytes()
    at = content.rindex(b"hal-fake\0")
    path.write_bytes(content[:at] + b"HAL" + content[at + 3 :])
    assert asked_when_loaded(told, path, blobs=True) == ["compile"]


def test_a_blob_is_rebuilt_when_the_backend_refuses_it(
    plugins: Plugins, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told, path = telling(plugins, tmp_path), tmp_path / "m.hal"
    saved(path, WHOLE, blobs=True).close()
    rewritten(path, lambda blob: b"stale")
    with caplog.at_level(logging.WARNING, "hal.session"):
        assert asked_when_loaded(told, path, blobs=True) == ["load_blob", "compile"]
    assert "one does not load its blob and compiles: a blob of 5 bytes is damaged" in caplog.text


def test_a_blob_is_rebuilt_when_it_is_of_another_graph(
    plugins: Plugins, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told, path = telling(plugins, tmp_path), tmp_path / "m.hal"
    saved(path, WHOLE, blobs=True).close()
    part = places(FakeBackend(name="one", devices=[device_of("one")]))
    other = blobs_of(_renamed(), plan_pieces(_renamed()), part)[0].content
    rewritten(path, lambda blob: other)
    with caplog.at_level(logging.WARNING, "hal.session"):
        assert asked_when_loaded(told, path, blobs=True) == ["load_blob", "compile"]
    assert "one loads a blob of another graph and compiles" in caplog.text


def _renamed() -> Graph:
    proto = GRAPH.to_proto()
    proto.graph.output[0].name = "z"
    proto.graph.node[-1].output[0] = "z"
    return Graph.load(proto)


def plan_pieces(made: Graph) -> tuple[Piece, ...]:
    return pieces_of(plan_of(made, (ONE, tuple(made.nodes))), made)


def rewritten(path: Path, change: Any) -> None:
    """Replace the content of each blob, its digest too."""
    opened = bundle.read(path, wanted=lambda _: True)
    blobs = [
        bundle.Blob(m.backend, m.key, change(opened.members[m.name]))
        for m in opened.manifest.members
        if m.backend
    ]
    contents = {name: opened.members[name] for name in bundle.names(0)}
    bundle.write(path, contents, blobs, hal_version="0.1.0", force=True)


def test_blobs_are_not_used_when_the_bundle_is_replaced_while_it_is_loaded(
    plugins: Plugins, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    telling(plugins, tmp_path)
    path = tmp_path / "m.hal"
    saved(path, WHOLE, blobs=True).close()
    with caplog.at_level(logging.WARNING, "hal.session"):
        backend = bundle_blobs.with_blobs("one", str(path), "0" * 64)
    assert type(backend).__name__ == "Telling"
    assert "was replaced while it was loaded" in caplog.text


def test_keys_differ_when_anything_that_made_the_blob_does() -> None:
    device = FakeBackend().devices[0]
    renamed = msgspec.structs.replace(device, properties={"driver": "2"})
    keys = {
        key_of("hal-one 1", device, GRAPH, Configuration()),
        key_of("hal-one 2", device, GRAPH, Configuration()),
        key_of("hal-one 1", renamed, GRAPH, Configuration()),
        key_of("hal-one 1", device, graph(scale=2.0), Configuration()),
        key_of("hal-one 1", device, GRAPH, Configuration.of("bf16")),
        key_of("hal-one 1", device, GRAPH, Configuration.of("fp32", {"threads": 1})),
    }
    assert len(keys) == 6
    assert all(len(key) == 64 for key in keys)


@pytest.mark.parametrize("abilities", [["CompiledBlob"], ["BlobLoader"], []])
def test_no_blobs_are_taken_when_a_backend_cannot_load_them_again(abilities: list[str]) -> None:
    backend = Noting(name="one", devices=[device_of("one")], abilities=abilities)
    assert blobs_of(GRAPH, plan_pieces(GRAPH), places(backend)) == []
    assert backend.alive == 0


@pytest.mark.parametrize(
    ("exported", "reason"),
    [(None, "it cannot"), (b"half of it", "a blob of 10 bytes is damaged")],
    ids=["nothing", "not loadable"],
)
def test_no_blob_is_taken_when_exporting_fails(
    exported: bytes | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = _Unable(name="one", devices=[device_of("one")])
    backend.exported = exported
    with caplog.at_level(logging.WARNING, "hal.session"):
        assert blobs_of(GRAPH, plan_pieces(GRAPH), places(backend)) == []
    assert f"one exports no blob of small that it can load: {reason}" in caplog.text


class _Unable(FakeBackend):
    exported: bytes | None = None

    def executable(self, device: Any, graph: Any, configuration: Any) -> Any:
        made = super().executable(device, graph, configuration)

        def unable() -> bytes:
            if self.exported is None:
                raise BackendError("it cannot")
            return self.exported

        made.blob = unable  # type: ignore[method-assign]
        return made


def test_versions_are_those_of_the_plugins(plugins: Plugins) -> None:
    add(plugins, "one")
    installed = registry.installed()
    assert (version_of("one", installed), version_of("nobody", installed)) == ("hal-one 1.2.3", "")
