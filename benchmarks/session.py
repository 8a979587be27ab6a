"""What a session adds to the backend's own call, call by call in turn, in one process.

Per model and target, medians of: the runtime's own call (where its session can be called as it is), the call
of hal's executable, ``session(x)`` and ``session.run(None, feeds)``, all on the same compiled model, and what
the session adds to the executable and to the runtime. With several parts (a chain of matrix products, cut
into 2, 3 and 4 partitions that take turns between two targets) the own call is that of all parts one after
the other, and what is added is told per extra partition. Then the growth of memory over many calls.

Goals (issue 5): at most 15 us over the backend's own call, 5 us more per extra partition, no growth. The
machine must be idle.

    python -m benchmarks.session [--models demo:digits,add] [--targets cpu:0/onnxruntime/fp32,...]
        [--rounds 2000] [--calls 100000]
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import psutil

import hal
from hal import stats
from hal.backend import Executable
from hal.errors import HalError
from hal.executor.executor import Executor
from hal.graph.model import Graph
from hal.records.plan import Partition
from hal.testing import example_inputs, small_graph
from hal.testing.graphs import GRAPHS, work
from hal.units import format_bytes, format_ns

TARGETS = ("cpu:0/onnxruntime/fp32", "cpu:0/openvino/fp32", "cpu:0/cpu/fp32")
Call = Callable[[], Any]


def executable_of(session: hal.Session) -> Executable:
    """What the session runs: its own, so that no second pool of threads disturbs the first."""
    found: Executable = session.runner._engine._executable  # type: ignore[attr-defined]  # what is inside
    return found


def own_call(executable: Executable, inputs: Sequence[Any]) -> Call | None:
    """The runtime's own call, without hal's plugin; None where it has no such session."""
    session = getattr(executable, "_session", None)  # ONNX Runtime's
    if session is None:
        return None
    names = [spec.name for spec in executable.signature.outputs]
    feeds = dict(zip((spec.name for spec in executable.signature.inputs), inputs, strict=True))
    return lambda: session.run(names, feeds)


def by_hand(executor: Executor, inputs: Sequence[Any]) -> Call:
    """The parts of a plan, one after the other."""
    names = [spec.name for spec in executor.signature.inputs]
    parts = [
        (getattr(one.executable, "inner", one.executable).run, one.part.inputs, one.part.outputs)
        for one in executor._compiled
    ]

    def call() -> None:
        values = dict(zip(names, inputs, strict=True))
        for run, reads, writes in parts:
            values.update(zip(writes, run([values[name] for name in reads]), strict=True))

    return call


def in_turn(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Median duration of each call in nanoseconds; each round makes all of them, in rotating order."""
    names = list(calls)
    taken: dict[str, list[int]] = {name: [] for name in names}
    for name in names * 50:
        calls[name]()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            at = number % len(names)
            for name in names[at:] + names[:at]:
                call = calls[name]
                started_ns = time.perf_counter_ns()
                call()
                taken[name].append(time.perf_counter_ns() - started_ns)
    finally:
        gc.enable()
    return {name: stats.median(samples) for name, samples in taken.items()}


def calls_of(session: hal.Session, inputs: Sequence[Any]) -> dict[str, Call]:
    """Ways to run the same model once."""
    feeds = dict(zip((spec.name for spec in session.signature.inputs), inputs, strict=True))
    executable = executable_of(session)
    calls: dict[str, Call] = {
        "executable": lambda: executable.run(inputs),
        "session(x)": lambda: session(*inputs),
        "session.run": lambda: session.run(None, feeds),
    }
    own = own_call(executable, inputs)
    return calls if own is None else {"runtime": own, **calls}


def line(*cells: str) -> None:
    """One line of the table."""
    print(f"{cells[0]:<34}" + "".join(f"{cell:>14}" for cell in cells[1:]), flush=True)


def one_partition(name: str, target: str, rounds: int) -> None:
    """A line of the first table."""
    model: str | Graph = name if name.startswith("demo:") else small_graph(name)
    with hal.compile(model, targets=[target]) as session:
        inputs = example_inputs(session.graph)
        found = in_turn(calls_of(session, inputs), rounds)
        base = found["executable"]
        line(
            f"{name} {target}",
            format_ns(round(found["runtime"])) if "runtime" in found else "-",
            *(format_ns(round(found[way])) for way in ("executable", "session(x)", "session.run")),
            f"{(found['session(x)'] - base) / 1000:.1f} us",
            f"{(found['session(x)'] - found['runtime']) / 1000:.1f} us" if "runtime" in found else "-",
        )


def several_partitions(targets: Sequence[str], rounds: int) -> None:
    """The second table: a chain cut into more and more partitions, on two targets in turn."""
    graph = work(8, 64)
    nodes = tuple(graph.nodes)
    inputs = example_inputs(graph)
    with hal.compile(graph, targets=targets) as whole:
        plan = whole.plan
    for n_parts in (2, 3, 4):
        cuts = [len(nodes) * at // n_parts for at in range(n_parts + 1)]
        partitions = tuple(
            Partition(
                target=targets[at % len(targets)],
                units=(),
                nodes=nodes[cuts[at] : cuts[at + 1]],
                inputs=(),
                outputs=(),
            )
            for at in range(n_parts)
        )
        with hal.compile(graph, plan=msgspec.structs.replace(plan, partitions=partitions)) as session:
            executor = executable_of(session)
            assert isinstance(executor, Executor)
            calls = {"parts": by_hand(executor, inputs), "session(x)": lambda: session(*inputs)}
            found = in_turn(calls, rounds)
            added = (found["session(x)"] - found["parts"]) / 1000
            line(
                f"{n_parts} parts on {len(set(targets))} targets",
                format_ns(round(found["parts"])),
                format_ns(round(found["session(x)"])),
                f"{added:.1f} us",
                f"{added / (n_parts - 1):.1f} us",
            )


def growth(target: str, n_calls: int) -> None:
    """How much memory the process gains over many calls, after a tenth of them to settle."""
    process = psutil.Process()
    with hal.compile("demo:digits", targets=[target]) as session:
        inputs = example_inputs(session.graph)
        for _ in range(n_calls // 10):
            session(*inputs)
        gc.collect()
        before = process.memory_info().rss
        for _ in range(n_calls):
            session(*inputs)
        gc.collect()
        gained = process.memory_info().rss - before
        sign = "-" if gained < 0 else "+"
        line(
            f"{n_calls} calls on {target}",
            f"{sign}{format_bytes(abs(gained))}",
            f"{gained / n_calls:.2f} B/call",
        )


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="demo:digits,add", help=f"demo:NAME or of {', '.join(GRAPHS)}")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=100_000)
    given = parser.parse_args()
    targets = given.targets.split(",")
    failed = 0
    line("one partition", "runtime", "executable", "session(x)", "session.run", "added", "to runtime")
    for name in given.models.split(","):
        for target in targets:
            try:
                one_partition(name, target, given.rounds)
            except HalError as error:
                failed += 1
                line(f"{name} {target}", f"failed: {error}")
    line("several partitions", "parts by hand", "session(x)", "added", "per extra one")
    several_partitions(targets[:2], given.rounds)
    line("memory", "gained", "per call")
    growth(targets[0], given.calls)
    return 1 if failed else 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
