"""A profile: everything that was measured of one model on one machine, as frozen data."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from hal.records.facts import ModelFacts
from hal.records.machine import Ceiling, Environment, Link
from hal.records.targets import Device, Fallback, TensorSpec

#: Version of the JSON. Readers refuse newer ones and read all older ones.
SCHEMA_VERSION = 2

#: Share by which instruments may slow a run before kernel times are called inflated.
#: Source: the goal of issue 3; below it, the noise of shared machines is larger.
INFLATED_ABOVE = 0.05


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """End-to-end durations of plain runs. docs/measuring.md says how each figure is made.

    Attributes:
        median_ns: Median of all runs.
        p10_ns: 10th percentile.
        p90_ns: 90th percentile.
        n: Runs.
        interval_low_ns: Lower end of the median's 95% interval, over bursts.
        interval_high_ns: Upper end.
        stable: Whether the figures can be trusted.
        reason: Why not.
        bursts_ns: Durations burst by burst, evenly thinned to 50 a burst where there were more; burst i
            of each target of a group ran in round i.
        group: Targets with the same number ran in turn; only these may be compared.
    """

    median_ns: int
    p10_ns: int
    p90_ns: int
    n: int
    interval_low_ns: int
    interval_high_ns: int
    stable: bool
    reason: str = ""
    bursts_ns: tuple[tuple[int, ...], ...] = ()
    group: int = 0


class OutputError(msgspec.Struct, frozen=True, kw_only=True):
    """How far one output is from the reference's.

    Attributes:
        name: The output.
        relative_l2: ||answer - reference|| / ||reference||; None where it is infinite, because the
            answer is not finite, or not of the right shape, and the reference is (JSON has no infinity).
        max_abs: Largest absolute difference; None where infinite.
        sqnr_db: Signal to quantization noise ratio, 10 log10(signal power / error power); None for
            equal answers, where it is infinite.
    """

    name: str
    relative_l2: float | None
    max_abs: float | None
    sqnr_db: float | None


class KernelCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one kernel costs per run of the model.

    Attributes:
        name: In the backend's words.
        type: The backend's kernel type.
        nodes: The graph's nodes it helps compute; empty where unknown.
        ops: Operator types of those nodes.
        device: Where it ran, where that is not the target's device.
        median_ns: Median over the instrumented runs.
        p10_ns: 10th percentile.
        p90_ns: 90th percentile.
        n: Instrumented runs.
        order: Position in the order of execution, from 0.
        flops: Operations per run of its share of the nodes; None where unknown.
        moved_bytes: Least traffic of its nodes, see :class:`hal.records.facts.Work`; None where unknown.
        weight_bytes: Part of it that is weights.
        activation_bytes: Bytes it hands on; None where unknown.
        samples_ns: Durations of up to 20 instrumented runs, the same runs for every kernel of a table.
        limit: What limits it, by the ceilings of the profile: ``compute``, ``memory``, ``overhead``, or empty
            where that is not known; see :mod:`hal.profiling.roofline`.
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    device: str
    median_ns: int
    p10_ns: int
    p90_ns: int
    n: int
    order: int = 0
    flops: int | None = None
    moved_bytes: int | None = None
    weight_bytes: int = 0
    activation_bytes: int | None = None
    samples_ns: tuple[int, ...] = ()
    limit: str = ""

    @property
    def flops_per_s(self) -> float | None:
        """Achieved operations per second."""
        return None if self.flops is None or not self.median_ns else self.flops / self.median_ns * 1e9

    @property
    def bytes_per_s(self) -> float | None:
        """Achieved bandwidth, by the least traffic."""
        known = self.moved_bytes is not None and self.median_ns
        return (self.moved_bytes or 0) / self.median_ns * 1e9 if known else None


class KernelTable(msgspec.Struct, frozen=True, kw_only=True):
    """The instrumented runs of a target.

    Attributes:
        kernels: Most expensive first.
        total_ns: Sum of the kernels' medians.
        unattributed_ns: Part of ``total_ns`` in kernels mapped to no node of the graph.
        instrumented_ns: End-to-end median of the instrumented runs (the plain figure is in Timing).
        folded: Nodes computed at compile time.
        unknown: Nodes in no kernel and not folded.
        plain_ns: End-to-end median of plain runs right before and after the instrumented ones; 0 where
            they were not taken.
        defines_units: Whether its kernels follow the graph closely enough to say what must stay together;
            false for whole-graph compilers, whose kernels are few and large.
    """

    kernels: tuple[KernelCost, ...]
    total_ns: int
    unattributed_ns: int
    instrumented_ns: int
    folded: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    plain_ns: int = 0
    defines_units: bool = True

    @property
    def overhead(self) -> float | None:
        """Share by which the instruments slowed the run; None where it was not measured."""
        return self.instrumented_ns / self.plain_ns - 1 if self.plain_ns else None

    @property
    def inflated(self) -> bool:
        """Whether the kernel times are larger than without instruments."""
        return self.overhead is not None and self.overhead > INFLATED_ABOVE


class ColdStart(msgspec.Struct, frozen=True, kw_only=True):
    """What comes before the first steady run.

    Attributes:
        start_ns: From starting the process to the backend being loaded.
        compile_ns: Compiling the model.
        first_run_ns: The first run.
        blob_bytes: Size of the compiled form, or None where the backend did not export one.
    """

    start_ns: int
    compile_ns: int
    first_run_ns: int
    blob_bytes: int | None = None


class MemorySample(msgspec.Struct, frozen=True):
    """Resident memory of a target's process at a moment.

    Attributes:
        at_ns: Since the process was started.
        resident_bytes: Then.
        step: What had just been done: ``load``, ``compile``, ``warm-up``, ``burst``, ``kernels``.
    """

    at_ns: int
    resident_bytes: int
    step: str


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of plain runs, idle power included.

    Attributes:
        per_run_mj: Millijoules per run.
        source: Who told: ``NVML`` or ``RAPL package``.
    """

    per_run_mj: float
    source: str


