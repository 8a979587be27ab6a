"""Kernel times out of ONNX Runtime's profiles.

For each kernel the profiler writes shapes and memory figures as text, which costs about 5 us, partly within
the kernel's own time: small kernels seem slower than they are. No option turns that off.

The profile counts microseconds, so a kernel below one is seen as 0 or 1: sums over many tiny
kernels are rough. A node that holds a subgraph is timed with everything inside it; its kernel
here carries only what is left when the inner kernels are taken off, so each time counts once.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from hal.backend import Kernel, KernelRuns
from hal.errors import BackendError
from hal.graph.model import Graph
from hal_onnxruntime import attribution
from hal_onnxruntime.attribution import FlatGraph

_KERNEL = "_kernel_time"
_RUN = "model_run"
# Memory that the profiler takes for one event, and as much as is made ready for it at most.
# Source: 158 page faults of 4 KiB for 235 kernels, with ONNX Runtime 1.32.
_EVENT_BYTES, _MOST_EVENT_BYTES = 2_700, 256 << 20
# The blocked-layout rewrite renames values. Without it, and without the fusions that only happen
# where it did not, the rewritten graph is one that it could have started from.
# Source: names of the graph transformers in ONNX Runtime's optimizer folder.
_LAYOUT_REWRITES = ("NchwcTransformer", "ConvAddActivationFusion", "ConvActivationFusion")


class KernelEvent(msgspec.Struct, frozen=True):
    """One kernel in some runs: its name, operator, provider and a duration for each run."""

    name: str
    op: str
    provider: str
    durations_ns: tuple[int, ...]


class ProfiledRuns(msgspec.Struct, frozen=True):
    """What a profile says of the runs asked for."""

    kernels: tuple[KernelEvent, ...]
    run_ns: tuple[int, ...]


def read_profile(events: Sequence[Mapping[str, Any]], n_runs: int) -> ProfiledRuns:
    """Durations per kernel of the last ``n_runs`` runs in a profile.

    Args:
        events: The profile's JSON.
        n_runs: Runs to read; earlier ones are warm-up.

    Raises:
        BackendError: The profile holds fewer runs (the runtime stops at a million events).
    """
    runs = sorted((event for event in events if event["name"] == _RUN), key=lambda event: int(event["ts"]))
    if len(runs) < n_runs:
        raise BackendError(
            f"the profile holds {len(runs)} runs of {n_runs}: the runtime keeps a million events at most; "
            "ask for fewer instrumented runs"
        )
    runs = runs[len(runs) - n_runs :]
    starts = [int(run["ts"]) for run in runs]
    ends = [int(run["ts"]) + int(run["dur"]) for run in runs]
    totals: dict[tuple[str, str, str], list[int]] = {}
    order: dict[tuple[str, str, str], int] = {}
    run = 0
    nodes = (event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL))
    for event in sorted(nodes, key=lambda event: int(event["ts"])):
        start = int(event["ts"])
        while run < n_runs and start > ends[run]:
            run += 1
        if run == n_runs or start < starts[run]:
            continue
        words = event["args"]
        key = (event["name"].removesuffix(_KERNEL), words.get("op_name", ""), words.get("provider", ""))
        # A kernel in a loop comes several times in one run: its time is the sum.
        totals.setdefault(key, [0] * n_runs)[run] += int(event["dur"]) * 1000
        order.setdefault(key, len(order))
    return ProfiledRuns(
        tuple(KernelEvent(*key, tuple(totals[key])) for key in sorted(totals, key=order.__getitem__)),
        tuple(int(run["dur"]) * 1000 for run in runs),
    )


def own_times(kernels: Sequence[KernelEvent], parent: Mapping[str, str]) -> tuple[KernelEvent, ...]:
    """Take the time of kernels inside subgraphs off the kernels that hold the subgraphs.

    Args:
        kernels: As the profile tells them.
        parent: Node inside a subgraph to the node that holds it.
    """
    inner: dict[str, list[int]] = {}
    for kernel in kernels:
        holder = parent.get(kernel.name)
        if holder is not None:
            sums = inner.setdefault(holder, [0] * len(kernel.durations_ns))
            inner[holder] = [have + more for have, more in zip(sums, kernel.durations_ns, strict=True)]
    return tuple(
        kernel
        if kernel.name not in inner
        else msgspec.structs.replace(
            kernel,
            # Rounding to microseconds can make the parts a little longer than the whole.
            durations_ns=tuple(
                max(0, whole - parts)
                for whole, parts in zip(kernel.durations_ns, inner[kernel.name], strict=True)
            ),
        )
        for kernel in kernels
    )


class KernelMap(msgspec.Struct, frozen=True):
    """How kernels map to the graph: covers by kernel, holders of subgraphs, and folded nodes."""

    covers: dict[str, tuple[str, ...]]
    parent: dict[str, str]
    folded: tuple[str, ...]


class Recorder(msgspec.Struct, frozen=True):
    """Makes instrumented sessions of a graph.

    Attributes:
        graph: Bound.
        open: Makes a session from a function that sets fresh session options, and from the names of
            rewrites to leave out.
        device_of: Device id of a provider, empty for the target's own.
        run: Runs a session on inputs.
        provider: Name of the provider asked for.
    """

    graph: Graph
    open: Callable[[Callable[[Any], None], tuple[str, ...]], Any]
    device_of: Callable[[str], str]
    run: Callable[[Any], object]
    provider: str


def record(recorder: Recorder, n_runs: int) -> KernelRuns:
    """Compile once more with profiling on, run, and read.

    Raises:
        BackendError: The runtime failed, or the profile cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="hal-onnxruntime-") as name:
        folder = Path(name)
        session, saved = _open_recording(recorder, folder)
        kept = _touched(len(recorder.graph.nodes) * (n_runs + 1) * _EVENT_BYTES)
        run_ns: list[int] = []
        for _ in range(n_runs + 1):  # one to warm up
            start_ns = time.perf_counter_ns()
            recorder.run(session)
            run_ns.append(time.perf_counter_ns() - start_ns)
        del kept
        try:
            profile = Path(session.end_profiling())
            events = json.loads(profile.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError) as error:
            raise BackendError(f"onnxruntime wrote no profile that can be read: {error}") from error
        profiled = read_profile(events, n_runs)
        found = _saved_mapping(recorder, folder) if saved else _assigned_mapping(recorder, session, profiled)
    kernels = own_times(profiled.kernels, found.parent)
    return KernelRuns(
        kernels=tuple(
            Kernel(
                name=kernel.name,
                type=kernel.op,
                nodes=found.covers.get(kernel.name, ()),
                durations_ns=kernel.durations_ns,
                device=recorder.device_of(kernel.provider),
            )
            for kernel in kernels
        ),
        # As plain runs are timed; the profile's own figure leaves out the way into the session.
        run_ns=tuple(run_ns[1:]),
        folded=found.folded,
    )


