"""``--shape`` and ``--input``: what a user types into shapes and arrays, every problem named at once."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hal.cli.output import shortened
from hal.cli.pictures import SUFFIXES, read_picture
from hal.errors import InputError, StorageError, problems
from hal.tensor import Array

if TYPE_CHECKING:
    from hal.records.targets import TensorSpec

#: Frameworks and devices count elements along a dimension in 32 bits.
_SIZE_LIMIT = 1 << 31
#: What numpy raises for a damaged header, which it parses as Python; ValueError is the documented one.
#: Source: numpy 2.3 with headers cut, flipped and made up.
_DAMAGED = (
    ValueError,
    EOFError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    SyntaxError,
    RecursionError,
    tokenize.TokenError,
)


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read ``NAME=1,3,640,640``.

    Args:
        texts: The values of ``--shape``.

    Returns:
        Shape by input name.

    Raises:
        InputError: A text is not of that form, or a name is given twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    found: list[str] = []
    for text in texts:
        # Names may hold "=", sizes may not.
        name, equals, sizes = text.rpartition("=")
        if not equals or not name:
            found.append(f"{text!r} has no name; expected NAME=1,3,640,640")
        elif name in shapes:
            found.append(f"input {name!r} is given twice; give one shape for it")
        elif not all(_is_size(size) for size in sizes.split(",")):
            found.append(
                f"{text!r} has sizes that are not whole numbers of 0 or more; expected {name}=1,3,640,640"
            )
        elif any(_size(size) > _SIZE_LIMIT for size in sizes.split(",")):
            found.append(
                f"{shortened(text, 200)!r} has a size above {_SIZE_LIMIT}, the largest hal takes; "
                f"expected {shortened(name, 200)}=1,3,640,640"
            )
        else:
            shapes[name] = tuple(_size(size) for size in sizes.split(","))
    if found:
        raise InputError(problems("--shape cannot be read", found))
    return shapes


def read_inputs(
    texts: Sequence[str], shapes: Mapping[str, Sequence[int]], specs: Mapping[str, TensorSpec] | None
) -> dict[str, Array]:
    """Read the files of ``--input``.

    Args:
        texts: ``FILE.npz``, ``NAME=FILE.npy`` or ``NAME=PICTURE``.
        shapes: What ``--shape`` gave; a picture is resized to its input's.
        specs: The model's inputs by name; needed for pictures only, see :func:`wants_specs`.

    Returns:
        Arrays by input name.

    Raises:
        InputError: A text is not of these forms, a file is missing or is not what its name says, or
            an input is given twice.
        StorageError: A file is there but cannot be read.
    """
    arrays: dict[str, Array] = {}
    found: list[str] = []
    for text in texts:
        try:
            for name, array in _read(text, shapes, specs).items():
                if name in arrays:
                    found.append(
                        f"{text!r} gives input {name!r}, which another --input gives too; give it once"
                    )
                arrays.setdefault(name, array)
        except InputError as error:
            found.append(error.message)
    if found:
        raise InputError(problems("--input cannot be read", found))
    return arrays


def wants_specs(texts: Sequence[str]) -> bool:
    """Whether one of the files is a picture, whose array depends on the model's input."""
    return any(Path(text).suffix.lower() in SUFFIXES for text in texts)


def _is_size(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit()


def _size(text: str) -> int:
    digits = text.strip().lstrip("0")
    # By length first: Python refuses to convert thousands of digits.
    return int(digits or 0) if len(digits) <= len(str(_SIZE_LIMIT)) else _SIZE_LIMIT + 1


def _read(
    text: str, shapes: Mapping[str, Sequence[int]], specs: Mapping[str, TensorSpec] | None
) -> dict[str, Array]:
    name, equals, file = text.partition("=")
    if not equals or os.path.exists(text):  # unlike Path.exists, false where a name is too long
        name, file = "", text
    path = Path(file)
    suffix = path.suffix.lower()
    if name and suffix == ".npz":
        raise InputError(
            f"{text!r} names an input for an .npz, which holds names itself; give {file!r} alone"
        )
    if not name and suffix != ".npz":
        raise InputError(
            f"{text!r} is not an input; expected FILE.npz, NAME=FILE.npy or NAME=PICTURE "
            f"({', '.join(SUFFIXES)})"
        )
    if name and suffix not in (".npy", *SUFFIXES):
        raise InputError(
            f"{text!r} is of no known kind; expected a file that ends in .npy, {', '.join(SUFFIXES)}"
        )
    if not os.path.isfile(path):
        raise InputError(f"{file!r} is not a file; give the path of one that exists")
    try:
        if suffix == ".npz":
            return _read_npz(path)
        if suffix == ".npy":
            return {name: _read_npy(path)}
        return {name: read_picture(path, name, shapes.get(name), specs or {})}
    except OSError as error:
        raise StorageError(
            f"{file!r} could not be read: {error.strerror or error}; check that you may read it"
        ) from error


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            arrays: dict[str, Array] = {}
            for member in members:
                if not member.endswith(".npy"):
                    raise InputError(
                        f"{str(path)!r} holds {member!r}, which is no array; write the file with numpy.savez"
                    )
                name = member.removesuffix(".npy")
                if name in arrays:
                    raise InputError(
                        f"{str(path)!r} holds {member!r} twice; write the file again with numpy.savez"
                    )
                with archive.open(member) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    except InputError:  # it is a ValueError too
        raise
    except MemoryError as error:
        raise _too_large(path, error) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        # The last two: compressed or encrypted in a way that zipfile does not read.
        raise InputError(
            f"{str(path)!r} is not an .npz, or is damaged ({error}); write it again with numpy.savez"
        ) from error
    except _DAMAGED as error:
        raise _no_array(path, error) from error
    if not arrays:
        raise InputError(
            f"{str(path)!r} holds no arrays; write one per input with numpy.savez(path, NAME=array)"
        )
    return arrays


def _read_npy(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except MemoryError as error:
        raise _too_large(path, error) from error
    except _DAMAGED as error:
        raise _no_array(path, error) from error
    return array


def _too_large(path: Path, error: MemoryError) -> InputError:
    return InputError(
        f"{str(path)!r} holds an array that does not fit into memory ({error}); "
        "give a smaller one, or write the file again if it should hold none of this size"
    )


def _no_array(path: Path, error: Exception) -> InputError:
    if "allow_pickle" in str(error) or "Object arrays" in str(error):
        return InputError(
            f"{str(path)!r} holds pickled objects, which could run code when read; "
            "save arrays of numbers or of fixed-length strings"
        )
    return InputError(f"{str(path)!r} holds no whole numpy array ({error}); write it again with numpy.save")
