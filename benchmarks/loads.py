"""A model under load by hand, as the runtimes' documentation shows it, or by hal: a side of throughput.py.

Reads ``burst SECONDS`` lines from stdin; answers each with requests per second.
Run as: python -m benchmarks.loads SIDE MODEL.onnx INPUTS.npz, where SIDE is ``hal``, ``onnxruntime`` or
``openvino``, the runtimes with ``:BATCH`` for a file whose first dimensions are as many times as large.
Requests come one by one on every side: who gathers them joins the inputs and divides the outputs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

#: Runs for some seconds; gives the requests that were answered.
Burst = Callable[[float], int]


def joined(feeds: dict[str, Any], batch: int) -> dict[str, Any]:
    """Inputs of several requests as those of one run."""
    if batch == 1:
        return feeds
    return {key: np.concatenate([value] * batch) for key, value in feeds.items()}


def divided(outputs: Sequence[Any], batch: int) -> list[Any]:
    """Outputs of a run as those of each request, with memory of their own."""
    if batch == 1:
        return list(outputs)
    return [part.copy() for output in outputs for part in np.split(output, batch)]


def onnxruntime_burst(model: str, feeds: dict[str, Any], batch: int) -> Burst:
    """As many threads as processors call one session, each run on one of them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    n_threads = len(os.sched_getaffinity(0))

    def burst(seconds: float) -> int:
        counts = [0] * n_threads
        until = time.perf_counter() + seconds

        def work(at: int) -> None:
            while time.perf_counter() < until:
                divided(session.run(None, joined(feeds, batch)), batch)
                counts[at] += batch

        threads = [threading.Thread(target=work, args=(at,)) for at in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts)

    return burst


def openvino_burst(model: str, feeds: dict[str, Any], batch: int) -> Burst:
    """The throughput hint and an AsyncInferQueue of the size that OpenVINO chooses, results copied."""
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "THROUGHPUT",
    }
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    queue = openvino.AsyncInferQueue(compiled)
    done: list[int] = []

    def collect(request: Any, _: Any) -> None:
        outputs = [request.get_output_tensor(port).data for port in range(len(compiled.outputs))]
        divided([output.copy() for output in outputs] if batch == 1 else outputs, batch)
        done.append(batch)

    queue.set_callback(collect)

    def burst(seconds: float) -> int:
        done.clear()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            queue.start_async(joined(feeds, batch))
        queue.wait_all()
        return sum(done)

    return burst


def hal_burst(model: str, feeds: dict[str, Any], _: int) -> Burst:
    """``session.stream`` of a session that was compiled for throughput."""
    import hal

    session = hal.compile(model, feeds, objective="throughput")
    print(session.plan.throughput, session.plan.targets, file=sys.stderr, flush=True)

    def burst(seconds: float) -> int:
        until = time.perf_counter() + seconds

        def source() -> Iterator[dict[str, Any]]:
            while time.perf_counter() < until:
                yield feeds

        return sum(1 for _ in session.stream(source()))

    return burst


SIDES: dict[str, Callable[[str, dict[str, Any], int], Burst]] = {
    "hal": hal_burst,
    "onnxruntime": onnxruntime_burst,
    "openvino": openvino_burst,
}


def main() -> None:
    """Serve bursts until stdin closes."""
    side, model, inputs = sys.argv[1:4]
    name, _, batch = side.partition(":")
    with np.load(inputs) as stored:
        feeds = {key: stored[key] for key in stored.files}
    burst = SIDES[name](model, feeds, int(batch or 1))
    burst(0.2)
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        n_requests = burst(float(line.split()[1]))
        print(n_requests / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
