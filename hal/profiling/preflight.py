"""Opening a stranger's file for the first time in a process that may die of it.

onnx's native code (parsing, shape inference) crashes or never ends on some damaged files. A child goes
first; what it survives, this process survives too, because the steps are the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hal import errors
from hal.errors import HalError, ModelError
from hal.graph import reading
from hal.worker.process import ending

#: Time to read, bind and infer. Source: the slowest real model tested (2,176 nodes) takes 3 s; ten times
#: that, and as much again for a busy machine.
_DEADLINE_S = 60.0
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hal.profiling.preflight import go; go()"
)


def preflight(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    *,
    deadline_s: float = _DEADLINE_S,
    has_weights: bool = True,
) -> None:
    """Load and bind a model in a child process.

    Args:
        path: The file.
        shapes: Shapes by input name, as far as they are known.
        deadline_s: How long it may take.
        has_weights: Whether external data is read, see :meth:`hal.graph.model.Graph.load`.

    Raises:
        ModelError: The file is no usable model, kills the process that opens it, or keeps it busy for
            ever.
        InputError: The shapes do not fit.
    """
    reading.read(path)  # what needs no native code is said without waiting for a process
    words = [json.dumps(sys.path), str(path), json.dumps(dict(shapes)), json.dumps(has_weights)]
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", _BOOT, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=deadline_s,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"model {str(path)!r} keeps onnx busy for more than {deadline_s:g} s before it can run; "
            "the file is damaged or expands without end"
        ) from None
    if child.returncode:
        raise ModelError(
            f"model {str(path)!r} crashes onnx: the process that opened it {ending(child.returncode)}; "
            "the file is damaged"
        )
    answer = json.loads(child.stdout)
    if answer["error"]:
        raise getattr(errors, answer["error"])(answer["message"])


def go() -> None:
    """The child's side: answers with the error that loading met, if any, as JSON."""
    from hal.graph.model import Graph

    answer = {"error": "", "message": ""}
    try:
        has_weights = json.loads(sys.argv[4])
        graph = Graph.load(Path(sys.argv[2]), has_weights=has_weights)
        shapes = json.loads(sys.argv[3])
        if shapes or not graph.unbound:
            graph = graph.bind(shapes)
            if has_weights:
                graph.to_proto()
    except HalError as error:
        answer = {"error": type(error).__name__, "message": error.message}
    sys.stdout.write(json.dumps(answer))
