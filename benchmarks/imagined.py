"""Machines that are not here: a model too large to load is planned, and plans for mixed machines carried out.

    python -m benchmarks.imagined               # both tables
    python -m benchmarks.imagined --decoder     # the decoder of 175 billion parameters alone
    python -m benchmarks.imagined --machines    # the mixed machines alone

The first part builds the decoder without weights, estimates it on an imagined cluster of two servers and
plans it under the memory of their devices. The second plans models for three machines from data sheets
(profiles/), carries each plan out with the real executor on the emulator, checks its answers against the best
single device's, and compares the virtual time with that device's and with the prediction. Pipelines have at
most as many stages as there are devices: with more, stages of several requests must interleave without a gap
to reach the largest load, which is what is predicted, and were seen to miss it by up to 22%.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from examples.decoder import GPT3, decoder
from hal import stats
from hal.backend import BackendRef, Executable, Tensor
from hal.executor.executor import Place, compile_plan
from hal.executor.partitions import pieces_of
from hal.graph.model import Graph
from hal.planning.costs import Modelled, model
from hal.planning.plans import plan_of
from hal.planning.portfolio import solve
from hal.planning.solution import Solution
from hal.profiling.imagined import estimated
from hal.records.files import to_json
from hal.records.machine import MachineProfile
from hal.records.machines import LinkRule, combine
from hal.records.plan import Constraints, Plan
from hal.records.reading import read_machine
from hal.tensor import Array, as_numpy
from hal.units import format_bytes, format_ns
from hal_emulator.backend import EmulatorBackend
from tests.models import MODELS

PROFILES = Path(__file__).parents[1] / "profiles"
CLUSTER = ("nvidia-hgx-h100-4", "nvidia-hgx-a100-4")
#: Between the two servers: a port of InfiniBand HDR each.
#: Source: NVIDIA ConnectX-6 data sheet, 200 Gb/s and below 0.6 us, of which MPI programs see 1 to 2 us.
NETWORK = LinkRule(source="*/host", destination="*/host", latency_ns=2_000, bytes_per_s=25e9)
#: Requests in flight when a pipeline is measured, and how many of them are told apart.
IN_FLIGHT, FEW, MANY = 8, 8, 32
#: Share of its memory that a plan for a pipeline may take of a device: a problem counts the tensors of one
#: request, and several are in flight.
PIPELINE_SHARE = 0.8
#: Machines, and models that fit their size. ``light_`` are architectures that onnx ships, without training.
MIXED: Mapping[str, Sequence[str]] = {
    "gtx1050-i7-8700": ("ppocr_det_320", "ppocr_rec", "minilm", "light_inception_v1", "light_densenet121"),
    "a40-a100-epyc-7742": ("ppocr_det", "smollm2", "light_vgg19", "light_bvlc_alexnet"),
    "tesla-m10-512mb-xeon-e5-2690v4": ("smollm2", "light_vgg19"),
}


@dataclass(frozen=True)
class Line:
    """A row of the second table; times in ns."""

    machine: str
    model: str
    objective: str
    single: str
    single_ns: float
    n_partitions: int
    predicted_ns: float
    virtual_ns: float
    difference: float

    @property
    def error(self) -> float:
        """How far the prediction is off."""
        return abs(self.predicted_ns / self.virtual_ns - 1)


def load(*names: str) -> list[tuple[str, MachineProfile]]:
    """Machine profiles of the repository."""
    return [(name, read_machine((PROFILES / f"{name}.json").read_bytes(), name)) for name in names]


# --- the decoder ---------------------------------------------------------------------------------


def plan_decoder(budget_s: float) -> None:
    """Build, estimate and plan it, and print what that took."""
    marks = [time.perf_counter()]

    def mark(what: str) -> None:
        marks.append(time.perf_counter())
        print(f"  {marks[-1] - marks[-2]:6.2f} s  {what}")

    print(f"A decoder of {GPT3.parameters:,} parameters on {' and '.join(CLUSTER)}")
    machine = combine(load(*CLUSTER), [NETWORK])
    graph = Graph.load(decoder(GPT3), has_weights=False)
    mark(f"build and read: {len(graph.nodes)} nodes, {format_bytes(graph.weight_bytes)} of absent weights")
    profile = estimated(graph, machine)
    mark(f"estimate: {len(profile.units)} units on {len(profile.targets)} targets")
    for objective in ("latency", "throughput"):
        asked = Constraints(objective=objective, max_error=0.01, targets=("cuda:*/*/fp16", "cpu:*"))
        modelled = model(profile, asked, machine=machine)
        solution = solve(modelled.problem, budget_s=budget_s)
        plan = planned(modelled, solution)
        mark(f"plan for {objective}: {shown(plan.objective)}, {describe(plan)}")
        for pool, used in plan.predicted.memory_bytes.items():
            limit = modelled.problem.capacity[modelled.problem.pool_names.index(pool)]
            print(f"            {pool}: {format_bytes(used)} of {format_bytes(int(limit))}")
    print(f"  {marks[-1] - marks[0]:6.2f} s  in all\n")


def describe(plan: Plan) -> str:
    """Partitions and the gap."""
    devices = len({target.partition("/")[0] for target in plan.targets})
    return (
        f"{len(plan.partitions)} partitions on {devices} devices, within {plan.bound.gap:.1%} of the bound "
        f"({plan.bound.source}), by {plan.solver}"
    )


def planned(modelled: Modelled, solution: Solution) -> Plan:
    """The best plan as a record."""
    best = solution.best
    return plan_of(
        modelled,
        best.assignment,
        solver=best.solver,
        bound=solution.bound,
        bound_source=solution.bound_source,
    )


# --- mixed machines ------------------------------------------------------------------------------


def carry_out(name: str, models: Sequence[str], budget_s: float) -> Iterator[Line]:
    """Plan models for a machine and run the plans on its emulation."""
    machine = combine(load(name))
    for title in models:
        graph, inputs = bound(title)
        profile = estimated(graph, machine)
        for objective in ("latency", "throughput"):
            share = PIPELINE_SHARE if objective == "throughput" else 1.0
            limits = {d.id: int(share * d.memory_bytes) for d in machine.devices if d.memory_bytes}
            most = len(machine.devices) if objective == "throughput" else 0
            asked = Constraints(objective=objective, memory_bytes=limits, max_partitions=most)
            modelled = model(profile, asked, machine=machine)
            solution = solve(modelled.problem, budget_s=budget_s)
            plan = planned(modelled, solution)
            singles = [p for p in solution.proposals if len(set(p.assignment.target.tolist())) == 1]
            single = min(singles, key=lambda p: p.objective) if singles else None
            virtual_ns, answers = measure(graph, plan, machine, inputs, objective)
            single_ns, expected, where = np.inf, answers, "none fits"
            if single is not None:
                alone = plan_of(modelled, single.assignment, solver=single.solver)
                single_ns, expected = measure(graph, alone, machine, inputs, objective)
                where = alone.targets[0]
            yield Line(
                machine=name,
                model=title,
                objective=objective,
                single=where,
                single_ns=single_ns,
                n_partitions=len(plan.partitions),
                predicted_ns=plan.objective,
                virtual_ns=virtual_ns,
                difference=max(map(difference, answers, expected), default=0.0),
            )


def measure(
    graph: Graph, plan: Plan, machine: MachineProfile, inputs: Sequence[Array], objective: str
) -> tuple[float, list[Array]]:
    """Virtual ns of a request, or between requests of a pipeline; and the answers."""
    backend = EmulatorBackend(machine=json.loads(to_json(machine)))
    ref = BackendRef("hal_emulator.backend:EmulatorBackend")
    places = {f"{device.id}/emulator": Place(ref, backend, device) for device in backend.discover()}
    executable = compile_plan(graph, pieces_of(plan, graph), places)
    try:
        answers = [np.array(as_numpy(output)) for output in executable.run(inputs)]
        if objective == "latency":
            began_ns = backend.clock.now_ns()
            executable.run(inputs)
            return backend.clock.now_ns() - began_ns, answers
        times = [together(executable, backend, inputs, n) for n in (FEW, MANY)]
        return (times[1] - times[0]) / (MANY - FEW), answers
    finally:
        executable.close()


def together(executable: Executable, backend: EmulatorBackend, inputs: Sequence[Array], n: int) -> int:
    """Virtual ns of several requests, some of them in flight at a time."""
    began_ns = backend.clock.now_ns()

    # The outputs are looked at by nobody, so that no request waits for an earlier one's.
    def request(_: int) -> Sequence[Tensor]:
        return executable.run(inputs)

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        for _ in pool.map(request, range(n)):
            pass
    return backend.clock.now_ns() - began_ns


def bound(title: str) -> tuple[Graph, list[Array]]:
    """A model with its shapes, and inputs by position."""
    if title.startswith("light_"):
        path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"{title}.onnx"
        graph = Graph.load(path)
        graph = graph.bind({})
        random = np.random.default_rng(0)
        sizes = [[size for size in spec.shape if isinstance(size, int)] for spec in graph.signature.inputs]
        return graph, [random.random(size).astype(np.float32) for size in sizes]
    found = MODELS[title].require()
    graph = Graph.load(found.path()).bind(found.shapes)
    named = found.inputs()
    return graph, [named[spec.name] for spec in graph.signature.inputs]


def difference(mine: Array, other: Array) -> float:
    """Relative L2."""
    norm = float(np.linalg.norm(other.astype(np.float64)))
    return float(np.linalg.norm(mine.astype(np.float64) - other.astype(np.float64))) / (norm or 1.0)


def shown(value: float) -> str:
    """A time in words."""
    return format_ns(round(value)) if np.isfinite(value) else "-"


def plan_machines(budget_s: float, only: Sequence[str]) -> None:
    """The second table."""
    print("machine | model | objective | best single | alone | plan | gain | partitions | error | answers")
    lines = []
    for name, models in MIXED.items():
        for line in carry_out(name, [m for m in models if not only or m in only], budget_s):
            lines.append(line)
            gain = f"{line.single_ns / line.virtual_ns:.2f}x" if np.isfinite(line.single_ns) else "-"
            cells = [line.machine, line.model, line.objective, line.single, shown(line.single_ns)]
            cells += [shown(line.virtual_ns), gain, str(line.n_partitions), f"{line.error:.2%}"]
            print(" | ".join([*cells, f"{line.difference:.1e}"]), flush=True)
    errors = [line.error for line in lines]
    faster = [line for line in lines if line.virtual_ns < line.single_ns]
    worse = [line for line in lines if line.virtual_ns > line.single_ns * 1.001]
    print(f"prediction: median {stats.median(errors):.2%}, worst {max(errors):.2%} off")
    print(f"faster than the best single device: {len(faster)} of {len(lines)}; slower: {len(worse)}")


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--decoder", action="store_true", help="the decoder alone")
    parser.add_argument("--machines", action="store_true", help="the mixed machines alone")
    parser.add_argument("--model", action="append", default=[], help="only this model; may be given again")
    parser.add_argument("--budget-s", type=float, default=5.0, help="seconds for each search")
    asked = parser.parse_args()
    if asked.decoder or not asked.machines:
        plan_decoder(asked.budget_s)
    if asked.machines or not asked.decoder:
        plan_machines(asked.budget_s, asked.model)


if __name__ == "__main__":
    main()
