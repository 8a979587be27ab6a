"""Several requests as one run: what goes in, what comes out, whose memory it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hal.backend import Signature, TensorSpec
from hal.errors import BackendError
from hal.executor.joining import Joined, worth_from
from hal.tensor import Array, HostTensor, Tensor, as_numpy


def signature(dtype: str = "float32", shape: tuple[int, ...] = (2, 3)) -> Signature:
    return Signature((TensorSpec("x", dtype, shape),), (TensorSpec("y", dtype, shape),))


class Adding:
    """Adds one, and keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[Array] = []

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        self.given.append(as_numpy(inputs[0]).copy())
        return [HostTensor(as_numpy(inputs[0]) + as_numpy(inputs[0]).dtype.type(1))]


def request(number: int, dtype: Any = np.float32) -> list[Array]:
    return [np.full((2, 3), number).astype(dtype)]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_each_request_has_its_answer_when_fewer_than_most_come(n: int) -> None:
    adding = Adding()
    joined = Joined(adding.run, signature(), 4)
    answers = joined.run([request(number) for number in range(n)])
    for number, (answer,) in enumerate(answers):
        np.testing.assert_array_equal(answer, np.full((2, 3), number + 1, np.float32))
    # The places that are left hold the last request: nothing that no request had.
    (given,) = adding.given
    assert given.shape == (8, 3)
    np.testing.assert_array_equal(given[2 * n :], np.full((8 - 2 * n, 3), n - 1))


def test_answers_have_memory_of_their_own_when_others_are_written() -> None:
    joined = Joined(Adding().run, signature(), 2)
    first = joined.run([request(1), request(2)])
    first[0][0][:] = 7
    second = joined.run([request(3), request(4)])
    assert [answer[0][0, 0] for answer in (*first, *second)] == [7, 3, 4, 5]
    assert all(answer[0].base is None for answer in first)


def test_a_type_numpy_lacks_is_joined_when_the_model_has_it() -> None:
    joined = Joined(Adding().run, signature("bfloat16"), 2)
    answers = joined.run([request(1, ml_dtypes.bfloat16), request(2, ml_dtypes.bfloat16)])
    assert [str(answer[0].dtype) for answer in answers] == ["bfloat16", "bfloat16"]
    assert [float(answer[0][0, 0]) for answer in answers] == [2, 3]


@pytest.mark.parametrize(
    ("alone", "together", "expected"), [(10, 35, 4), (10, 10, 2), (10, 100, 8), (0, 5, 5)]
)
def test_a_run_of_all_is_worth_it_when_it_is_faster_than_one_each(
    alone: int, together: int, expected: int
) -> None:
    assert worth_from(alone, together, 8) == expected


def test_a_run_fails_when_its_output_cannot_be_divided() -> None:
    joined = Joined(lambda inputs: [as_numpy(inputs[0])[:3]], signature(), 2)
    with pytest.raises(BackendError) as raised:
        joined.run([request(1), request(2)])
    assert str(raised.value) == (
        "output 'y' of 2 requests at once is [3, 3]: it cannot be divided among them; "
        "expected a multiple of 2 rows"
    )


def test_memory_is_not_used_again_when_a_run_failed() -> None:
    rooms: list[Array] = []

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        rooms.append(as_numpy(inputs[0]))
        if len(rooms) == 1:
            raise BackendError("left behind")
        return [as_numpy(inputs[0]) + 1]

    joined = Joined(run, signature(), 2)
    with pytest.raises(BackendError, match="left behind"):
        joined.run([request(1), request(2)])
    for _ in range(2):
        joined.run([request(3), request(4)])
    assert rooms[0] is not rooms[1]
    assert rooms[1] is rooms[2]
