"""Plans as a backend: opened in a worker's child, so that what works on targets works on plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 by name from it)
import msgspec

from hal.backend import (
    API_VERSION,
    PRECISIONS,
    Backend,
    BackendRef,
    Configuration,
    Device,
    Executable,
    OptionSpec,
    OptionValue,
    Support,
    Target,
)
from hal.clock import MonotonicClock
from hal.errors import PlanError, TargetError
from hal.executor.executor import Executor, Place, compile_plan, end_of
from hal.executor.in_flight import InFlight
from hal.executor.partitions import Piece
from hal.graph.cut import Cutter
from hal.plugins import open_backend

if TYPE_CHECKING:
    from hal.graph.model import Graph

#: The device a plan is compiled for: it stands for all that the plan uses.
PLAN = Device(
    id="plan:0", name="plan", kind="other", silicon="plan", memory_pool="host", precisions=PRECISIONS
)


class Spot(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a backend that is not open yet.

    Attributes:
        ref: The backend.
        device: As the backend discovered it.
    """

    ref: BackendRef
    device: Device


def plan_ref(spots: Mapping[str, Spot], plans: Mapping[str, Sequence[Piece]]) -> BackendRef:
    """Names plans across a process boundary.

    Args:
        spots: By ``DEVICE/BACKEND[-VARIANT]``; only those that the plans use are opened.
        plans: The partitions of each plan, by its name.

    Raises:
        PlanError: A plan names a place that is not there.
    """
    used = {end_of(Target.parse(piece.target)) for pieces in plans.values() for piece in pieces}
    if missing := sorted(used - spots.keys()):
        raise PlanError(
            f"the plan needs {', '.join(missing)}, which is not here; available are "
            f"{', '.join(spots) or 'none'}; plan again for this machine"
        )
    configuration = {
        "spots": msgspec.to_builtins({end: spots[end] for end in spots if end in used}),
        "plans": msgspec.to_builtins({name: list(pieces) for name, pieces in plans.items()}),
    }
    return BackendRef(f"{__name__}:plan_backend", configuration)


def plan_target(name: str, pieces: Sequence[Piece], n_requests: int = 1) -> Target:
    """The target that compiles a plan: in the least precise of its precisions, by which it is judged.

    Args:
        name: Of the plan.
        pieces: Its partitions.
        n_requests: That are in flight when it is timed; the times are then those between requests.
    """
    used = {Target.parse(piece.target).configuration.precision for piece in pieces}
    precision = next((p for p in ("bf16", "fp16") if p in used), "fp32")
    options: dict[str, OptionValue] = {"plan": name}
    if n_requests > 1:
        options["in_flight"] = n_requests
    return Target(PLAN.id, PlanBackend.name, Configuration.of(precision, options))


def plan_backend(spots: Mapping[str, Any], plans: Mapping[str, Any]) -> PlanBackend:
    """Open the backends of the spots, each once.

    Raises:
        PluginLoadError: A backend cannot be opened.
    """
    found = msgspec.convert(dict(spots), dict[str, Spot])
    return PlanBackend(open_places(found), msgspec.convert(dict(plans), dict[str, tuple[Piece, ...]]))


def open_places(spots: Mapping[str, Spot]) -> dict[str, Place]:
    """Open the backends of spots in this process, each once.

    Raises:
        PluginLoadError: A backend cannot be opened.
    """
    opened: dict[bytes, Backend] = {}
    places = {}
    for end, spot in spots.items():
        key = msgspec.json.encode(spot.ref)
        if key not in opened:
            opened[key] = open_backend(spot.ref)
        places[end] = Place(spot.ref, opened[key], spot.device)
    return places


class PlanBackend(Backend):
    """Compiles a graph as a plan says.

    Args:
        places: Of the targets that the plans name.
        plans: Partitions by the plan's name.
    """

    name = "plan"
    api_version = API_VERSION

    def __init__(self, places: Mapping[str, Place], plans: Mapping[str, Sequence[Piece]]) -> None:
        self._places = dict(places)
        self._plans = dict(plans)
        self._cutter: Cutter | None = None  # of the last graph: what is known of a graph takes long to find

    def discover(self) -> Sequence[Device]:
        """The one device of plans; asks every backend, so that the runtimes' libraries are loaded.

        Raises:
            BackendError: A backend cannot look for its devices.
        """
        for backend in {id(place.backend): place.backend for place in self._places.values()}.values():
            backend.discover()
        return (PLAN,)

    def options(self, device: Device) -> Sequence[OptionSpec]:
        """The plan's name, and the number of requests in flight in timed runs."""
        names = tuple(self._plans)
        return (
            OptionSpec(name="plan", kind="str", default=names[0], choices=names, help="Which plan."),
            OptionSpec(name="in_flight", kind="int", default=1, help="Requests at once in timed runs."),
        )

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        """Yes where a place of the first plan that has a node says yes, and for nodes in none."""
        pieces = next(iter(self._plans.values()))
        answers = dict.fromkeys(graph.nodes, Support(True))
        for piece in pieces:
            target = Target.parse(piece.target)
            place = self._places[end_of(target)]
            told = place.backend.capability(place.device, graph, target.configuration.precision)
            answers |= {node: told[node] for node in piece.nodes if node in told}
        return answers

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        """Compile the partitions of the plan that the option names.

        Raises:
            TargetError: There is no such plan.
            PlanError: The plan does not fit the graph.
            PluginError: A backend cannot compile its partition.
        """
        name = str(configuration.option("plan", next(iter(self._plans))))
        if name not in self._plans:
            raise TargetError(f"there is no plan {name!r}; expected one of {', '.join(self._plans)}")
        if self._cutter is None or self._cutter.graph.digest != graph.digest:
            self._cutter = Cutter(graph)
        executable = compile_plan(self._cutter, self._plans[name], self._places)
        n_requests = int(configuration.option("in_flight", 1))
        if n_requests == 1:
            return executable
        clock = executable.clock if isinstance(executable, Executor) else MonotonicClock()
        return InFlight(executable, n_requests, clock)
