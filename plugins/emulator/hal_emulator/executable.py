"""A graph on an emulated device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hal.backend import Configuration, Device, Executable, Kernel, KernelRuns, Signature, Tensor
from hal.errors import BackendError
from hal.graph.facts import facts
from hal.graph.fusion import is_view, kernels
from hal.graph.model import Graph
from hal.tensor import Array, as_numpy, deliver, host_inputs
from hal_emulator.answers import Answers, answers
from hal_emulator.machine import Machine
from hal_emulator.sheet import HOST
from hal_emulator.tensor import EmulatedTensor


class EmulatedExecutable(Executable):
    """Computes on this processor and charges the device's virtual time and memory.

    Args:
        machine: The device is part of.
        device: The device.
        graph: Bound.
        configuration: Its precision chooses the ceiling.
        costs_ns: Time of a kernel by ``DEVICE/OP`` or ``OP`` of its first node, in place of the roofline's.

    Raises:
        BackendError: The weights do not fit into the device's memory.
    """

    def __init__(
        self,
        machine: Machine,
        device: Device,
        graph: Graph,
        configuration: Configuration,
        costs_ns: dict[str, int],
    ) -> None:
        self._machine, self._device = machine, device
        self._signature = graph.signature
        self._kernels, self._folded, self._weight_bytes, self._workspace_bytes = _costs(
            machine, device, graph, configuration.precision, costs_ns
        )
        machine.take(device, self._weight_bytes, f"the weights of {graph.name!r}")
        self._answers: Answers | None = None
        try:
            self._answers = answers(graph, configuration.precision)
        finally:
            if self._answers is None:
                machine.give(device, self._weight_bytes)
        self._run_ns = machine.sheet.call_ns(device.id) + sum(cost for _, _, cost in self._kernels)
        self._what = f"a run of {graph.name!r}"

    @property
    def signature(self) -> Signature:
        """The graph's."""
        return self._signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """Compute. Outputs come to the host, and stay on the device too, unless tensors of it are given."""
        compute, given, arrays = self._checked(inputs)
        device, machine = self._device, self._machine
        machine.faults.meet(device.id, "run")
        working_bytes = self._workspace_bytes + self._away_bytes(given)
        machine.take(device, working_bytes, self._what)
        try:
            results = compute(arrays)
            if outputs is not None:
                return self._written(given, results, outputs)
            end_ns = self._charge(given, self._run_ns + self._to_host_ns(results))
            return [self._made(result, end_ns) for result in results]
        finally:
            machine.give(device, working_bytes)

    def _made(self, result: Array, ready_ns: int) -> Tensor:
        if result.dtype.kind in "OUS":  # strings have no DLPack
            self._machine.seen(ready_ns)
            return result
        self._machine.take(self._device, result.nbytes, f"an output of {self._what}")
        return self._machine.tensor(self._device, result, ready_ns, is_on_host=True)

    def _written(
        self, given: Sequence[EmulatedTensor | Array], results: Sequence[Array], outputs: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        deliver(results, [t.array if isinstance(t, EmulatedTensor) else t for t in outputs])
        away = [r for r, t in zip(results, outputs, strict=True) if not isinstance(t, EmulatedTensor)]
        end_ns = self._charge(given, self._run_ns + self._to_host_ns(away))
        for tensor in outputs:
            if isinstance(tensor, EmulatedTensor):
                tensor.ready_ns, tensor.is_on_host = end_ns, False
            else:
                self._machine.written(self._device, tensor, end_ns)
        return list(outputs)

    def timed_run(self, inputs: Sequence[Tensor]) -> int:
        """Virtual time from inputs where they are given to outputs on the host.

        Time does not depend on the numbers, so they are not computed.
        """
        _, given, _ = self._checked(inputs)
        device, machine = self._device, self._machine
        machine.faults.meet(device.id, "run")
        taken_ns = self._run_ns + sum(machine.way_ns(tensor, device) for tensor in given)
        for spec in self._signature.outputs:
            n_bytes = math.prod(size for size in spec.shape if isinstance(size, int)) * _item_bytes(
                spec.dtype
            )
            taken_ns += machine.sheet.handoff_ns(device.id, HOST, n_bytes)
        self._charge((), taken_ns)
        return taken_ns

    def kernel_runs(self, inputs: Sequence[Tensor], n_runs: int) -> KernelRuns:
        """One kernel per group of nodes that a runtime would fuse."""
        self._checked(inputs)
        self._machine.faults.meet(self._device.id, "run")
        self._charge((), n_runs * self._run_ns)
        return KernelRuns(
            kernels=tuple(
                Kernel(name=nodes[0], type=op, nodes=nodes, durations_ns=(cost,) * n_runs)
                for nodes, op, cost in self._kernels
            ),
            run_ns=(self._run_ns,) * n_runs,
            folded=self._folded,
        )

    def place(self, tensor: Tensor) -> Tensor:
        """A copy in the device's memory, brought beside its computing."""
        known = tensor if isinstance(tensor, EmulatedTensor) else self._machine.known(tensor)
        source = known if known is not None else as_numpy(tensor)
        array = source.array if isinstance(source, EmulatedTensor) else source
        self._machine.take(self._device, array.nbytes, "a tensor placed there")
        ready_ns = self._machine.bring(self._device, source)
        return self._machine.tensor(self._device, np.array(array, order="C"), ready_ns, is_on_host=False)

    def memory_bytes(self) -> int:
        """Bytes of the weights; none once closed."""
        return self._weight_bytes if self._answers is not None else 0

    def close(self) -> None:
        """Give the memory back."""
        if self._answers is not None:
            self._answers = None
            self._machine.give(self._device, self._weight_bytes)

    def _charge(self, given: Sequence[EmulatedTensor | Array], duration_ns: int) -> int:
        return self._machine.compute(self._device, given, duration_ns, id(self))

    def _checked(
        self, inputs: Sequence[Tensor]
    ) -> tuple[Answers, Sequence[EmulatedTensor | Array], list[Array]]:
        if self._answers is None:
            raise BackendError("run after close; compile the graph again")
        plain = [tensor.array if isinstance(tensor, EmulatedTensor) else tensor for tensor in inputs]
        arrays = host_inputs(self._signature.inputs, plain)
        given = [
            tensor if isinstance(tensor, EmulatedTensor) else self._machine.known(tensor) or array
            for tensor, array in zip(inputs, arrays, strict=True)
        ]
        return self._answers, given, arrays

    def _away_bytes(self, given: Sequence[EmulatedTensor | Array]) -> int:
        """Memory that inputs from elsewhere take during a run."""
        pool = self._device.memory_pool
        found = 0
        for tensor in given:
            if isinstance(tensor, EmulatedTensor):
                found += tensor.array.nbytes if tensor.device.memory_pool != pool else 0
            elif self._machine.way_ns(tensor, self._device):
                found += tensor.nbytes
        return found

    def _to_host_ns(self, results: Sequence[Array]) -> int:
        return sum(self._machine.sheet.handoff_ns(self._device.id, HOST, result.nbytes) for result in results)


def _costs(
    machine: Machine, device: Device, graph: Graph, precision: str, costs_ns: dict[str, int]
) -> tuple[list[tuple[tuple[str, ...], str, int]], tuple[str, ...], int, int]:
    """What a run does.

    Returns:
        Nodes, operator and time of each kernel; nodes that cost nothing; bytes of the weights that kernels
        read, folded ones among them; and the most memory that values between kernels take at a time, inputs
        and outputs of the graph apart.
    """
    known = facts(graph)
    groups, folded = kernels(known)
    ceiling = machine.sheet.ceiling(device.id, precision)
    launch_ns = machine.sheet.launch_ns(device.id)
    found = []
    for group in groups:
        names = tuple(node.name for node in group)
        told = costs_ns.get(f"{device.id}/{group[0].op}", costs_ns.get(group[0].op))
        if told is None and not is_view(group):
            work = known.work(names)
            computing_ns = (work.flops or 0) / ceiling.flops_per_s * 1e9
            moving_ns = (work.moved_bytes or 0) / ceiling.bytes_per_s * 1e9
            told = round(launch_ns + max(computing_ns, moving_ns))
        found.append((names, group[0].op, told or 0))
    read = {value for group in groups for node in group for value in node.reads}
    weight_bytes = sum(known.value_bytes.get(value, 0) for value in read & known.weights)
    ends = {*known.inputs, *known.outputs, *known.weights}
    last = {value: at for at, group in enumerate(groups) for node in group for value in node.reads}
    live_bytes, most_bytes = 0, 0
    leaving: dict[int, int] = {}
    for at, group in enumerate(groups):
        inside = {value for node in group[:-1] for value in node.writes}
        for value in {value for node in group for value in node.writes} - ends:
            # What only the kernel itself reads never is in memory.
            if value in last and not (value in inside and last[value] == at):
                live_bytes += known.value_bytes.get(value, 0)
                leaving[last[value]] = leaving.get(last[value], 0) + known.value_bytes.get(value, 0)
        most_bytes = max(most_bytes, live_bytes)
        live_bytes -= leaving.pop(at, 0)
    return found, folded, weight_bytes, most_bytes


def _item_bytes(dtype: str) -> int:
    return 0 if dtype == "string" else np.dtype(dtype).itemsize
