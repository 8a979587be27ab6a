"""Which nodes each kernel of Inductor computes: its structured log, joined with what the profiler saw."""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

#: A kernel as launched by compiled code: its name, and the names of the fx nodes it computes.
Launch = tuple[str, frozenset[str]]

_TRACES = "inductor_provenance_tracking_kernel_stack_traces"


@contextmanager
def recorded(observed: bool) -> Iterator[list[list[Launch]]]:
    """Collect what Inductor logs of its kernels while it compiles, one list per compiled graph.

    Source: torch.utils' structured trace log (``torch.__trace``), which tlparse reads too.
    """
    graphs: list[list[Launch]] = []
    if not observed:
        yield graphs
        return
    log = logging.getLogger("torch.__trace")
    listener = _Listener(graphs)
    log.addHandler(listener)
    try:
        yield graphs
    finally:
        log.removeHandler(listener)


class _Listener(logging.Handler):
    def __init__(self, graphs: list[list[Launch]]) -> None:
        super().__init__()
        self._graphs = graphs

    def emit(self, record: logging.LogRecord) -> None:
        artifact = getattr(record, "metadata", {}).get("artifact", {})
        if artifact.get("name") == _TRACES:
            traces = json.loads(getattr(record, "payload", None) or "{}")
            ordered = sorted(traces.items(), key=lambda item: int(item[0].rpartition(":")[2]))
            self._graphs.append(
                [(name.rpartition(":")[0], frozenset(map(_assigned, found))) for name, found in ordered]
            )


def _assigned(trace: str) -> str:
    """The fx node whose line of the module's code a stack trace starts at; empty where it is not."""
    lines = trace.splitlines()
    for index, line in enumerate(lines[:-1]):
        # torch.fx names the code it generates so; nested modules come further down the stack.
        if "<eval_with_key>" in line:
            found = re.match(r"\s*(\w+)(?::[^=]+)? = ", lines[index + 1])
            return found[1] if found else ""
    return ""


def align(events: Sequence[str], kernels: Sequence[Launch]) -> list[frozenset[str]]:
    """For each launch that the profiler saw, the fx nodes of the kernel it is; empty where unsure.

    Both sequences are in order of execution and nearly equal, but spell names differently
    (``graph_0_cpp_fused_add_1`` and ``cpp_fused_add_1``, ``aten::mm`` and ``extern_kernels.mm``).
    """
    seen = [_spelling(name) for name in events]
    known = [_spelling(name) for name, _ in kernels]
    result = [frozenset[str]() for _ in events]
    matcher = difflib.SequenceMatcher(None, seen, known, autojunk=False)
    for start, offset, size in matcher.get_matching_blocks():
        for step in range(size):
            result[start + step] = kernels[offset + step][1]
    return [nodes - {""} for nodes in result]


def _spelling(name: str) -> str:
    name = re.sub(r"^graph_\d+_", "", name).removesuffix(".default").removesuffix(".out")
    name = re.split(r"::|\.", name)[-1]
    return {"bias_addmm": "addmm"}.get(name, name)
