"""A backend that does as another one, but for what a subclass does in its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from hal.backend import Backend
from hal.graph.model import Graph
from hal.records.targets import Device, OptionSpec, Support

A = TypeVar("A")


class Around(Backend):
    """Around another backend; how it compiles is the subclass's.

    Args:
        inner: The backend.
    """

    def __init__(self, inner: Backend) -> None:
        self.name, self.api_version = inner.name, inner.api_version
        self._inner = inner

    def discover(self) -> Sequence[Device]:
        """The backend's."""
        return self._inner.discover()

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """The backend's."""
        return self._inner.options(device)

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """The backend's."""
        return self._inner.capability(device, graph, precision)

    def ability(self, kind: type[A]) -> A | None:
        """The backend's."""
        return self._inner.ability(kind)
