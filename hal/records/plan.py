"""A plan: which target computes which part of a model, what that should cost and what it did cost."""

from __future__ import annotations

from typing import Annotated

import msgspec

from hal.records.machine import Environment, Link
from hal.records.profile import ModelInfo, OutputError, Timing
from hal.records.targets import Device

#: Version of the JSON. Readers refuse newer ones and read all older ones.
PLAN_SCHEMA_VERSION = 1


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of a plan.

    Attributes:
        objective: ``latency``, ``throughput``, ``energy`` or ``memory``.
        max_error: Highest relative L2 error of the worst output; 0 allows fp32 targets only.
        memory_bytes: Limit by device id or memory pool, beside the devices' own capacity.
        targets: Targets that were allowed.
        pinned: Node or unit name to target.
        max_partitions: Highest number of partitions; 0 for any.
    """

    objective: str = "latency"
    max_error: float = 0.0
    memory_bytes: dict[str, int] = {}
    targets: tuple[str, ...] = ()
    pinned: dict[str, str] = {}
    max_partitions: int = 0


class BoundaryCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a boundary between two partitions was measured to cost beyond what the links say.

    Attributes:
        value: The value that is handed over; empty for any between the two targets.
        source: Target that makes it; empty for any.
        destination: Target that reads it; empty for any.
        extra_ns: Added to its handoff; negative where it is cheaper. No handoff falls below 0.
    """

    value: str
    source: str
    destination: str
    extra_ns: int


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """The best other target of a partition, all else as it is.

    Attributes:
        target: The runner-up.
        objective: What the plan's objective would be, predicted, in the objective's unit.
    """

    target: str
    objective: float


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A convex set of units that one target computes in one call.

    Attributes:
        target: As written by ``str(Target)``.
        units: Names of the units.
        nodes: Names of the graph's nodes, in its order.
        inputs: Values it reads, weights apart.
        outputs: Values it hands on or that the model returns.
        start_ns: Predicted, from the start of a request.
        end_ns: Predicted.
        compute_ns: Predicted sum of its units.
        handoff_ns: Predicted time of its own for calling and for tensors that come and go.
        weight_bytes: Of its weights.
        reason: Why it is there, in one sentence.
        runner_up: The best other target; None where there is none.
    """

    target: str
    units: tuple[str, ...]
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    start_ns: int = 0
    end_ns: int = 0
    compute_ns: int = 0
    handoff_ns: int = 0
    weight_bytes: int = 0
    reason: str = ""
    runner_up: Alternative | None = None


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor on its way from one partition to another.

    Attributes:
        value: Its name in the graph.
        source: Number of the partition that makes it; -1 where it comes from the caller.
        destination: Number of the partition that reads it.
        n_bytes: Its size; None where unknown.
        start_ns: Predicted.
        end_ns: Predicted.
    """

    value: str
    source: int
    destination: int
    n_bytes: int | None = None
    start_ns: int = 0
    end_ns: int = 0


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What the simulator says of a plan.

    Attributes:
        latency_ns: Of one request.
        interval_ns: Time between requests of a pipeline.
        energy_mj: Of one request; None where the devices do not tell.
        memory_bytes: Highest use by memory pool.
        error: Sum of the units' errors, an upper estimate of the relative L2 error.
    """

    latency_ns: int
    interval_ns: int
    energy_mj: float | None = None
    memory_bytes: dict[str, int] = {}
    error: float = 0.0


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """What no plan can beat, by the same costs.

    Attributes:
        value: Of the objective, in its unit (ns, mJ or bytes).
        source: Name of the bound that was best.
        gap: (objective - value) / objective; 0 means optimal.
    """

    value: float
    source: str
    gap: float


class Finalist(msgspec.Struct, frozen=True, kw_only=True):
    """A placement that was compiled and measured, interleaved with the others.

    Attributes:
        name: ``only TARGET``, or the solver that found it.
        placement: Partition by partition: target and number of nodes, in words.
        n_partitions: Partitions.
        predicted_ns: Latency.
        measured: End to end; None where it failed.
        ratio: Median over rounds of its time over the chosen one's; None where it failed.
        errors: Of its outputs against the reference.
        failure: Why it was out; empty where it was not.
        round: In which round of measuring and correcting, from 0.
    """

    name: str
    placement: str
    n_partitions: int
    predicted_ns: int
    measured: Timing | None = None
    ratio: float | None = None
    errors: tuple[OutputError, ...] = ()
    failure: str = ""
    round: int = 0


#: Most requests at once, and in one run, that a plan may ask for: a file may come from anywhere.
#: Source: ours; a thread each, far more than any silicon here has use for.
MOST_AT_ONCE = 1024


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests a plan takes at once, and what that was measured to bring.

    Attributes:
        n_in_flight: Runs under way at once.
        batch: Most requests that are gathered into one run; 1 where each has its own.
        worth_from: Waiting requests from which a gathered run is faster than one run each.
        requests_per_s: With ``n_outstanding`` requests under way or waiting at any time.
        p50_ns: Median time of a request at that load, waiting included.
        p95_ns: 95th percentile.
        p99_ns: 99th percentile.
        n_requests: That were measured.
    """

    n_in_flight: Annotated[int, msgspec.Meta(ge=1, le=MOST_AT_ONCE)]
    batch: Annotated[int, msgspec.Meta(ge=1, le=MOST_AT_ONCE)] = 1
    worth_from: Annotated[int, msgspec.Meta(ge=1, le=MOST_AT_ONCE)] = 1
    requests_per_s: float = 0.0
    p50_ns: int = 0
    p95_ns: int = 0
    p99_ns: int = 0
    n_requests: int = 0

    @property
    def n_outstanding(self) -> int:
        """Requests that keep it busy: those of the runs under way, and the next run's."""
        return (self.n_in_flight + 1) * self.batch


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A placement of a model's units, with its reasons.

    Attributes:
        schema_version: Of the JSON.
        hal_version: That made it.
        created: ISO 8601 in UTC.
        model: The model.
        environment: Of the machine it was made for; None for imagined machines.
        machine: Where costs came from, in words: ``measured``, or ``estimated for`` machine profiles by name.
        devices: The devices it uses.
        constraints: What was asked.
        partitions: In the order of execution.
        transfers: Between partitions.
        predicted: By the simulator.
        measured: End to end; None where it was not run.
        errors: Of its outputs against the reference; empty where it was not run.
        bound: Proven; in the units of the objective.
        solver: That found it.
        finalists: What was measured, the chosen one among them.
        throughput: How many requests it takes at once; None where that was not measured.
        links: Measured links that its costs used.
        estimated: Whether costs were estimated rather than measured.
        notes: What the reader should know.
    """

    schema_version: int
    hal_version: str
    created: str
    model: ModelInfo
    environment: Environment | None
    machine: str
    devices: tuple[Device, ...]
    constraints: Constraints
    partitions: tuple[Partition, ...]
    transfers: tuple[Transfer, ...]
    predicted: Prediction
    bound: Bound
    solver: str
    measured: Timing | None = None
    errors: tuple[OutputError, ...] = ()
    finalists: tuple[Finalist, ...] = ()
    throughput: Throughput | None = None
    links: tuple[Link, ...] = ()
    estimated: bool = False
    notes: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets it uses, in the order of first use."""
        return tuple(dict.fromkeys(partition.target for partition in self.partitions))

    @property
    def placement(self) -> str:
        """Which targets compute how much, in words."""
        return ", then ".join(f"{part.target} ({len(part.nodes)} nodes)" for part in self.partitions)

    @property
    def objective(self) -> float:
        """The predicted value of what was asked for: ns, mJ or bytes."""
        by_name: dict[str, float] = {
            "latency": self.predicted.latency_ns,
            "throughput": self.predicted.interval_ns,
            "energy": self.predicted.energy_mj or 0.0,
            "memory": sum(self.predicted.memory_bytes.values()),
        }
        return by_name[self.constraints.objective]
