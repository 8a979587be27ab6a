"""The plugin contract: what a backend is to hal, and nothing else.

A stranger's plugin imports this module, :mod:`hal.hookspecs`, :mod:`hal.graph`, :mod:`hal.tensor`,
:mod:`hal.errors`, :mod:`hal.host`, :mod:`hal.clock` and :mod:`hal.testing`; hal's own plugins may use no
more.

Ownership and threads, once for all methods:

* A Backend belongs to one process. hal calls its methods from one thread at a time unless the
  docstring says otherwise. Any method may block; each call runs under a deadline of the caller.
* An Executable is owned by whoever compiled it and lives until ``close``; it may be used after
  its Backend object is forgotten.
* Tensors passed in are borrowed for the call: they are never written and never kept. Tensors
  returned are owned by the caller and stay valid after later runs and after ``close``.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import msgspec

from hal.records.targets import (
    PRECISIONS,
    BackendRef,
    Configuration,
    Device,
    Fallback,
    OptionSpec,
    OptionValue,
    Signature,
    Support,
    Target,
    TensorSpec,
)
from hal.tensor import Tensor

if TYPE_CHECKING:
    from hal.clock import Clock
    from hal.graph.model import Graph

__all__ = [
    "API_VERSION",
    "PRECISIONS",
    "AsyncRun",
    "Backend",
    "BackendRef",
    "BlobLoader",
    "CompiledBlob",
    "Configuration",
    "Device",
    "DeviceTensors",
    "DeviceTime",
    "Diagnosis",
    "DynamicShapes",
    "Executable",
    "Fallback",
    "Finding",
    "Kernel",
    "KernelRuns",
    "KernelTimes",
    "MemoryUse",
    "OptionSpec",
    "OptionValue",
    "OwnClock",
    "Pending",
    "Placements",
    "Signature",
    "Support",
    "Target",
    "Telemetry",
    "Tensor",
    "TensorSpec",
]

#: Version of this contract. A plugin states the version it was written for; hal refuses others.
#: It is raised when an existing plugin would stop working; abilities are added without raising it.
API_VERSION = 1

A = TypeVar("A")


class Executable(abc.ABC):
    """A graph compiled for one target."""

    @property
    @abc.abstractmethod
    def signature(self) -> Signature:
        """Inputs and outputs by position, in the order of the graph's."""

    @abc.abstractmethod
    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """Run once; returns when the outputs can be read.

        An output of one run may be passed as an input of a later run of any executable of the same
        backend without leaving the device (key-value caches, recurrent state).

        Args:
            inputs: One tensor per input, by position, of the signature's type and shape, on the
                host or on this executable's device.
            outputs: Tensors to write the results into, contiguous and of the right type and shape;
                None lets the backend allocate.

        Returns:
            One tensor per output; the given ones where ``outputs`` was given.

        Raises:
            InputError: Wrong count, type or shape; the text names the input.
            BackendError: The runtime failed.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release everything. A second call does nothing; ``run`` after it raises BackendError."""

    def ability(self, kind: type[A]) -> A | None:
        """This object as one of the optional protocols below, or None. Asked once, at open."""
        return self if isinstance(self, kind) else None


class Backend(abc.ABC):
    """A runtime that compiles graphs for devices.

    Attributes:
        name: ``snake_case``, equal to the name of the entry point.
        api_version: The :data:`API_VERSION` the plugin was written for.
    """

    name: str
    api_version: int = API_VERSION

    @abc.abstractmethod
    def discover(self) -> Sequence[Device]:
        """The devices this backend could use on this machine, one entry per variant.

        A device that is there but cannot be used, or that is looked for and not found, is listed
        with ``unavailable`` set to the reason in one line, so that nobody has to guess.

        Raises:
            BackendError: Looking itself failed.
        """

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """The options that ``compile`` understands for a device; none by default."""
        return ()

    @abc.abstractmethod
    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """For each node of the graph, by name: whether it can run on the device.

        The whole graph is asked at once, because runtimes answer that way. A yes is a promise: the
        conformance suite checks that a graph of supported nodes compiles and answers rightly. This
        neither compiles nor allocates on the device.
        """

    @abc.abstractmethod
    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        """Compile a graph whose dimensions are all bound.

        Precision is exactly the configuration's: with ``fp32`` nothing computes in less than IEEE
        fp32, whatever the runtime's default is.

        Raises:
            UnsupportedGraph: Nodes are not supported; the text names them and the reasons.
            TargetError: An option is unknown or its value is not legal.
            BackendError: The runtime failed.
        """

    def ability(self, kind: type[A]) -> A | None:
        """This object as one of the optional protocols below, or None. Asked once, at open."""
        return self if isinstance(self, kind) else None


