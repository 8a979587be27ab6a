"""A runtime called directly, as its own documentation shows it, without hal: the other side of end_to_end.py.

Reads ``burst N`` lines from stdin and answers each with a JSON list of N durations in nanoseconds.
Run as: python direct.py RUNTIME MODEL.onnx INPUTS.npz THREADS PRECISION
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def onnxruntime_call(model: str, inputs: dict[str, Any], threads: int, _: str) -> Callable[[], Any]:
    """InferenceSession.run with numpy feeds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def openvino_call(model: str, inputs: dict[str, Any], threads: int, precision: str) -> Callable[[], Any]:
    """InferRequest.infer in the precision asked for, on tensors set once, results copied out.

    Without the Python wrapper around ``infer``, which costs up to 40 us per call: hal does not go through it.
    """
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        },
    )
    request = compiled.create_infer_request()
    for port in compiled.inputs:
        (name,) = port.get_names() & inputs.keys()
        request.set_tensor(port, openvino.Tensor(inputs[name], shared_memory=True))
    infer = super(openvino.InferRequest, request).infer
    return lambda: [view.copy() for view in infer({}, True, False).values()]


def torch_call(model: str, inputs: dict[str, Any], threads: int, precision: str) -> Callable[[], Any]:
    """The bridged module called under inference_mode, inputs from numpy, outputs back to numpy."""
    import onnx_ir
    import torch

    from hal_torch.bridge import bridge, lower_weights

    torch.set_num_threads(threads)
    module = bridge(onnx_ir.load(model)).eval()
    if precision == "bf16":
        lower_weights(module, torch.bfloat16)

    def call() -> list[Any]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = module(*[torch.from_numpy(value) for value in inputs.values()])
            return [
                output.float().numpy() if output.is_floating_point() else output.numpy() for output in outputs
            ]

    return call


CALLS = {"onnxruntime": onnxruntime_call, "openvino": openvino_call, "cpu": torch_call}


def rest() -> None:
    """Wait until thread pools have stopped spinning, so that hal's burst is not slowed by them."""
    for _ in range(60):
        before_ns = time.process_time_ns()
        time.sleep(0.004)
        if time.process_time_ns() - before_ns < 400_000:
            return


def main() -> None:
    """Serve bursts until stdin closes."""
    runtime, model, inputs_file, threads, precision = sys.argv[1:6]
    with np.load(inputs_file) as stored:
        inputs = {name: stored[name] for name in stored.files}
    call = CALLS[runtime](model, inputs, int(threads), precision)
    call()
    print("ready", flush=True)
    for line in sys.stdin:
        durations = []
        gc.collect()
        gc.disable()
        call()
        for _ in range(int(line.split()[1])):
            started_ns = time.perf_counter_ns()
            call()
            durations.append(time.perf_counter_ns() - started_ns)
        gc.enable()
        rest()
        print(json.dumps(durations), flush=True)


if __name__ == "__main__":
    main()
