"""A model compiled by OpenVINO, as hal runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hal.backend import Executable, KernelRuns, Signature
from hal.clock import Clock, MonotonicClock
from hal.errors import BackendError, InputError
from hal.tensor import Tensor
from hal_openvino import blobs
from hal_openvino.atlas import Atlas
from hal_openvino.failures import summary
from hal_openvino.instrumented import InstrumentedModel
from hal_openvino.lanes import Lane
from hal_openvino.ports import Port


class OpenVinoExecutable(Executable):
    """A compiled model with a pool of inference requests.

    ``run`` and ``submit`` may be called from several threads; each call has a request of its own.
    """

    def __init__(
        self,
        compiled: Any,
        signature: Signature,
        *,
        atlas: Atlas,
        stamp: blobs.Stamp,
        instrument: Callable[[], Any],
        clock: Clock | None = None,
    ) -> None:
        self._compiled = compiled
        self._signature = signature
        self._atlas = atlas
        self._stamp = stamp
        self._instrument: Callable[[], Any] | None = instrument
        self._instrumented: InstrumentedModel | None = None
        self._clock = clock or MonotonicClock()
        self._inputs = _ports(signature.inputs, compiled.inputs, "input")
        self._outputs = _ports(signature.outputs, compiled.outputs, "output")
        self._idle = [self._new_lane()]

    @property
    def signature(self) -> Signature:
        """Inputs and outputs by position, in the order of the graph's."""
        return self._signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """Run once; see :meth:`hal.backend.Executable.run`."""
        lane = self._take()
        try:
            return lane.run(inputs, outputs)
        except RuntimeError as error:
            raise run_failure(error) from error
        finally:
            self._give_back(lane)

    def submit(self, inputs: Sequence[Tensor]) -> Run:
        """Start a run; see :class:`hal.backend.AsyncRun`."""
        lane = self._take()
        try:
            held = lane.feed(inputs)
            targets = lane.bind(None)
            lane.request.start_async({}, None)
        except InputError:
            self._give_back(lane)
            raise
        except RuntimeError as error:
            raise run_failure(error) from error

        def collect() -> Sequence[Tensor]:
            results = lane.collect(targets, None)
            self._give_back(lane)
            return results

        return Run(lane.request, collect, held)

    def kernel_runs(self, inputs: Sequence[Tensor], n_runs: int) -> KernelRuns:
        """Time kernels in ``n_runs`` runs; see :class:`hal.backend.KernelTimes`.

        A second compilation, with performance counters, is made at the first call and kept. Counters
        tick in microseconds and round down, so the sum over many tiny kernels is below the truth.
        """
        if self._compiled is None or self._instrument is None:
            raise BackendError("this executable is closed; compile the graph again")
        if self._instrumented is None:
            compiled = self._instrument()
            lane = Lane(compiled.create_infer_request(), self._inputs, self._outputs)
            self._instrumented = InstrumentedModel(compiled, lane, self._atlas)
        return self._instrumented.run(inputs, n_runs, self._clock)

    def blob(self) -> bytes:
        """The compiled form; see :class:`hal.backend.CompiledBlob`.

        Raises:
            BackendError: The device cannot export what it compiled.
        """
        if self._compiled is None:
            raise BackendError("this executable is closed; compile the graph again")
        try:
            content = self._compiled.export_model().getvalue()
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot export this model: {summary(error)}") from error
        return blobs.pack(self._stamp, self._signature, self._atlas, content)

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        self._idle = []
        self._compiled = self._instrumented = self._instrument = None

    # --- one run ---------------------------------------------------------------------------------

    def _take(self) -> Lane:
        try:
            return self._idle.pop()
        except IndexError:
            if self._compiled is None:
                raise BackendError("this executable is closed; compile the graph again") from None
            return self._new_lane()

    def _give_back(self, lane: Lane) -> None:
        if self._compiled is not None:
            self._idle.append(lane)

    def _new_lane(self) -> Lane:
        return Lane(self._compiled.create_infer_request(), self._inputs, self._outputs)


class Run:
    """A run under way; see :class:`hal.backend.Pending`."""

    def __init__(self, request: Any, collect: Callable[[], Sequence[Tensor]], held: Any) -> None:
        self._request = request
        self._collect = collect
        self._held = held  # the inputs that OpenVINO reads
        self._results: Sequence[Tensor] | None = None

    def wait(self) -> Sequence[Tensor]:
        """Block until the outputs can be read, and return them; again for a second call."""
        if self._results is None:
            try:
                self._request.wait()
            except RuntimeError as error:
                raise run_failure(error) from error
            self._results = self._collect()
            self._request = self._held = None
        return self._results


def run_failure(error: RuntimeError) -> BackendError:
    """A runtime's exception in hal's words."""
    if isinstance(error, BackendError):
        return error
    return BackendError(f"OpenVINO failed while running: {summary(error)}")


def _ports(specs: Sequence[Any], compiled: Sequence[Any], role: str) -> list[Port]:
    """Match the graph's tensors with the compiled model's: inputs by name, outputs by position.

    OpenVINO drops unused inputs. It keeps all outputs in order, and gives those of one source one name.
    """
    by_name = {name: index for index, port in enumerate(compiled) for name in port.get_names()}
    if role == "output" and len(compiled) != len(specs):
        raise BackendError(
            f"OpenVINO kept {len(compiled)} of {len(specs)} outputs: {', '.join(sorted(by_name))}; "
            "use another backend"
        )
    # A compiled input that no tensor is for would be run on whatever its memory holds.
    known = {spec.name for spec in specs}
    unfed = [port for port in compiled if role == "input" and not known & port.get_names()]
    if unfed:
        names = sorted(name for port in unfed for name in port.get_names())
        raise BackendError(
            f"OpenVINO's model reads {', '.join(names) or 'a tensor without a name'}, no input of the graph; "
            f"expected {', '.join(spec.name for spec in specs) or 'none'}: compile the graph again"
        )
    found: list[Port] = []
    for position, spec in enumerate(specs):
        index = position if role == "output" else by_name.get(spec.name, -1)
        shape = tuple(spec.shape)
        fixed = all(isinstance(size, int) for size in shape)
        if role == "output":
            told = compiled[index].partial_shape
            shape = tuple(told.to_shape()) if told.is_static else shape
            fixed = told.is_static
        found.append(Port(spec, index, shape if fixed else None, role))
    return found
