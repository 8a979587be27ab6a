"""The child's side of a worker: opens one backend and answers until its parent is gone."""

from __future__ import annotations

import gc
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hal import backend as contract
from hal.backend import Backend, Executable
from hal.errors import BackendError, ContractViolation
from hal.plugins import open_backend
from hal.tensor import Array, as_numpy
from hal.trace import enable_from_environment
from hal.worker import messages
from hal.worker.arena import keep, remove
from hal.worker.channel import Channel
from hal.worker.memory import resident
from hal.worker.sampler import Sampler

if TYPE_CHECKING:
    from hal.graph.model import Graph

BACKEND_ABILITIES = ("Telemetry", "BlobLoader", "Diagnosis")
EXECUTABLE_ABILITIES = ("KernelTimes", "DeviceTime", "CompiledBlob", "MemoryUse", "Placements")


class Server:
    """Answers requests with one backend and its executables.

    Runs of executables may be under way at once, on a thread for each channel; all else is done by one
    thread at a time, as the contract has it.
    """

    def __init__(self) -> None:
        self._serial = threading.Lock()
        self._backend: Backend | None = None
        self._graphs: dict[str, Graph] = {}
        self._executables: dict[int, Executable] = {}
        self._samplers: dict[int, Sampler] = {}
        self._handles = itertools.count()
        self._carriers: dict[type, Callable[[Any, Channel], Any]] = {
            messages.TimedRun: lambda r, channel: self._able(r, contract.DeviceTime).timed_run(
                channel.reader.get(r.inputs)
            ),
            messages.Prepare: self._prepare,
            messages.Kernels: lambda r, channel: self._able(r, contract.KernelTimes).kernel_runs(
                channel.reader.get(r.inputs), r.n_runs
            ),
        }
        self._handlers: dict[type, Callable[[Any], Any]] = {
            messages.Open: self._open,
            messages.Discover: lambda _: self._discover(),
            messages.Options: lambda r: tuple(self.backend.options(r.device)),
            messages.Capability: lambda r: dict(
                self.backend.capability(r.device, self._graph(r.model), r.precision)
            ),
            messages.Compile: self._compile,
            messages.LoadBlob: self._load_blob,
            messages.WarmUp: lambda r: self._samplers[r.handle].warm_up(r.policy),
            messages.Burst: lambda r: self._samplers[r.handle].burst(r.policy),
            messages.Blob: self._blob,
            messages.MemoryBytes: lambda r: self._able(r, contract.MemoryUse).memory_bytes(),
            messages.Fallbacks: lambda r: tuple(self._able(r, contract.Placements).fallbacks()),
            messages.ReadTelemetry: lambda r: dict(
                self._backend_able(contract.Telemetry).telemetry(r.device)
            ),
            messages.Diagnose: lambda _: tuple(self._backend_able(contract.Diagnosis).diagnose()),
            messages.Resident: lambda _: messages.ResidentBytes(*resident()),
            messages.Close: self._close,
        }

    @property
    def backend(self) -> Backend:
        """The open backend."""
        if self._backend is None:
            raise BackendError("no backend is open yet; expected an Open message first")
        return self._backend

    def answer(self, data: bytes, channel: Channel) -> bytes:
        """Handle one request that came through a channel; errors become answers."""
        # Whatever a plugin raises, the parent must hear of it: this is the plugin boundary.
        try:
            known = channel.reader.known.get(data)
            if known is not None:
                handle, inputs = known
                return self._run(handle, inputs, channel)
            request = messages.decode_request(data)
            if type(request) is messages.Run:
                return self._first_run(request, data, channel)
            with self._serial:
                carrier = self._carriers.get(type(request))
                if carrier is not None:
                    result = carrier(request, channel)
                else:
                    result = self._handlers[type(request)](request)
        except Exception as error:  # noqa: BLE001
            return messages.failure(error)
        try:
            return messages.answer(result)
        except (TypeError, ValueError, OverflowError) as error:
            step = type(request).__name__.lower()
            return messages.failure(
                ContractViolation(
                    f"backend {self.backend.name!r} answered {step!r} with something that is not plain data: "
                    f"{error}; expected the types of hal.backend, with built-in values"
                )
            )

    def _open(self, request: messages.Open) -> messages.Opened:
        self._backend = open_backend(request.ref)
        return messages.Opened(
            self._backend.name, self._backend.api_version, _abilities(self._backend, BACKEND_ABILITIES)
        )

    def _discover(self) -> tuple[contract.Device, ...]:
        found = tuple(self.backend.discover())
        # The libraries are loaded now and stay: collections before warm-ups need not look through their
        # objects each time (100 ms with PyTorch).
        gc.collect()
        gc.freeze()
        return found

    def _graph(self, model: messages.Model) -> Graph:
        if model.digest not in self._graphs:
            # Half a second of imports that discovery and diagnosis do without.
            from hal.graph.model import Graph

            self._graphs = {
                model.digest: Graph.load_prepared(Path(model.path), name=model.name, digest=model.digest)
            }
        return self._graphs[model.digest]

    def _compile(self, request: messages.Compile) -> messages.Compiled:
        graph = self._graph(request.model)
        started_ns = time.perf_counter_ns()
        executable = self.backend.compile(request.device, graph, request.configuration)
        return self._keep(executable, time.perf_counter_ns() - started_ns)

    def _load_blob(self, request: messages.LoadBlob) -> messages.Compiled:
        loader = self._backend_able(contract.BlobLoader)
        blob = Path(request.path).read_bytes()
        started_ns = time.perf_counter_ns()
        executable = loader.load_blob(request.device, blob, request.configuration)
        return self._keep(executable, time.perf_counter_ns() - started_ns)

    def _keep(self, executable: Executable, compile_ns: int) -> messages.Compiled:
        handle = next(self._handles)
        self._executables[handle] = executable
        abilities = _abilities(executable, EXECUTABLE_ABILITIES)
        return messages.Compiled(handle, executable.signature, abilities, compile_ns)

    def _first_run(self, request: messages.Run, data: bytes, channel: Channel) -> bytes:
        inputs = channel.reader.look(request.inputs)
        if request.inputs.is_plain:
            keep(channel.reader.known, data, (request.handle, inputs))
        return self._run(request.handle, inputs, channel)

    def _run(self, handle: int, inputs: Sequence[Array], channel: Channel) -> bytes:
        # An executable only borrows its inputs: they are read where they lie.
        outputs = self._executables[handle].run(inputs)
        laid = channel.writer.put([as_numpy(output) for output in outputs])
        packed = laid.packed.get(0)
        if packed is None:
            packed = laid.packed[0] = messages.answer(laid.sent)
        return packed

    def _prepare(self, request: messages.Prepare, channel: Channel) -> None:
        inputs: Sequence[Array] = channel.reader.get(request.inputs)
        self._samplers[request.handle] = Sampler(self._executables[request.handle], inputs)

    def _blob(self, request: messages.Blob) -> int:
        blob = self._able(request, contract.CompiledBlob).blob()
        return Path(request.path).write_bytes(blob)

    def _close(self, request: messages.Close) -> None:
        self._samplers.pop(request.handle, None)
        self._executables.pop(request.handle).close()

    def _able(self, request: Any, kind: type[Any]) -> Any:
        ability = self._executables[request.handle].ability(kind)
        if ability is None:
            raise BackendError(f"{self.backend.name} cannot do {kind.__name__} for this executable")
        return ability

    def _backend_able(self, kind: type[Any]) -> Any:
        ability = self.backend.ability(kind)
        if ability is None:
            raise BackendError(f"{self.backend.name} cannot do {kind.__name__}")
        return ability


