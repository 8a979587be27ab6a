"""Sessions over fake plugins that are saved, and machines that change before they are loaded."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hal import plugins as registry
from hal.executor.backend import Spot
from hal.graph.reference import reference_outputs
from hal.session.runner import runner_of
from hal.session.session import Session
from tests.throwaway import Plugins
from tests.unit.bundled import graph, plan_of, profile_of

ONE, TWO = "cpu:0/one/fp32", "npu:0/two/fp32"
GRAPH = graph()
X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
Y = reference_outputs(GRAPH.to_proto(), {"x": X})["y"]
SPLIT = ((ONE, ("first",)), (TWO, ("act", "last")))
WHOLE = (ONE, tuple(GRAPH.nodes))
#: A fake plugin that writes down what is asked of it.
TELLING = """
import json, pathlib
from hal.hookspecs import hookimpl
from hal.testing.fake import FakeBackend

TOLD = pathlib.Path({told!r})

class Telling(FakeBackend):
    def compile(self, device, graph, configuration):
        self.tell("compile")
        return super().compile(device, graph, configuration)

    def load_blob(self, device, blob, configuration):
        self.tell("load_blob")
        return super().load_blob(device, blob, configuration)

    def tell(self, what):
        with TOLD.open("a") as file:
            file.write(what + "\\n")

@hookimpl
def hal_backend():
    return Telling(**json.loads({configuration!r}))
"""
#: A fake plugin with an option of free text.
FREE = """
import json
from hal.backend import OptionSpec
from hal.hookspecs import hookimpl
from hal.testing.fake import FakeBackend

class Free(FakeBackend):
    def options(self, device):
        return (OptionSpec(name="cache_dir", kind="str", default="", help="A folder."),)

    def check_options(self, configuration):
        pass

@hookimpl
def hal_backend():
    return Free(**json.loads({configuration!r}))
"""
#: A fake plugin whose processor fails in each run.
FAILING = """
import json
from hal.errors import BackendError
from hal.hookspecs import hookimpl
from hal.testing.fake import FakeBackend, FakeExecutable

class Failing(FakeExecutable):
    def run(self, inputs, outputs=None):
        raise BackendError("it is too hot")

class Half(FakeBackend):
    def executable(self, device, graph, configuration):
        kind = Failing if device.kind == "cpu" else FakeExecutable
        return kind(self, device, graph, configuration)

@hookimpl
def hal_backend():
    return Half(**json.loads({configuration!r}))
"""


def add(plugins: Plugins, *names: str) -> None:
    """Install the fake plugins ``one`` (cpu:0) and ``two`` (npu:0)."""
    for name in names:
        plugins.add_fake(name, devices=[device_of(name)])


def device_of(name: str, /, **fields: Any) -> dict[str, Any]:
    known = {"one": {"id": "cpu:0", "precisions": ["fp32", "bf16"]}, "two": {"id": "npu:0"}}
    return {**known[name], **fields}


def session(
    *pieces: tuple[str, Sequence[str]], others: Sequence[str] = (TWO,), **constraints: Any
) -> Session:
    """A session over what is installed; its profile knows ``ONE`` and others."""
    plan = plan_of(GRAPH, *(pieces or SPLIT), **constraints)
    spots = {}
    for name in {target.split("/")[1] for target in plan.targets}:
        ref = registry.reference(name)
        for device in registry.open_backend(ref).discover():
            spots[f"{device.id}/{name}"] = Spot(ref=ref, device=device)
    profile = profile_of(GRAPH, ONE, *others)
    runner = runner_of(GRAPH, plan, profile, spots, constraints=plan.constraints)
    return Session(runner, GRAPH, profile)


def saved(path: Path, *pieces: tuple[str, Sequence[str]], blobs: bool = False, **constraints: Any) -> Session:
    made = session(*pieces, **constraints)
    made.save(path, blobs=blobs)
    return made


def telling(plugins: Plugins, tmp_path: Path, **fields: Any) -> Path:
    """Install ``one``, which writes down what is asked of it; the file it writes to."""
    told = tmp_path / "told"
    configuration = {"name": "one", "devices": [device_of("one")], **fields}
    plugins.add("one", TELLING.format(told=str(told), configuration=json.dumps(configuration)))
    return told


def elsewhere(plugins: Plugins, *names: str) -> None:
    """From now on only these plugins are installed."""
    plugins._names[:] = [name for name in plugins._names if name in names]
    plugins._restrict()


def forget_modules() -> None:
    """Let the plugins' modules be imported anew."""
    for name in [name for name in sys.modules if name.endswith("_module") and name.startswith("hal_")]:
        del sys.modules[name]
    importlib.invalidate_caches()
