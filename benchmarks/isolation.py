"""What a partition in a child process costs beside the same one in this process, call by call in turn.

Per size of the input, and for a small output and one as large as the input: medians of the executable's call
here and in a child, and what is added. Then requests per second of 1, 2 and 4 threads on one session, and how
long it takes from a kill to the next right answer, in a session of the fake backend.

Goals (issue 5): at most 100 us added up to 600 KB, 5 ms at 16 MB; the answer after a crash within 1 s. The
machine must be idle.

    python -m benchmarks.isolation [--backend onnxruntime] [--rounds 1000] [--kills 10]
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from hal import plugins
from hal.backend import BackendRef, Configuration, Executable
from hal.graph.model import Graph
from hal.session.events import Events
from hal.session.isolation import Child, IsolatedBackend, Limits
from hal.tensor import Array
from hal.testing import example_inputs, small_graph, true_outputs
from hal.units import format_bytes, format_ns
from hal.worker import WorkerBackend

SIZES = (400, 60_000, 600_000, 16 << 20)
#: Matrix products whose run takes about as long as a small network's.
N_PRODUCTS, WIDTH = 8, 384


def streaming(n_bytes: int, *, is_reduced: bool) -> Graph:
    """Little work on an input of a size; the output is one number, or as large as the input."""
    n = n_bytes // 4
    last = (
        helper.make_node("ReduceMean", ["h"], ["y"], name="last", keepdims=1)
        if is_reduced
        else helper.make_node("Neg", ["h"], ["y"], name="last")
    )
    ends = [
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, n])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1] if is_reduced else [1, n])],
    ]
    nodes = [helper.make_node("Relu", ["x"], ["h"], name="first"), last]
    proto = helper.make_graph(nodes, "streaming", *ends)
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def computing() -> Graph:
    """Matrix products one after the other: work that several threads can do at once."""
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
    constant = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)
    names = [f"h{at}" for at in range(N_PRODUCTS + 1)]
    nodes = [
        helper.make_node("MatMul", [names[at], "w"], [names[at + 1]], name=f"product{at}")
        for at in range(N_PRODUCTS)
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, WIDTH])]
        for name in (names[0], names[-1])
    ]
    proto = helper.make_graph(nodes, "computing", *ends, [constant])
    return Graph.load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def in_turn(one: Executable, other: Executable, inputs: Sequence[Array], rounds: int) -> tuple[float, float]:
    """Median durations of two executables' calls in nanoseconds."""
    taken: tuple[list[int], list[int]] = ([], [])
    for number in range(rounds + rounds // 10):
        for at, executable in enumerate((one, other)):
            started_ns = time.perf_counter_ns()
            executable.run(inputs)
            if number >= rounds // 10:
                taken[at].append(time.perf_counter_ns() - started_ns)
    return statistics.median(taken[0]), statistics.median(taken[1])


def rate(executable: Executable, inputs: Sequence[Array], n_threads: int, seconds: float) -> float:
    """Runs per second of several threads together."""
    counts = [0] * n_threads
    start, until_s = threading.Barrier(n_threads), time.monotonic() + seconds

    def work(at: int) -> None:
        start.wait()
        while time.monotonic() < until_s:
            executable.run(inputs)
            counts[at] += 1

    threads = [threading.Thread(target=work, args=(at,)) for at in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def after_kills(n_kills: int) -> list[float]:
    """Seconds from each kill of the fake backend's process to the next right answer."""
    graph = small_graph("chain")
    child = Child(BackendRef("hal.testing.fake:FakeBackend", {}), Limits(most=n_kills + 1, wait_s=0))
    backend = IsolatedBackend("cpu:0/fake", child, Events(), retries=True, close=child.close)
    executable = backend.compile(backend.discover()[0], graph, Configuration())
    inputs = example_inputs(graph)
    (expected,) = true_outputs(graph, inputs)
    taken = []
    for _ in range(n_kills):
        os.kill(child.worker().pid, signal.SIGKILL)
        started_s = time.perf_counter()
        (answer,) = executable.run(inputs)
        taken.append(time.perf_counter() - started_s)
        np.testing.assert_allclose(np.asarray(answer), expected, rtol=1e-5, atol=1e-6)
    backend.close()
    return taken


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    ref = plugins.reference(given.backend)
    here = plugins.open_backend(ref)
    configuration = Configuration.of("fp32", {"threads": 1})
    (device,) = [one for one in here.discover() if one.id == "cpu:0"]
    with WorkerBackend(ref) as apart:
        print(f"{'input':>12}{'output':>12}{'here':>12}{'in a child':>12}{'added':>12}")
        for n_bytes in SIZES:
            for is_reduced in (True, False):
                graph = streaming(n_bytes, is_reduced=is_reduced)
                pair = [one.compile(device, graph, configuration) for one in (here, apart)]
                inputs = example_inputs(graph)
                rounds = given.rounds if n_bytes < 1 << 20 else max(given.rounds // 10, 20)
                found = in_turn(pair[0], pair[1], inputs, rounds)
                cells = [format_bytes(n_bytes), "4 B" if is_reduced else format_bytes(n_bytes)]
                cells += [format_ns(round(one)) for one in (*found, found[1] - found[0])]
                print("".join(f"{cell:>12}" for cell in cells), flush=True)
        graph = computing()
        pair = [one.compile(device, graph, configuration) for one in (here, apart)]
        inputs = example_inputs(graph)
        print(f"\n{'threads':>12}{'here':>12}{'in a child':>12}  (runs per second)")
        for n_threads in (1, 2, 4):
            rates = [rate(one, inputs, n_threads, 2.0) for one in pair]
            print(f"{n_threads:>12}" + "".join(f"{one:>12.0f}" for one in rates), flush=True)
    taken = after_kills(given.kills)
    print(f"\nfrom a kill to the next right answer: median {statistics.median(taken):.2f} s, ", end="")
    print(f"longest {max(taken):.2f} s of {len(taken)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
