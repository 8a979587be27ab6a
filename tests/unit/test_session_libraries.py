"""Tensors of other array libraries, without any of them: PyTorch is in tests/contract."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hal.errors import InputError
from hal.session.libraries import giver, read
from hal.tensor import HostTensor

X = np.arange(6, dtype=np.float32).reshape(2, 3)


class Foreign:
    """An array of a library that follows the standard."""

    def __init__(self, array: np.ndarray, device: int = 1, *, is_picky: bool = False) -> None:
        self.array, self.device, self.is_picky = array, device, is_picky

    def __dlpack__(self, **options: Any) -> Any:
        if options.get("dl_device", (self.device, 0))[0] != self.device:
            return np.array(self.array).__dlpack__()
        return HostTensor(self.array).__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)

    def __array_namespace__(self) -> Any:
        return PickyNamespace if self.is_picky else Namespace


class Namespace:
    @staticmethod
    def from_dlpack(source: Any) -> Foreign:
        return Foreign(np.from_dlpack(source) if isinstance(source, np.ndarray) else source.array)


class PickyNamespace:
    @staticmethod
    def from_dlpack(source: Any) -> Foreign:
        raise BufferError("only tensors of the device")


def test_tensors_are_read_without_a_copy_when_they_lie_on_the_host() -> None:
    assert read(X) is X
    for tensor in (HostTensor(X), Foreign(X)):
        array = read(tensor)
        np.testing.assert_array_equal(array, X)
        assert np.shares_memory(array, X)


def test_tensors_are_copied_to_the_host_when_they_lie_on_a_device() -> None:
    array = read(Foreign(X, device=2))
    np.testing.assert_array_equal(array, X)
    assert not np.shares_memory(array, X)


def test_scalars_of_numpy_are_tensors() -> None:
    assert read(np.float32(3)).shape == ()


def test_what_is_no_tensor_is_refused() -> None:
    for thing, name in ((None, "NoneType"), ([1.0], "list"), (3.0, "float")):
        with pytest.raises(InputError, match=f"{name} is not a tensor; expected a numpy array"):
            read(thing)


def test_what_cannot_be_read_is_refused_with_the_reason() -> None:
    class Sparse:
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("it has no memory")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    with pytest.raises(InputError, match=r"Sparse cannot be read \(BufferError: it has no memory\)"):
        read(Sparse())


def test_outputs_are_numpy_arrays_when_inputs_are() -> None:
    half = X.astype(ml_dtypes.bfloat16)
    one, two = giver([X])([X, HostTensor(half)])
    assert one is X
    assert two is half


def test_outputs_are_of_the_library_of_the_inputs_when_it_follows_the_standard() -> None:
    half = X.astype(ml_dtypes.bfloat16)
    one, two = giver([X, Foreign(X)])([X, HostTensor(half)])
    assert isinstance(one, Foreign)
    assert isinstance(two, Foreign)
    np.testing.assert_array_equal(one.array, X)
    assert two.array is half


def test_outputs_are_numpy_arrays_when_the_library_takes_nothing_from_the_host() -> None:
    (one,) = giver([Foreign(X, is_picky=True)])([X])
    assert one is X
