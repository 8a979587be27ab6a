"""What every part of the conformance suite stands on: the backend, its targets, and lists of problems."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, ClassVar
from unittest import SkipTest

import pluggy

from hal import hookspecs
from hal.backend import Backend, BackendRef, Configuration, Device, Executable, Support, Target, Tensor
from hal.errors import PluginLoadError
from hal.graph.difference import tensor_errors
from hal.graph.model import Graph
from hal.tensor import Array, HostTensor, as_numpy
from hal.testing.graphs import example_inputs, small_graph, true_outputs

#: Largest relative L2 error of an answer against the reference, by precision.
#: Source: unit roundoff of each format (2^-24, 2^-11, 2^-8; IEEE 754-2019 table 3.5, bfloat16 with 8 bits of
#: significand) times a few hundred roundings for fp32 and about ten for the short formats: small graphs only.
TOLERANCE: Mapping[str, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}

#: Graphs that only the precision check runs, because short formats must miss them.
EXACTING = ("exacting_matmul", "exacting_conv")

#: A graph that most backends run, tried in this order; one is enough where a check needs any.
_USUAL = ("chain", "dynamic_batch", "residual", "add", "two_outputs")


def open_plugin(ref: BackendRef) -> Backend:
    """Make the backend that a reference names, here and without judging it.

    Raises:
        PluginLoadError: No such plugin, or it failed to import or to start.
    """
    name = ref.entry_point.removeprefix("plugin:")
    try:
        if name == ref.entry_point:
            module, _, attribute = name.partition(":")
            factory = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
            return factory(**ref.configuration)  # type: ignore[operator, no-any-return]
        manager = pluggy.PluginManager("hal")
        manager.add_hookspecs(hookspecs)
        for entry in metadata.entry_points(group=hookspecs.GROUP, name=name):
            manager.register(entry.load(), name)
        backend = manager.hook.hal_backend()
    except Exception as error:
        text = f"{ref.entry_point!r} failed to open: {type(error).__name__}: {error}"
        raise PluginLoadError(text) from error
    if backend is None:
        raise PluginLoadError(
            f"there is no plugin {name!r} with a hook 'hal_backend' in the entry-point group "
            f"{hookspecs.GROUP!r}; install it, and mark a function of its module with @hookimpl"
        )
    return backend  # type: ignore[no-any-return]


class Problems:
    """Collects what is wrong, so that one run of a check tells all of it."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._where = ""

    def add(self, problem: str) -> None:
        """Note a problem of what :meth:`about` names."""
        self.found.append(f"{self._where}{problem}")

    def expect(self, holds: bool, problem: str) -> None:
        """Note a problem unless something holds."""
        if not holds:
            self.add(problem)

    @contextlib.contextmanager
    def about(self, where: str) -> Iterator[None]:
        """Name what the block looks at; whatever it raises is a problem too."""
        before, self._where = self._where, f"{where}: "
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the boundary to a stranger's code; the reason is kept
            self.add(f"raised {type(error).__name__}: {error}")
        finally:
            self._where = before

    @contextlib.contextmanager
    def expect_error(self, kind: type[Exception], what: str, names: Sequence[str] = ()) -> Iterator[None]:
        """The block must raise ``kind`` with a text that has one of ``names``."""
        try:
            yield
        except kind as error:
            if names and not any(name in str(error) for name in names):
                self.add(f"{what}: the text of {kind.__name__} names none of {list(names)}: {error}")
        except Exception as error:  # noqa: BLE001 - the boundary to a stranger's code; the reason is kept
            self.add(f"{what}: raised {type(error).__name__} ({error}); expected {kind.__name__}")
        else:
            self.add(f"{what}: was accepted; expected {kind.__name__}")

    def compare(self, truth: Sequence[Array], answers: Sequence[Tensor], tolerance: float, what: str) -> None:
        """Note every output that differs by more than ``tolerance`` (relative L2), or in type or shape."""
        self.expect(len(answers) == len(truth), f"{what}: {len(answers)} outputs; expected {len(truth)}")
        for index, (wanted, given) in enumerate(zip(truth, answers, strict=False)):
            array = as_numpy(given)
            if array.dtype != wanted.dtype or array.shape != wanted.shape:
                self.add(
                    f"{what}: output {index} is {array.dtype}{list(array.shape)}; "
                    f"expected {wanted.dtype}{list(wanted.shape)}"
                )
                continue
            error = tensor_errors(wanted, array).relative_l2
            if not error <= tolerance:
                self.add(
                    f"{what}: output {index} has a relative L2 error of {error:.3g}; allowed: {tolerance:.3g}"
                )

    def finish(self) -> None:
        """Raise one AssertionError that lists all problems, if there are any."""
        if self.found:
            raise AssertionError("\n".join(self.found))