class MemoryPeak(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of a target's own process.

    Attributes:
        loaded_bytes: Resident bytes once the backend was loaded, before the model.
        peak_bytes: Highest resident bytes over compile and runs.
        device_bytes: Bytes on the device itself, where it has memory of its own and tells.
        samples: Resident memory over time.
    """

    loaded_bytes: int
    peak_bytes: int
    device_bytes: int | None = None
    samples: tuple[MemorySample, ...] = ()

    @property
    def model_bytes(self) -> int:
        """What the model added to the process."""
        return max(self.peak_bytes - self.loaded_bytes, 0)


class RefusedNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node that a target cannot run, and why."""

    node: str
    op: str
    reason: str


class TargetProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One target's part of a profile.

    Attributes:
        target: As written by ``str(Target)``.
        status: ``ok``; ``wrong`` (answers differ from the reference by more than its precision
            explains); ``refused`` (the backend does not support the model); ``failed`` (it raised,
            crashed or hung).
        reason: Why, for every status but ``ok``.
        telemetry: The highest reading of each kind, taken right after each burst.
        energy: Of plain runs, where the device tells.
        measured: When, ISO 8601 in UTC; earlier than the profile where it was found in the store.
        policy: Digest of how long and how often it was measured; equal figures are comparable in care.
    """

    target: str
    status: str
    reason: str = ""
    timing: Timing | None = None
    cold_start: ColdStart | None = None
    memory: MemoryPeak | None = None
    errors: tuple[OutputError, ...] = ()
    accuracy: float | None = None
    kernels: KernelTable | None = None
    kernels_missing: str = ""
    refused: tuple[RefusedNode, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    telemetry: dict[str, int] = {}
    energy: Energy | None = None
    measured: str = ""
    policy: str = ""

    @property
    def relative_l2(self) -> float | None:
        """The worst output's relative L2 error, possibly infinite; None where nothing was compared."""
        found = [math.inf if error.relative_l2 is None else error.relative_l2 for error in self.errors]
        return max(found, default=None)


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Time of a target over the baseline's, from bursts that ran side by side.

    Attributes:
        target: The target.
        baseline: What it is compared with.
        median: Median of the per-round ratios; below 1 is faster than the baseline.
        p10: 10th percentile of them.
        p90: 90th percentile of them.
        n_rounds: Rounds in which both ran.
    """

    target: str
    baseline: str
    median: float
    p10: float
    p90: float
    n_rounds: int


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The model, without weights and without paths.

    Attributes:
        digest: Of the bound graph and its weights.
        inputs_from: Where the inputs came from, in words.
        inputs_digest: Of the inputs' values.
    """

    name: str
    digest: str
    opset: int
    n_nodes: int
    weight_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    inputs_from: str
    inputs_digest: str = ""


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An installed plugin, as its distribution tells; ``failure`` where it was refused or broke."""

    name: str
    distribution: str
    version: str
    failure: str = ""


class UnitCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one unit costs on one target: the sum of its kernels.

    Attributes:
        median_ns: Median over instrumented runs of the sum of its kernels.
        p10_ns: 10th percentile.
        p90_ns: 90th percentile.
        n: Runs.
        limit: What limits it there, as for :class:`KernelCost`.
    """

    median_ns: int
    p10_ns: int
    p90_ns: int
    n: int
    limit: str = ""


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest thing a scheduler places: nodes that some backend fuses.

    Attributes:
        name: Of its first node, or the module they share.
        nodes: In the order of the graph.
        flops: Operations per run; None where unknown.
        moved_bytes: Least traffic; None where unknown.
        weight_bytes: Of its weights.
        activation_bytes: Bytes it hands on; None where unknown.
        costs: By target, for the targets whose kernels tell.
    """

    name: str
    nodes: tuple[str, ...]
    flops: int | None = None
    moved_bytes: int | None = None
    weight_bytes: int = 0
    activation_bytes: int | None = None
    costs: dict[str, UnitCost] = {}


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one model, target by target.

    Attributes:
        facts: The model's nodes: work, bytes, modules; None in profiles of older versions.
        units: In topological order, see :mod:`hal.planning.units`.
        ceilings: Of the devices, measured once per environment.
        links: Handoffs between backends, measured once per environment.
    """

    schema_version: int
    hal_version: str
    created: str
    model: ModelInfo
    environment: Environment
    plugins: tuple[PluginInfo, ...]
    devices: tuple[Device, ...]
    targets: tuple[TargetProfile, ...]
    ratios: tuple[Ratio, ...] = ()
    reference: str = ""
    notes: tuple[str, ...] = ()
    facts: ModelFacts | None = None
    units: tuple[Unit, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    links: tuple[Link, ...] = ()

    @property
    def ranking(self) -> tuple[TargetProfile, ...]:
        """Targets that answered rightly, fastest first."""
        good = [target for target in self.targets if target.status == "ok" and target.timing]
        return tuple(sorted(good, key=lambda target: target.timing.median_ns if target.timing else 0))

    def to_pandas(self) -> Any:
        """One row per kernel as a ``pandas.DataFrame``; docs/cli.md names the columns.

        Raises:
            UserError: pandas is not installed.
        """
        from hal.records.tables import data_frame

        return data_frame(self)
