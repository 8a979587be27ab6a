"""Pictures as inputs: layout, scale and every error text."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hal.cli.inputs import read_inputs
from hal.errors import InputError
from hal.records.targets import TensorSpec

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra 'images')")

#: Left half red, right half blue.
PIXELS = np.zeros((4, 8, 3), np.uint8)
PIXELS[:, :4] = (255, 0, 0)
PIXELS[:, 4:] = (0, 0, 255)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "p.png"
    Image.fromarray(PIXELS).save(path)
    return f"x={path}"


def spec(*shape: int | str, dtype: str = "float32") -> dict[str, TensorSpec]:
    return {"x": TensorSpec("x", dtype, shape)}


def error(text: str, specs: dict[str, TensorSpec], shape: tuple[int, ...] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_inputs([text], {} if shape is None else {"x": shape}, specs)
    return caught.value.message.removeprefix("--input cannot be read: ")


def test_picture_becomes_channels_first_in_0_to_1_when_the_input_is_nchw(picture: str) -> None:
    array = read_inputs([picture], {}, spec(1, 3, 4, 8))["x"]
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, PIXELS.transpose(2, 0, 1)[np.newaxis] / np.float32(255))


def test_picture_becomes_channels_last_when_the_input_is_nhwc(picture: str) -> None:
    array = read_inputs([picture], {}, spec(1, 4, 8, 3, dtype="uint8"))["x"]
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, PIXELS[np.newaxis])


def test_picture_is_resized_and_repeated_when_the_shape_says_so(picture: str) -> None:
    array = read_inputs([picture], {"x": (2, 3, 2, 2)}, spec("n", 3, "h", "w", dtype="float16"))["x"]
    assert array.shape == (2, 3, 2, 2)
    assert array.dtype == np.float16
    np.testing.assert_array_equal(array[0], array[1])
    # Bilinear resizing mixes in some of the other half.
    np.testing.assert_allclose(array[0, :, 0, 0], [1, 0, 0], atol=0.2)
    np.testing.assert_allclose(array[0, :, 1, 1], [0, 0, 1], atol=0.2)


def test_picture_becomes_grey_and_one_row_when_batch_is_free(picture: str) -> None:
    array = read_inputs([picture], {}, spec("batch", 1, 4, 8))["x"]
    assert array.shape == (1, 1, 4, 8)
    # ITU-R 601 luma, which Pillow's "L" uses: 0.299 of red, 0.114 of blue.
    assert array[0, 0, 0, 0] == pytest.approx(0.299, abs=0.003)
    assert array[0, 0, 0, 7] == pytest.approx(0.114, abs=0.003)


def test_picture_is_turned_when_the_camera_noted_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(np.repeat(np.repeat(PIXELS, 8, 0), 8, 1)).save(tmp_path / "p.jpg", exif=exif, quality=95)
    array = read_inputs([f"x={tmp_path / 'p.jpg'}"], {}, spec(1, 3, 64, 32))["x"]
    assert array[0, 0, 0, 16] > 0.9  # red on top
    assert array[0, 2, 63, 16] > 0.9  # blue below


def test_picture_asks_for_shape_when_height_is_free(picture: str) -> None:
    assert error(picture, spec("n", 3, "h", 8)) == (
        "x: float32[n, 3, h, 8] has free dimensions, so the picture's size there is not known; "
        "add --shape x=1,3,640,640 with the sizes you want"
    )


def test_picture_is_refused_when_the_input_is_unknown(picture: str) -> None:
    specs = {"image": TensorSpec("image", "float32", (1, 3, 4, 4))}
    assert error(picture, specs) == "input 'x' is unknown; the model takes image"


def test_picture_is_refused_when_the_input_has_no_4_dimensions(picture: str) -> None:
    assert error(picture, spec(1, 64)) == (
        "x: float32[1, 64] takes no picture: expected 4 dimensions, it has 2; give an .npy"
    )


def test_picture_is_refused_when_the_input_has_another_type(picture: str) -> None:
    assert error(picture, spec(1, 3, 4, 4, dtype="int64")) == (
        "x: int64[1, 3, 4, 4] takes no picture: expected float16, float32, float64 or uint8, it is int64; "
        "give an .npy"
    )


def test_picture_is_refused_when_channels_are_neither_1_nor_3(picture: str) -> None:
    assert error(picture, spec(1, 5, 4, 4)) == (
        "x: float32[1, 5, 4, 4] with shape [1, 5, 4, 4] takes no picture: expected 1 or 3 channels in the "
        "second or the last dimension; give an .npy"
    )


def test_picture_is_refused_when_a_size_is_0(picture: str) -> None:
    assert error(picture, spec("n", 3, "h", "w"), (1, 3, 0, 4)) == (
        "x: float32[n, 3, h, w] with shape [1, 3, 0, 4] holds no pixels; give sizes above 0"
    )


@pytest.mark.parametrize("content", [b"", b"garbage", "cut"])
def test_picture_is_refused_when_the_file_is_damaged(content: bytes | str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    path = tmp_path / "damaged.png"
    path.write_bytes(content if isinstance(content, bytes) else (tmp_path / "noise.png").read_bytes()[:3000])
    message = error(f"x={path}", spec(1, 3, 4, 8))
    assert message.startswith(f"{str(path)!r} is not a whole PNG or JPEG picture (")
    assert message.endswith("); open and save it with an image editor")


def test_picture_names_the_extra_when_pillow_is_missing(
    picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)  # what Python itself puts there for a blocked import
    path = picture.removeprefix("x=")
    assert error(picture, spec(1, 3, 4, 8)) == (
        f"{path!r} is a picture, and reading pictures needs Pillow, which is not installed; "
        "run: pip install hal-runtime[images]"
    )
