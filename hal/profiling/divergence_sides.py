"""The two sides of a comparison: targets in child processes, or hal's reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from hal.backend import Backend, Configuration, Device
from hal.errors import PluginError
from hal.graph.difference import TensorError, tensor_errors
from hal.graph.model import Graph
from hal.graph.reference import reference_outputs
from hal.profiling.progress import Progress
from hal.tensor import Array, as_numpy
from hal.worker import WorkerBackend

#: Name of hal's reference where a target is expected.
REFERENCE = "reference"
#: Seconds the reference may take for one graph. Source: as for profiles, see :mod:`hal.profiling.engine`.
_REFERENCE_S = 600
#: Weights a child may have been given before a new one takes its place: each part of a model that it was
#: sent lies in a temporary file until it ends. Source: a fraction of the free disk of the smallest machine
#: hal is tested on (20 GB), and a new child takes seconds.
_RESTART_BYTES = 2 << 30


class Side(Protocol):
    """Computes graphs.

    Attributes:
        name: As the user wrote it.
        precision: What it computes in.
    """

    name: str
    precision: str

    def answers(self, graph: Graph, inputs: Sequence[Array]) -> list[Array]:
        """The outputs of a graph.

        Raises:
            HalError: It cannot compute them; the side can be asked again.
        """
        ...

    def close(self) -> None:
        """Release everything. A second call does nothing."""
        ...


class TargetSide:
    """A target.

    Args:
        name: As the user wrote it.
        device: Its device.
        configuration: Its configuration.
        open_backend: Starts its backend; called again where that has died.
        restart_bytes: Weights after which it is started anew.
    """

    def __init__(
        self,
        name: str,
        device: Device,
        configuration: Configuration,
        open_backend: Callable[[], Backend],
        *,
        restart_bytes: int = _RESTART_BYTES,
    ) -> None:
        self.name, self.precision = name, configuration.precision
        self._device, self._configuration, self._start = device, configuration, open_backend
        self._backend: Backend | None = None
        self._restart_bytes, self._sent_bytes = restart_bytes, 0

    def answers(self, graph: Graph, inputs: Sequence[Array]) -> list[Array]:
        """See :class:`Side`."""
        executable = self._open(graph).compile(self._device, graph, self._configuration)
        try:
            return [np.array(as_numpy(output), order="C") for output in executable.run(inputs)]
        finally:
            if self._is_alive():
                executable.close()

    def close(self) -> None:
        """See :class:`Side`."""
        if isinstance(self._backend, WorkerBackend):
            self._backend.close()
        self._backend = None

    def _open(self, graph: Graph) -> Backend:
        if not self._is_alive() or self._sent_bytes + graph.weight_bytes > self._restart_bytes:
            self.close()
        if self._backend is None:
            self._backend, self._sent_bytes = self._start(), 0
        self._sent_bytes += graph.weight_bytes
        return self._backend

    def _is_alive(self) -> bool:
        return not isinstance(self._backend, WorkerBackend) or self._backend.alive


class ReferenceSide:
    """hal's reference, in this process.

    Args:
        progress: Told of each node.
    """

    name, precision = REFERENCE, "fp32"

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def answers(self, graph: Graph, inputs: Sequence[Array]) -> list[Array]:
        """See :class:`Side`."""
        named = {spec.name: array for spec, array in zip(graph.signature.inputs, inputs, strict=True)}
        found = reference_outputs(
            graph.to_proto(), named, progress=self._progress.advance, limit_s=_REFERENCE_S
        )
        return [found[spec.name] for spec in graph.signature.outputs]

    def close(self) -> None:
        """Does nothing."""


class Pair:
    """Two sides, compared.

    Args:
        first: As the user wrote them.
        second: The other.

    Attributes:
        sides: Both.
        base: The one that differences are measured against: the reference if it is one, else the first.
        shapes: Of every value that ``base`` computed so far, by name.
    """

    def __init__(self, first: Side, second: Side) -> None:
        self.sides = (first, second)
        self.base = second if second.name == REFERENCE else first
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._other = first if self.base is second else second

    def compare(self, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, TensorError]:
        """How far each output of a graph is apart.

        Args:
            graph: What both compute.
            inputs: Its inputs by name; further ones are left aside.

        Raises:
            PluginError: A side cannot compute it; the text names the side.
            HalError: The reference cannot.
        """
        expected = self.answers(self.base, graph, inputs)
        answered = self.answers(self._other, graph, inputs)
        return {
            spec.name: tensor_errors(np.asarray(wanted), np.asarray(got))
            for spec, wanted, got in zip(graph.signature.outputs, expected, answered, strict=True)
        }

    def answers(self, side: Side, graph: Graph, inputs: Mapping[str, Array]) -> list[Array]:
        """What one side computes; see :meth:`compare`."""
        try:
            found = side.answers(graph, [inputs[spec.name] for spec in graph.signature.inputs])
        except PluginError as error:
            raise type(error)(f"{side.name} cannot compute {graph.name!r}: {error.message}") from error
        if side is self.base:
            names = [spec.name for spec in graph.signature.outputs]
            self.shapes.update({name: array.shape for name, array in zip(names, found, strict=True)})
        return found

    def close(self) -> None:
        """Close both sides."""
        for side in self.sides:
            side.close()


__all__ = ["REFERENCE", "Pair", "ReferenceSide", "Side", "TargetSide"]
