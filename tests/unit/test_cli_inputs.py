"""``--shape`` and ``--input``: what is read, and every error text."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hal.cli.inputs import parse_shapes, read_inputs, wants_specs
from hal.errors import InputError, StorageError


def shape_error(*texts: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_shapes(texts)
    return caught.value.message


def input_error(*texts: str) -> str:
    with pytest.raises(InputError) as caught:
        read_inputs(texts, {}, None)
    return caught.value.message


def test_parse_shapes_reads_sizes_when_names_hold_separators() -> None:
    assert parse_shapes(["x=1,3,640,640", "a=b=2", "input.1:0=0,5"]) == {
        "x": (1, 3, 640, 640),
        "a=b": (2,),
        "input.1:0": (0, 5),
    }


@pytest.mark.parametrize("text", ["1,3,640,640", "=1,2", "x"])
def test_parse_shapes_asks_for_a_name_when_there_is_none(text: str) -> None:
    assert shape_error(text) == f"--shape cannot be read: {text!r} has no name; expected NAME=1,3,640,640"


@pytest.mark.parametrize("sizes", ["", "1,,2", "1,-3", "1x3", "1.5", "batch", "²"])
def test_parse_shapes_refuses_sizes_when_they_are_no_whole_numbers(sizes: str) -> None:
    assert shape_error(f"x={sizes}") == (
        f"--shape cannot be read: {f'x={sizes}'!r} has sizes that are not whole numbers of 0 or more; "
        "expected x=1,3,640,640"
    )


@pytest.mark.parametrize("size", [str((1 << 31) + 1), str(1 << 63), "9" * 5000])
def test_parse_shapes_names_the_limit_when_a_size_is_above_it(size: str) -> None:
    message = shape_error(f"x=1,{size}")
    assert message.startswith("--shape cannot be read: 'x=1,")
    assert message.endswith("' has a size above 2147483648, the largest hal takes; expected x=1,3,640,640")
    assert len(message) < 400


def test_parse_shapes_reads_sizes_when_they_are_at_the_limit_or_begin_with_zeros() -> None:
    assert parse_shapes([f"x={1 << 31},{'0' * 5000}7,000"]) == {"x": (1 << 31, 7, 0)}


def test_parse_shapes_names_all_problems_when_there_are_several() -> None:
    assert shape_error("x=1", "x=2", "y=a") == (
        "--shape cannot be read:\n"
        "  - input 'x' is given twice; give one shape for it\n"
        "  - 'y=a' has sizes that are not whole numbers of 0 or more; expected y=1,3,640,640"
    )


def test_read_inputs_reads_arrays_when_files_are_whole(tmp_path: Path) -> None:
    a, b, c = np.arange(6.0).reshape(2, 3), np.array([True]), np.array(["left", "right"])
    np.savez(tmp_path / "both.npz", **{"a/deep:0": a, "b": b})
    np.save(tmp_path / "c=1.npy", c)
    arrays = read_inputs([str(tmp_path / "both.npz"), f"c={tmp_path / 'c=1.npy'}"], {}, None)
    assert list(arrays) == ["a/deep:0", "b", "c"]
    np.testing.assert_array_equal(arrays["a/deep:0"], a)
    np.testing.assert_array_equal(arrays["b"], b)
    np.testing.assert_array_equal(arrays["c"], c)


def test_read_inputs_takes_a_file_when_its_name_holds_an_equals_sign(tmp_path: Path) -> None:
    np.savez(tmp_path / "a=b.npz", x=np.ones(2))
    assert list(read_inputs([str(tmp_path / "a=b.npz")], {}, None)) == ["x"]


@pytest.mark.parametrize("text", ["x.npy", "x", "picture.png"])
def test_read_inputs_asks_for_a_name_when_the_file_holds_none(text: str) -> None:
    assert input_error(text) == (
        f"--input cannot be read: {text!r} is not an input; expected FILE.npz, NAME=FILE.npy or NAME=PICTURE "
        "(.png, .jpg, .jpeg)"
    )


def test_read_inputs_says_to_drop_the_name_when_the_file_is_an_npz() -> None:
    assert input_error("x=data.npz") == (
        "--input cannot be read: 'x=data.npz' names an input for an .npz, which holds names itself; "
        "give 'data.npz' alone"
    )


def test_read_inputs_lists_the_kinds_when_the_ending_is_unknown() -> None:
    assert input_error("x=data.csv") == (
        "--input cannot be read: 'x=data.csv' is of no known kind; "
        "expected a file that ends in .npy, .png, .jpg, .jpeg"
    )


@pytest.mark.parametrize("text", ["no.npz", "x=no.npy", "x=no.jpg"])
def test_read_inputs_says_so_when_the_file_is_missing(text: str, tmp_path: Path) -> None:
    name, equals, file = text.rpartition("=")
    path = str(tmp_path / file)
    assert input_error(f"{name}{equals}{path}") == (
        f"--input cannot be read: {path!r} is not a file; give the path of one that exists"
    )


def test_read_inputs_says_so_when_the_npz_is_no_archive(tmp_path: Path) -> None:
    for content in (b"", b"garbage", b"\x93NUMPY"):
        path = tmp_path / "x.npz"
        path.write_bytes(content)
        assert input_error(str(path)) == (
            f"--input cannot be read: {str(path)!r} is not an .npz, or is damaged (File is not a zip file); "
            "write it again with numpy.savez"
        )


@pytest.mark.parametrize("compressed", [False, True])
def test_read_inputs_says_so_when_a_bit_of_the_npz_is_flipped(compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=np.arange(1000))
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF
    path.write_bytes(content)
    assert f"{str(path)!r} is not an .npz, or is damaged (" in input_error(str(path))


def test_read_inputs_names_the_member_when_the_archive_holds_no_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert input_error(str(path)) == (
        f"--input cannot be read: {str(path)!r} holds 'readme.txt', which is no array; "
        "write the file with numpy.savez"
    )


def test_read_inputs_says_so_when_the_npz_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path)
    assert input_error(str(path)) == (
        f"--input cannot be read: {str(path)!r} holds no arrays; "
        "write one per input with numpy.savez(path, NAME=array)"
    )


def test_read_inputs_refuses_pickles_when_a_file_holds_objects(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "o.npz", x=objects)
    np.save(tmp_path / "o.npy", objects)
    for path, text in ((tmp_path / "o.npz", "{}"), (tmp_path / "o.npy", "x={}")):
        assert input_error(text.format(path)) == (
            f"--input cannot be read: {str(path)!r} holds pickled objects, which could run code when read; "
            "save arrays of numbers or of fixed-length strings"
        )


def test_read_inputs_says_so_when_an_npy_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones(100))
    for n_bytes in (0, 5, 100, 300):
        whole = path.read_bytes()
        (tmp_path / "cut.npy").write_bytes(whole[:n_bytes])
        message = input_error(f"x={tmp_path / 'cut.npy'}")
        assert "cut.npy' holds no whole numpy array (" in message
        assert message.endswith("; write it again with numpy.save")


HEADERS = {
    "no_end": "{'descr': '<f4', 'fortran_order': False, 'shape': (2, ",
    "no_python": "{'descr': '<f4', 'fortran_order': False, 'shape': (2 3)}",
    "boolean": "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 3)}",
    "beyond_int64": "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
    "no_keys": "{}",
    "list": "[1]",
    "deep": "-" * 9000 + "1",
    "type": "{'descr': [('a', '<f4', 'x')], 'fortran_order': False, 'shape': (2,)}",
}


@pytest.mark.parametrize("header", HEADERS)
def test_read_inputs_says_so_when_the_header_is_damaged(header: str, tmp_path: Path) -> None:
    text = HEADERS[header].encode() + b"\n"
    content = b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text
    (tmp_path / "x.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content)
    for path, text in ((tmp_path / "x.npy", "x={}"), (tmp_path / "x.npz", "{}")):
        message = input_error(text.format(path))
        assert message.startswith(f"--input cannot be read: {str(path)!r} ")
        assert "write it again with numpy.save" in message or "does not fit into memory" in message


def test_read_inputs_says_so_when_an_array_does_not_fit_into_memory(tmp_path: Path) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
    for path, text in ((tmp_path / "x.npy", "x={}"), (tmp_path / "x.npz", "{}")):
        message = input_error(text.format(path))
        assert (
            f"{str(path)!r} holds an array that does not fit into memory (Unable to allocate 3.55 PiB"
            in message
        )
        assert message.endswith(
            "; give a smaller one, or write the file again if it should hold none of this size"
        )


def test_read_inputs_refuses_the_npz_when_it_holds_a_name_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.save(tmp_path / "x.npy", np.ones(1))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.write(tmp_path / "x.npy", "x.npy")
    assert input_error(str(path)) == (
        f"--input cannot be read: {str(path)!r} holds 'x.npy' twice; write the file again with numpy.savez"
    )


def test_read_inputs_says_so_when_the_name_of_the_file_is_too_long() -> None:
    path = "a" * 5000 + ".npy"
    assert input_error(f"x={path}") == (
        f"--input cannot be read: {path!r} is not a file; give the path of one that exists"
    )


def test_read_inputs_names_the_input_when_it_is_given_twice(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(1))
    np.save(tmp_path / "x.npy", np.ones(1))
    text = f"x={tmp_path / 'x.npy'}"
    assert input_error(str(tmp_path / "a.npz"), text) == (
        f"--input cannot be read: {text!r} gives input 'x', which another --input gives too; give it once"
    )


def test_read_inputs_names_all_problems_when_there_are_several() -> None:
    message = input_error("x.npy", "y=data.csv")
    assert message.startswith("--input cannot be read:\n  - 'x.npy' is not an input")
    assert "\n  - 'y=data.csv' is of no known kind" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads files whatever their permissions")
def test_read_inputs_is_a_storage_error_when_the_file_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones(1))
    path.chmod(0)
    with pytest.raises(
        StorageError, match="could not be read: Permission denied; check that you may read it"
    ):
        read_inputs([f"x={path}"], {}, None)


def test_wants_specs_is_true_when_a_picture_is_among_the_files() -> None:
    assert wants_specs(["a.npz", "x=Photo.JPG"])
    assert not wants_specs(["a.npz", "x=a.npy"])