# --- Abilities of an executable ------------------------------------------------------------------


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """Something the backend launched, and how long it took in each run.

    Attributes:
        name: In the backend's own words.
        type: The backend's kernel type, for example ``Convolution`` or ``jit_avx512_core_bf16``.
        nodes: Names of the graph's nodes whose result it helps compute; empty where unknown.
        durations_ns: One duration per run, by the device's clock.
        device: Where it ran, as a device id, where that differs from the target's; else empty.
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    durations_ns: tuple[int, ...]
    device: str = ""


class KernelRuns(msgspec.Struct, frozen=True, kw_only=True):
    """Some instrumented runs.

    Attributes:
        kernels: In the order of execution.
        run_ns: End-to-end duration of each instrumented run.
        folded: Nodes computed once at compile time, which cost nothing per run.
        defines_units: Whether kernels follow the graph closely enough to say which nodes must stay
            together; false for compilers of whole graphs, whose kernels are few and large.
    """

    kernels: tuple[Kernel, ...]
    run_ns: tuple[int, ...]
    folded: tuple[str, ...] = ()
    defines_units: bool = True


@runtime_checkable
class KernelTimes(Protocol):
    """Times per kernel."""

    def kernel_runs(self, inputs: Sequence[Tensor], n_runs: int) -> KernelRuns:
        """Run ``n_runs`` times with instrumentation on, after at least one warm-up run.

        The plain ``run`` stays free of instrumentation; a second compilation is allowed.
        """
        ...


@runtime_checkable
class DeviceTime(Protocol):
    """Runs timed by the device's own clock (CUDA events, a virtual clock)."""

    def timed_run(self, inputs: Sequence[Tensor]) -> int:
        """Run once and return the duration in nanoseconds, from inputs ready to outputs ready."""
        ...


@runtime_checkable
class DeviceTensors(Protocol):
    """Buffers that stay on the device between runs."""

    def place(self, tensor: Tensor) -> Tensor:
        """A copy on the executable's device, ready as an input or as a bound output."""
        ...


class Pending(Protocol):
    """A run under way."""

    def wait(self) -> Sequence[Tensor]:
        """Block until the outputs can be read, and return them.

        Raises:
            BackendError: The runtime failed.
        """
        ...


@runtime_checkable
class AsyncRun(Protocol):
    """Runs that do not block the caller."""

    def submit(self, inputs: Sequence[Tensor]) -> Pending:
        """Start a run; inputs must stay unchanged until ``wait`` returns. Any thread may call it."""
        ...


@runtime_checkable
class CompiledBlob(Protocol):
    """The compiled form as bytes, for caches and bundles."""

    def blob(self) -> bytes:
        """The compiled form; valid for the same runtime version and device only."""
        ...


@runtime_checkable
class MemoryUse(Protocol):
    """Device memory held by the executable."""

    def memory_bytes(self) -> int:
        """Bytes held now on the executable's device."""
        ...


@runtime_checkable
class Placements(Protocol):
    """Backends that place nodes themselves say what they did."""

    def fallbacks(self) -> Sequence[Fallback]:
        """The nodes that run elsewhere than on the target; empty when all are in place."""
        ...


# --- Abilities of a backend ----------------------------------------------------------------------


@runtime_checkable
class OwnClock(Protocol):
    """Backends whose devices live in a time of their own, all by one clock (emulators)."""

    @property
    def clock(self) -> Clock:
        """The devices' clock. To look at it is to wait for all that was begun."""
        ...


@runtime_checkable
class Telemetry(Protocol):
    """Readings of a device while it works: any thread may ask, beside all other calls."""

    def telemetry(self, device: Device) -> Mapping[str, int]:
        """Current readings; what a device does not tell is left out.

        Each key ends in its unit: ``power_mw``, ``temperature_celsius``, ``clock_hz``,
        ``memory_used_bytes``, ``utilisation_percent``.
        """
        ...


@runtime_checkable
class BlobLoader(Protocol):
    """Backends that load what :class:`CompiledBlob` exported."""

    def load_blob(self, device: Device, blob: bytes, configuration: Configuration) -> Executable:
        """Make an executable from a blob.

        Raises:
            BackendError: The blob is damaged or was made by another version or device.
        """
        ...


@runtime_checkable
class DynamicShapes(Protocol):
    """Backends that compile a graph once for inputs of many shapes."""

    def compile_ranges(
        self,
        device: Device,
        graph: Graph,
        configuration: Configuration,
        ranges: Mapping[str, tuple[int, int]],
    ) -> Executable:
        """Compile a graph some of whose dimensions are free.

        A run with sizes that did not come before costs about what one with known sizes does: nothing is
        compiled for it that takes longer than the run. The executable's signature is the graph's, with the
        names of free dimensions. Its runs take inputs of any sizes within the ranges, dimensions of equal
        names being of equal size, which hal makes sure of; a fixed size that differs, or another rank, is an
        InputError.

        Args:
            device: Where to run.
            graph: Free dimensions of its inputs have names, or are ``?`` where nothing is known of them.
            configuration: As for :meth:`Backend.compile`.
            ranges: The lowest and the highest size of dimensions by their names; a dimension that is not
                there may have any size.

        Raises:
            UnsupportedGraph: This graph, or this configuration, needs bound sizes; the text says why.
            TargetError: As for :meth:`Backend.compile`.
            BackendError: The runtime failed.
        """
        ...


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something ``hal doctor`` should say.

    Attributes:
        severity: ``ok``, ``note``, ``warning`` or ``problem``.
        subject: What it is about, for example ``NVIDIA driver``.
        message: What was seen, with values.
        advice: What to do; empty for ``ok``.
    """

    severity: str
    subject: str
    message: str
    advice: str = ""


@runtime_checkable
class Diagnosis(Protocol):
    """Backends that can judge drivers, versions and settings."""

    def diagnose(self) -> Sequence[Finding]:
        """Findings in one pass; never raises for what it looks at."""
        ...
