"""What goes into a run and what comes out of it, in few steps: each costs a small model a microsecond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hal.backend import Tensor, TensorSpec
from hal.executor.program import Program
from hal.tensor import as_numpy, deliver, host_inputs, is_on_host, own_dtype


class Inputs:
    """Checks the inputs of runs.

    Args:
        specs: What is expected, by position.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = tuple(specs)
        # Tensors of other libraries, and of types that numpy has not, take the long way.
        self._plain = [(own_dtype(spec.dtype), spec.shape) for spec in specs]

    def check(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Inputs that fit; those on the host as numpy arrays, for which every backend has the shortest way.

        Raises:
            InputError: Wrong count, type or shape; every input that does not fit is named.
        """
        if len(inputs) == len(self._plain):
            for tensor, (dtype, shape) in zip(inputs, self._plain, strict=True):
                if type(tensor) is not np.ndarray or tensor.dtype is not dtype or tensor.shape != shape:
                    break
            else:
                return inputs
        on_host = [not hasattr(tensor, "__dlpack_device__") or is_on_host(tensor) for tensor in inputs]
        if len(inputs) != len(self._specs) or all(on_host):
            return host_inputs(self._specs, inputs)
        # Tensors on devices are checked by the backend that reads them.
        here = [at for at, is_here in enumerate(on_host) if is_here]
        arrays = iter(host_inputs([self._specs[at] for at in here], [inputs[at] for at in here]))
        return [next(arrays) if is_here else tensor for is_here, tensor in zip(on_host, inputs, strict=True)]


class Outputs:
    """Hands out the outputs of runs.

    Args:
        program: Says where they are.
        n_inputs: Of the model.
    """

    def __init__(self, program: Program, n_inputs: int) -> None:
        self._sources, self._n_inputs = program.outputs, n_inputs
        slots = [source for source in program.outputs if isinstance(source, int) and source >= n_inputs]
        is_plain = len(set(slots)) == len(program.outputs)
        # Where a part makes every output, and none is wanted twice, they are what the parts returned.
        self._slots = slots if is_plain else None

    def collect(
        self, values: Sequence[Tensor | None], outputs: Sequence[Tensor] | None = None
    ) -> Sequence[Tensor]:
        """The outputs after a run, as :meth:`hal.backend.Executable.run` returns them.

        Args:
            values: By slot.
            outputs: Tensors to write them into.
        """
        found: list[Any] = (
            self._owned(values) if self._slots is None else [values[slot] for slot in self._slots]
        )
        if outputs is None:
            return found
        if len(outputs) != len(found):
            return deliver([as_numpy(tensor) for tensor in found], outputs)
        # What a part wrote in its place already needs no copy, and may lie where the host cannot read.
        rest = [
            at for at, (made, wanted) in enumerate(zip(found, outputs, strict=True)) if made is not wanted
        ]
        deliver([as_numpy(found[at]) for at in rest], [outputs[at] for at in rest])
        return list(outputs)

    def _owned(self, values: Sequence[Tensor | None]) -> list[Any]:
        """Copies of what is not the caller's alone: an input, a weight, or a tensor that is there twice."""
        found: list[Any] = []
        seen: set[int] = set()
        for source in self._sources:
            if not isinstance(source, int):
                found += deliver([source.copy()], None)
            elif source < self._n_inputs or source in seen:
                found += deliver([as_numpy(values[source]).copy()], None)
            else:
                found.append(values[source])
                seen.add(source)
        return found