class Suite:
    """The backend under test and ways to ask it; the checks are in subclasses.

    Attributes:
        ref: Names the backend; a subclass sets it.
        backend: A backend object to check instead.
    """

    ref: ClassVar[BackendRef | None] = None
    backend: ClassVar[Backend | None] = None

    @classmethod
    def opened(cls) -> Backend:
        """The backend, made once per class.

        Raises:
            TypeError: The class names none.
        """
        if cls.backend is None:
            if cls.ref is None:
                raise TypeError(
                    f"{cls.__name__} names no backend; set ref = BackendRef('my_module:my_backend')"
                )
            cls.backend = open_plugin(cls.ref)
        return cls.backend

    def devices(self) -> list[Device]:
        """The devices that can be used; skips the check where there are none."""
        found = list(self.opened().discover())
        usable = [device for device in found if not device.unavailable]
        if not usable:
            reasons = "; ".join(f"{device.id}: {device.unavailable}" for device in found)
            raise SkipTest(f"no device to check ({reasons or 'none discovered'})")
        return usable

    def targets(self) -> list[tuple[Device, str, str]]:
        """Every usable device with every precision, and how to write the pair."""
        return [
            (device, precision, self.written(device, precision))
            for device in self.devices()
            for precision in device.precisions
        ]

    def written(self, device: Device, precision: str) -> str:
        """A target as hal writes it."""
        configuration = Configuration(precision)
        return str(Target(device.id, self.opened().name, configuration, device.variant))

    def support(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """The backend's answers for a graph."""
        return self.opened().capability(device, graph, precision)

    def runs(self, device: Device, graph: Graph, precision: str) -> bool:
        """Whether the backend says yes to every node."""
        return all(answer.yes for answer in self.support(device, graph, precision).values())

    def usual(self, *names: str) -> list[tuple[Device, str, Graph, str]]:
        """Per usable device, its first precision and the first of the graphs that it runs; skips on none.

        Args:
            names: Graphs to try, in this order; the usual ones where none is named.
        """
        firsts: dict[tuple[str, str], tuple[Device, str, Graph, str]] = {}
        for device, precision, graph, where in self.every(*(names or _USUAL)):
            firsts.setdefault((device.id, device.variant), (device, precision, graph, where))
        return list(firsts.values())

    def every(self, *names: str) -> list[tuple[Device, str, Graph, str]]:
        """Like :meth:`usual`, with each of the graphs that the device runs (in fp32 where it has that)."""
        found = []
        for device in self.devices():
            precision = "fp32" if "fp32" in device.precisions else device.precisions[0]
            for name in names:
                graph = small_graph(name)
                if self.runs(device, graph, precision):
                    found.append((device, precision, graph, f"{self.written(device, precision)} {name}"))
        if not found:
            raise SkipTest(f"no device runs one of the graphs {', '.join(names)}")
        return found

    @contextlib.contextmanager
    def compiled(self, device: Device, graph: Graph, precision: str) -> Iterator[Executable]:
        """An executable, closed once at the end."""
        executable = self.opened().compile(device, graph, Configuration(precision))
        try:
            yield executable
        finally:
            executable.close()


def tensors(arrays: Sequence[Array]) -> list[Any]:
    """Arrays as inputs of a run: those that numpy cannot export by DLPack are wrapped."""
    return [array if array.dtype.isbuiltin == 1 else HostTensor(array) for array in arrays]


def copies(outputs: Sequence[Tensor]) -> list[Array]:
    """Outputs as arrays that nothing else can change."""
    return [as_numpy(output).copy() for output in outputs]


@functools.cache
def _known(name: str, seed: int) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    graph = small_graph(name)
    inputs = example_inputs(graph, seed)
    return tuple(inputs), tuple(true_outputs(graph, inputs))


def inputs_of(graph: Graph, seed: int = 0) -> list[Any]:
    """Fresh inputs of a small graph."""
    return tensors([array.copy() for array in _known(graph.name, seed)[0]])


def truth_of(graph: Graph, seed: int = 0) -> list[Array]:
    """What the reference answers to :func:`inputs_of`."""
    return [array.copy() for array in _known(graph.name, seed)[1]]


def tolerance(graph: Graph, precision: str) -> float:
    """The error that a precision explains, or that the graph's own short types do."""
    signature = graph.signature
    short = any(spec.dtype == "bfloat16" for spec in (*signature.inputs, *signature.outputs))
    return TOLERANCE["bf16"] if short else TOLERANCE[precision]
