"""One inference request with its tensors: the path that every run takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino as ov

from hal.errors import InputError
from hal.tensor import Array, Tensor
from hal_openvino.ports import Port

#: Smaller tensors are copied into and out of the request's own memory; larger ones are shared.
#: Source: measured with OpenVINO 2026.4: setting a tensor costs 5 us and more per run (the graph is bound
#: to the new address); copying the 110 KB input of a PP-OCR classifier instead took 1.5% off its 0.5 ms,
#: and at 3 MB the copy costs as much as it saves.
COPY_BELOW_BYTES = 512 << 10


def native_infer(request: Any) -> Callable[..., Any]:
    """The request's own ``infer``, without the Python wrapper that inspects every input again.

    It takes (inputs to set, share outputs, decode strings) and returns views by output port.
    """
    return super(ov.InferRequest, request).infer


class Lane:
    """A request, bound to the ports of its model. One run at a time.

    Attributes:
        request: OpenVINO's inference request.
    """

    def __init__(self, request: Any, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        self.request = request
        self._infer = native_infer(request)
        self._inputs = [(port, self._own_memory(port)) for port in inputs]
        self._outputs = outputs
        self._copies = [port.n_bytes < COPY_BELOW_BYTES for port in outputs]
        in_order = [port.index for port in outputs] == list(range(len(outputs)))
        self._copies_all = in_order and all(self._copies) and not any(port.is_special for port in outputs)
        self._n_inputs = len(inputs)

    def feed(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Set the inputs; what is returned must live until the run ends.

        Raises:
            InputError: Wrong count, type or shape.
        """
        if len(inputs) != self._n_inputs:
            wanted = ", ".join(str(port.spec) for port, _ in self._inputs) or "none"
            raise InputError(f"{len(inputs)} inputs were given; expected {self._n_inputs}: {wanted}")
        held: list[Any] = []
        for (port, memory), tensor in zip(self._inputs, inputs, strict=True):
            array = port.check(tensor)
            if memory is not None:
                np.copyto(memory, array)
            elif port.index >= 0:
                shared = port.share(array)
                self.request.set_input_tensor(port.index, shared)
                held.append(shared)
        return held

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None) -> Sequence[Tensor]:
        """Feed, run, and hand out results that no later run touches."""
        held = self.feed(inputs)
        if outputs is None and self._copies_all:
            return [view.copy() for view in self._infer({}, True, False).values()]
        targets = self.bind(outputs)
        self._infer({}, True, False)
        del held
        return self.collect(targets, outputs)

    def bind(self, outputs: Sequence[Tensor] | None) -> list[tuple[Array, Any] | None]:
        """Have OpenVINO write large outputs in place: into the given tensors, or into new ones.

        Returns:
            Per output the array and what keeps it set; None where the result is copied afterwards.
        """
        if outputs is not None and len(outputs) != len(self._outputs):
            wanted = ", ".join(str(port.spec) for port in self._outputs)
            raise InputError(f"{len(outputs)} outputs were given; expected {len(self._outputs)}: {wanted}")
        given = [None] * len(self._outputs) if outputs is None else outputs
        checked = [
            None if tensor is None else port.check_target(tensor)
            for port, tensor in zip(self._outputs, given, strict=True)
        ]
        targets: list[tuple[Array, Any] | None] = []
        for port, copies, array in zip(self._outputs, self._copies, checked, strict=True):
            if copies or port.shape is None:
                targets.append(None)
                continue
            target = port.allocate() if array is None else array
            shared = port.share(target)
            self.request.set_output_tensor(port.index, shared)
            targets.append((target, shared))
        return targets

    def collect(
        self, targets: Sequence[tuple[Array, Any] | None], outputs: Sequence[Tensor] | None
    ) -> Sequence[Tensor]:
        """The results after a run."""
        if outputs is None:
            return [
                port.give(target[0] if target else port.copy(self.request.get_output_tensor(port.index)))
                for port, target in zip(self._outputs, targets, strict=True)
            ]
        for port, target, tensor in zip(self._outputs, targets, outputs, strict=True):
            if target is None:
                port.copy_into(self.request.get_output_tensor(port.index), tensor)
        return outputs

    def _own_memory(self, port: Port) -> Array | None:
        if port.index < 0 or port.shape is None or port.n_bytes >= COPY_BELOW_BYTES:
            return None
        return port.view(self.request.get_input_tensor(port.index))
