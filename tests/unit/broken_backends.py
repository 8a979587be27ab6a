"""Backends with faults that FakeBackend has not; opened in workers and throwaway plugins."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

from hal.backend import Backend, Configuration, Device, Signature, TensorSpec
from hal.graph.model import Graph
from hal.testing import FakeBackend
from hal.testing.fake import FakeExecutable


def leave() -> NoReturn:
    sys.stderr.write("goodbye\n")
    sys.stderr.flush()
    os._exit(3)


class Untyped(FakeBackend):
    """Answers with what is not plain data, and with plain data of a wrong type."""

    def discover(self):  # type: ignore[no-untyped-def]
        return [object()]

    def options(self, device):  # type: ignore[no-untyped-def]
        return ["threads"]


def chatty() -> Backend:
    os.write(1, b"hello from native code\n")
    print("hello from Python")
    return FakeBackend()


class Generous(FakeBackend):
    """Returns one output more than its graph has."""

    def executable(self, device: Device, graph: Graph, configuration: Configuration) -> FakeExecutable:
        class One(FakeExecutable):
            def run(self, inputs, outputs=None):  # type: ignore[no-untyped-def]
                return [*super().run(inputs, outputs), inputs[0]]

        return One(self, device, graph, configuration)


class Renaming(FakeBackend):
    """Gives its executables outputs of another name."""

    def executable(self, device: Device, graph: Graph, configuration: Configuration) -> FakeExecutable:
        class Other(FakeExecutable):
            @property
            def signature(self) -> Signature:
                known = super().signature
                return Signature(known.inputs, (TensorSpec("other", "float32", (1,)),))

        return Other(self, device, graph, configuration)


class Forking(FakeBackend):
    """Dies while a process that it forked holds on to everything it had open."""

    def discover(self):  # type: ignore[no-untyped-def]
        if os.fork() == 0:
            threading.Event().wait()
        os._exit(9)


class OddDevices(FakeBackend):
    """Discovers devices that no target could name."""

    def discover(self):  # type: ignore[no-untyped-def]
        known = {"name": "x", "kind": "cpu", "silicon": "x", "memory_pool": "x"}
        return [
            Device(id="CPU", **known),
            Device(id="cpu:0", precisions=("int4",), **known),
            Device(id="cpu:0", variant="A B", **known),
            Device(id="cpu:0", **known),
        ]
