"""Several requests as one run: inputs one after the other along the first dimension, outputs cut again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 by name from it)
import numpy as np

from hal.backend import Signature, Tensor
from hal.errors import BackendError
from hal.tensor import Array, as_numpy


def worth_from(alone_ns: float, together_ns: float, most: int) -> int:
    """Requests from which one run of all is faster than one run each; 2 to ``most``.

    Args:
        alone_ns: What a run of one request takes.
        together_ns: What a run of ``most`` takes, however many places are filled.
        most: Requests in a run.
    """
    return min(max(math.ceil(together_ns / max(alone_ns, 1)), 2), most)


class Joined:
    """Carries out up to a number of requests in one run. Any number of threads may call it.

    Where there are fewer, the last one stands in the places that are left, and its other answers are dropped.

    Args:
        run: Of the graph whose first dimensions are ``most`` times as large.
        signature: Of a single request, all sizes known.
        most: Requests in a run.
        worth_from: Fewer are faster one by one.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
        signature: Signature,
        most: int,
        worth_from: int = 2,
    ) -> None:
        self.most, self.worth_from = most, worth_from
        self._run = run
        self._inputs = [
            (object if spec.dtype == "string" else np.dtype(spec.dtype), spec.shape)
            for spec in signature.inputs
        ]
        self._names = [spec.name for spec in signature.outputs]
        self._rooms: deque[list[Array]] = deque()

    def run(self, requests: Sequence[Sequence[Tensor]]) -> list[list[Array]]:
        """Answers in the order of the requests, each with memory of its own.

        Args:
            requests: Inputs by position, on the host and fitting; 1 to ``most`` of them. They are copied.

        Raises:
            BackendError: The run failed, or an output cannot be divided.
        """
        try:
            room = self._rooms.pop()
        except IndexError:
            room = [
                np.empty((self.most * int(shape[0]), *(int(n) for n in shape[1:])), dtype)
                for dtype, shape in self._inputs
            ]
        filled = [*requests, *[requests[-1]] * (self.most - len(requests))]
        for at, together in enumerate(room):
            np.concatenate([as_numpy(request[at]) for request in filled], out=together)
        answers = [as_numpy(output) for output in self._run(room)]
        for name, answer in zip(self._names, answers, strict=True):
            if not answer.ndim or len(answer) % self.most:
                raise BackendError(
                    f"output {name!r} of {self.most} requests at once is {list(answer.shape)}: it cannot be "
                    f"divided among them; expected a multiple of {self.most} rows"
                )
        # Only after a run that ended: one that was left behind may still read them.
        self._rooms.append(room)
        return [
            [answer[n * at : n * (at + 1)].copy() for answer in answers for n in (len(answer) // self.most,)]
            for at in range(len(requests))
        ]


__all__ = ["Joined", "worth_from"]