def _touched(n_bytes: int) -> bytes:
    """Make the process take memory for events now: a page fault costs as much as writing the event.

    Returns:
        What must live until the memory is used; it keeps the allocator from handing the rest back.
    """
    size = 1_000  # small enough to come from the heap, where the events will lie
    blocks = [bytes([index & 1]) * size for index in range(min(n_bytes, _MOST_EVENT_BYTES) // size)]
    last = b"\1" * size
    del blocks
    return last


def _open_recording(recorder: Recorder, folder: Path) -> tuple[Any, bool]:
    def profiled(options: Any) -> None:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")

    def saving(options: Any) -> None:
        profiled(options)
        _save_to(options, folder / "rewritten.onnx")

    try:
        return recorder.open(saving, ()), True
    except BackendError:
        # Providers that compile subgraphs leave nodes that no file can hold.
        return recorder.open(profiled, ()), False


def _save_to(options: Any, path: Path) -> None:
    options.optimized_model_filepath = str(path)
    # Weights are of no interest and may be large: beside the file, where nobody reads them.
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{path.name}.data"
    )
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
    )


def _saved_mapping(recorder: Recorder, folder: Path) -> KernelMap:
    before = FlatGraph(recorder.graph.model.graph)
    after = FlatGraph(ir.load(folder / "rewritten.onnx").graph)
    if attribution.has_layout_nodes(after):
        plain = folder / "plain.onnx"
        recorder.open(lambda options: _save_to(options, plain), _LAYOUT_REWRITES)
        middle = FlatGraph(ir.load(plain).graph)
        covers = attribution.compose(
            attribution.node_covers(before, middle), attribution.node_covers(middle, after)
        )
    else:
        covers = attribution.node_covers(before, after)
    folded = attribution.folded_nodes(before, {node for nodes in covers.values() for node in nodes})
    covers.update({inner: covers.get(after.top(inner), ()) for inner in after.parent})
    return KernelMap(covers, after.parent, folded)


def _assigned_mapping(recorder: Recorder, session: Any, profiled: ProfiledRuns) -> KernelMap:
    before = FlatGraph(recorder.graph.model.graph)
    covers: dict[str, tuple[str, ...]] = {
        kernel.name: (node,)
        for kernel in profiled.kernels
        if (node := attribution.named_node(before, kernel.name))
    }
    groups = [
        tuple(
            dict.fromkeys(
                before.top(node.name) for node in part.get_nodes() if before.top(node.name) in before.nodes
            )
        )
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == recorder.provider
    ]
    compiled = [
        kernel.name
        for kernel in profiled.kernels
        if kernel.provider == recorder.provider and kernel.name not in covers
    ]
    # Both are numbered as the provider claimed its subgraphs; unequal counts mean something else.
    if len(compiled) == len(groups):
        covers.update(zip(sorted(compiled, key=_numbers), groups, strict=True))
    attribution.absorb(before, covers)
    folded = attribution.folded_nodes(before, {node for nodes in covers.values() for node in nodes})
    return KernelMap(covers, before.parent, folded)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", name))
