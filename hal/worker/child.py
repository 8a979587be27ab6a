"""The child's side of a worker: opens one backend and answers until its parent is gone."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hal import backend as contract
from hal.backend import Backend, Executable
from hal.errors import BackendError, ContractViolation
from hal.plugins import open_backend
from hal.tensor import Array, as_numpy
from hal.trace import enable_from_environment
from hal.worker import messages
from hal.worker.arena import Reader, Writer
from hal.worker.memory import resident
from hal.worker.sampler import Sampler

if TYPE_CHECKING:
    from hal.graph.model import Graph

BACKEND_ABILITIES = ("Telemetry", "BlobLoader", "Diagnosis")
EXECUTABLE_ABILITIES = ("KernelTimes", "DeviceTime", "CompiledBlob", "MemoryUse", "Placements")


class Server:
    """Answers requests with one backend and its executables."""

    def __init__(self, folder: Path) -> None:
        self._reader = Reader()
        self._writer = Writer(folder, "out")
        self._backend: Backend | None = None
        self._graphs: dict[str, Graph] = {}
        self._executables: dict[int, Executable] = {}
        self._samplers: dict[int, Sampler] = {}
        self._handles = itertools.count()
        self._handlers: dict[type, Callable[[Any], Any]] = {
            messages.Open: self._open,
            messages.Discover: lambda _: self._discover(),
            messages.Options: lambda r: tuple(self.backend.options(r.device)),
            messages.Capability: lambda r: dict(
                self.backend.capability(r.device, self._graph(r.model), r.precision)
            ),
            messages.Compile: self._compile,
            messages.LoadBlob: self._load_blob,
            messages.Run: self._run,
            messages.TimedRun: lambda r: self._able(r, contract.DeviceTime).timed_run(
                self._tensors(r.inputs)
            ),
            messages.Prepare: self._prepare,
            messages.WarmUp: lambda r: self._samplers[r.handle].warm_up(r.policy),
            messages.Burst: lambda r: self._samplers[r.handle].burst(r.policy),
            messages.Kernels: lambda r: self._able(r, contract.KernelTimes).kernel_runs(
                self._tensors(r.inputs), r.n_runs
            ),
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

    def answer(self, data: bytes) -> bytes:
        """Handle one request; errors become answers."""
        # Whatever a plugin raises, the parent must hear of it: this is the plugin boundary.
        try:
            request = messages.decode_request(data)
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

    def _run(self, request: messages.Run) -> messages.Tensors:
        outputs = self._executables[request.handle].run(self._tensors(request.inputs))
        return self._writer.put([as_numpy(output) for output in outputs])

    def _prepare(self, request: messages.Prepare) -> None:
        inputs = self._tensors(request.inputs)
        self._samplers[request.handle] = Sampler(self._executables[request.handle], inputs)

    def _blob(self, request: messages.Blob) -> int:
        blob = self._able(request, contract.CompiledBlob).blob()
        return Path(request.path).write_bytes(blob)

    def _close(self, request: messages.Close) -> None:
        self._samplers.pop(request.handle, None)
        self._executables.pop(request.handle).close()

    def _tensors(self, sent: messages.Tensors) -> Sequence[Array]:
        self._writer.delivered()
        return self._reader.get(sent)

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


def _follow_parent(lifeline: int, folder: str) -> None:
    os.read(lifeline, 1)  # returns, empty, when the parent is gone
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)  # native code may hold every other way out


def main() -> None:
    """Serve on the socket given on the command line until it closes."""
    connection_fd, lifeline, folder = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    enable_from_environment()
    threading.Thread(target=_follow_parent, args=(lifeline, folder), daemon=True).start()
    connection = Connection(connection_fd)
    server = Server(Path(folder))
    while True:
        try:
            data = connection.recv_bytes()
        except EOFError:
            break
        connection.send_bytes(server.answer(data))
    # The parent closed the line or was killed: in that case nobody else takes the folder away.
    shutil.rmtree(folder, ignore_errors=True)
    # Frameworks may crash or hang while they are torn down; nothing is left to save.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
