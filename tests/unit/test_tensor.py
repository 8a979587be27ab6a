import gc
import re
import weakref

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hal import tensor
from hal.errors import InputError
from hal.records.targets import TensorSpec
from hal.tensor import HostTensor, Tensor, as_numpy, deliver, host_inputs

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128", ml_dtypes.bfloat16,
]  # fmt: skip


class Foreign:
    """A producer of another library: DLPack is all it has."""

    def __init__(self, array, device=(1, 0)):
        self._inner, self._device = HostTensor(array), device

    def __dlpack_device__(self):
        return self._device

    def __dlpack__(self, *, stream=None):
        return self._inner.__dlpack__()


def arrays(dtype):
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    if dtype is ml_dtypes.bfloat16:
        bits = hnp.arrays(np.uint16, shapes)
        return bits.map(lambda array: array.view(ml_dtypes.bfloat16))
    return hnp.arrays(dtype, shapes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_array_comes_back_bit_by_bit_when_it_goes_through_dlpack(dtype, data):
    array = data.draw(arrays(dtype))
    back = as_numpy(Foreign(array))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert array.size == 0 or np.shares_memory(back, array)


@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16], ids=str)
@given(data=st.data())
def test_strided_view_comes_back_when_it_goes_through_dlpack(dtype, data):
    array = np.arange(120).astype(dtype).reshape(2, 3, 4, 5)
    view = array.transpose(data.draw(st.permutations(range(4))))
    view = view[tuple(slice(None, None, data.draw(st.sampled_from([1, 2, -1]))) for _ in range(4))]
    back = as_numpy(Foreign(view))
    assert back.tobytes() == view.tobytes()
    assert np.shares_memory(back, array)


def test_numpy_reads_a_host_tensor_when_its_type_is_numpys_own():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(np.from_dlpack(HostTensor(array)), array)


def test_host_tensor_keeps_its_memory_when_only_the_consumer_is_left():
    array = np.arange(1000, dtype=np.int64)
    alive = weakref.ref(array)
    back = as_numpy(Foreign(array))
    del array
    gc.collect()
    assert alive() is not None
    assert back.sum() == 499_500
    del back
    gc.collect()
    assert alive() is None
    assert not tensor._exported


def test_writes_are_seen_when_made_through_the_other_side():
    array = np.zeros(3, ml_dtypes.bfloat16)
    as_numpy(Foreign(array))[1] = 2
    assert array.tolist() == [0, 2, 0]


def test_as_numpy_returns_the_same_array_when_given_one():
    array = np.zeros(3)
    assert as_numpy(array) is array
    assert as_numpy(HostTensor(array)) is array


def test_as_numpy_says_what_it_wants_when_given_no_tensor():
    with pytest.raises(
        InputError, match="list is not a tensor; expected a numpy array or an object with __dlpack__"
    ):
        as_numpy([1, 2])


def test_as_numpy_says_to_copy_when_the_tensor_is_on_a_device():
    expected = "a tensor on DLPack device (2, 0) cannot be read as a numpy array; expected host memory"
    with pytest.raises(InputError, match=re.escape(expected)):
        as_numpy(Foreign(np.zeros(2), device=(2, 0)))


def test_host_tensor_names_the_type_when_dlpack_has_no_code_for_it():
    with pytest.raises(
        BufferError, match="numpy type float8_e4m3fn has no DLPack type code; expected one of"
    ):
        HostTensor(np.zeros(2, ml_dtypes.float8_e4m3fn)).__dlpack__()


def test_tensor_protocol_holds_when_an_object_exports_dlpack():
    assert isinstance(np.zeros(2), Tensor)
    assert isinstance(HostTensor(np.zeros(2)), Tensor)
    assert not isinstance([1], Tensor)


SPECS = (TensorSpec("x", "float32", (2, 3)), TensorSpec("n", "int64", ()))
X, N = np.zeros((2, 3), np.float32), np.array(1)


def test_host_inputs_pass_without_a_copy_when_they_fit():
    given = host_inputs(SPECS, [X, Foreign(N)])
    assert given[0] is X
    assert np.shares_memory(given[1], N)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([X], "1 inputs were given, 'n' missing; expected 2: x: float32[2, 3], n: int64[]"),
        ([X, N, N], "3 inputs were given, 1 too many; expected 2"),
        ([X.astype("f8"), N], "input 'x' is float64[2, 3]; expected x: float32[2, 3]"),
        ([X[None], N], "input 'x' is float32[1, 2, 3]; expected x: float32[2, 3]"),
        ([X.astype(">f4"), N], "input 'x' is big-endian; expected the machine's byte order"),
    ],
)
def test_host_inputs_name_the_input_when_it_does_not_fit(inputs, text):
    with pytest.raises(InputError, match=re.escape(text)):
        host_inputs(SPECS, inputs)


def test_host_inputs_name_every_input_when_several_do_not_fit():
    with pytest.raises(InputError, match=r"(?s)input 'x'.*input 'n'"):
        host_inputs(SPECS, [X[0], X])


def test_deliver_writes_into_the_given_tensors_when_there_are_some():
    results = [np.ones((2, 3), np.float32), np.ones(2, ml_dtypes.bfloat16)]
    outputs = [np.zeros((2, 3), np.float32), HostTensor(np.zeros(2, ml_dtypes.bfloat16))]
    back = deliver(results, outputs)
    assert all(a is b for a, b in zip(back, outputs, strict=True))
    assert as_numpy(outputs[0]).sum() == 6
    assert as_numpy(outputs[1]).tolist() == [1, 1]


def test_deliver_returns_tensors_that_export_dlpack_when_none_are_given():
    results = [np.ones(2, np.float32), np.ones(2, ml_dtypes.bfloat16)]
    back = deliver(results, None)
    assert back[0] is results[0]
    assert np.shares_memory(as_numpy(Foreign(as_numpy(back[1]))), results[1])
    assert back[1].__dlpack__() is not None


def test_deliver_says_what_it_expects_when_the_given_tensors_do_not_fit():
    expected = "outputs to write into are [('float64', (2,))]; expected [('float32', (2,))]"
    with pytest.raises(InputError, match=re.escape(expected)):
        deliver([np.ones(2, np.float32)], [np.ones(2)])
