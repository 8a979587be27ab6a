"""Which nodes each kernel of Inductor computes: its structured log, joined with what the profiler saw."""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

#: A kernel as launched by compiled code: its name, and the names of the fx nodes it computes.
Launch = tuple[str, frozenset[str]]

_TRACES = "inductor_provenance_tracking_kernel_stack_traces"


def homes(module: torch.fx.GraphModule) -> dict[str, str]:
    """For each file name of generated code: the fx node of the module that runs it.

    That is the node which calls the branch or loop body of the code, or an empty text for the module's own.
    """
    found = {}
    for call in (node for node in module.graph.nodes if node.op == "call_module"):
        for inner in module.get_submodule(str(call.target)).modules():
            if isinstance(inner, torch.fx.GraphModule):
                found[_file(inner)] = call.name
    return found | {_file(module): ""}


def _file(module: torch.fx.GraphModule) -> str:
    return str(type(module).forward.__code__.co_filename)


@contextmanager
def recorded(module: torch.fx.GraphModule | None) -> Iterator[list[list[Launch]]]:
    """Collect what Inductor logs of its kernels while it compiles, one list per compiled graph.

    Args:
        module: What is compiled; None collects nothing.

    Source: torch.utils' structured trace log (``torch.__trace``), which tlparse reads too.
    """
    graphs: list[list[Launch]] = []
    if module is None:
        yield graphs
        return
    log = logging.getLogger("torch.__trace")
    listener = _Listener(graphs, homes(module))
    log.addHandler(listener)
    try:
        yield graphs
    finally:
        log.removeHandler(listener)


class _Listener(logging.Handler):
    def __init__(self, graphs: list[list[Launch]], home: Mapping[str, str]) -> None:
        super().__init__()
        self._graphs = graphs
        self._homes = home

    def emit(self, record: logging.LogRecord) -> None:
        artifact = getattr(record, "metadata", {}).get("artifact", {})
        if artifact.get("name") == _TRACES:
            traces = json.loads(getattr(record, "payload", None) or "{}")
            ordered = sorted(traces.items(), key=lambda item: int(item[0].rpartition(":")[2]))
            self._graphs.append(
                [
                    (name.rpartition(":")[0], frozenset(_assigned(trace, self._homes) for trace in found))
                    for name, found in ordered
                ]
            )


def _assigned(trace: str, home: Mapping[str, str]) -> str:
    """The fx node whose line of the module's code a stack trace passes; empty where there is none."""
    lines = trace.splitlines()
    for index, line in enumerate(lines[:-1]):
        # torch.fx names the code it generates so. The outermost comes first.
        file = re.search(r'"(<eval_with_key>[^"]*)"', line)
        if file and file[1] in home:
            found = re.match(r"\s*(\w+)(?::[^=]+)? = ", lines[index + 1])
            return home[file[1]] or (found[1] if found else "")
    return ""


def matched(
    regions: Sequence[Sequence[str]], graphs: Sequence[Sequence[Launch]]
) -> list[list[frozenset[str]]]:
    """For each launch in each region of one run, the fx nodes of the kernel it is; empty where unsure.

    A region is one call of a compiled graph. Where each graph was called once, they come in the order of
    compilation. Else, a graph may have been called several times (the body of a loop) or not at all: a
    region is then the graph that has its kernels, unless two have and disagree on their nodes.
    """
    if len(regions) == len(graphs):
        return [align(events, kernels) for events, kernels in zip(regions, graphs, strict=True)]
    result = []
    for events in regions:
        answers = [align(events, kernels) for kernels in graphs if len(kernels) == len(events)]
        whole = [answer for answer in answers if all(answer)]
        agreed = whole and all(answer == whole[0] for answer in whole)
        result.append(whole[0] if agreed else [frozenset[str]() for _ in events])
    return result


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
