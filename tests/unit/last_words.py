"""Backends that end their process with a word, or talk too much; opened in workers by test_worker."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from hal.backend import Backend
from hal.testing import FakeBackend


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