def _abilities(owner: Backend | Executable, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if owner.ability(getattr(contract, name)) is not None)


def _leave(folders: Sequence[Path], status: int) -> None:
    """End this process; where the parent was killed nobody else takes the folders away."""
    remove(folders)
    # Frameworks may crash or hang while they are torn down; nothing is left to save.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _follow_parent(lifeline: int, folders: Sequence[Path]) -> None:
    os.read(lifeline, 1)  # returns, empty, when the parent is gone
    remove(folders)
    os._exit(1)  # native code may hold every other way out


def _open_channels(door: socket.socket, server: Server, folders: Sequence[Path]) -> None:
    """Serve each channel that comes through the door on a thread of its own, until the door closes."""
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(door, 1, 1)
        except OSError:  # the parent was killed
            data = b""
        if not data:
            _leave(folders, 0)
        for fd in fds:
            channel = Channel(socket.socket(fileno=fd), folders, "out")
            threading.Thread(target=_serve, args=(channel, server), daemon=True).start()


def _serve(channel: Channel, server: Server) -> None:
    """Answer what comes until the other side closes."""
    try:
        while True:
            data = channel.receive()
            if data is not None:
                channel.send(server.answer(data, channel))
    except (EOFError, OSError):
        channel.close()


def main() -> None:
    """Serve on the sockets given on the command line until they close."""
    fds, folders = map(int, sys.argv[2:5]), tuple(map(Path, sys.argv[5:]))
    first, door, lifeline = fds
    enable_from_environment()
    server = Server()
    threading.Thread(target=_follow_parent, args=(lifeline, folders), daemon=True).start()
    entrance = socket.socket(fileno=door)
    threading.Thread(target=_open_channels, args=(entrance, server, folders), daemon=True).start()
    _serve(Channel(socket.socket(fileno=first), folders, "out"), server)
    _leave(folders, 0)
