"""Models that packages ship as ONNX: PP-OCRv6, magika, Silero VAD."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.models import contents, rendering, speech
from tests.models.model import Array, RealModel, package_file

OCR_SHAPES = {
    "ppocr_det": (1, 3, 640, 640),
    "ppocr_det_320": (1, 3, 320, 320),
    "ppocr_rec": (1, 3, 48, 320),
    "ppocr_cls": (1, 3, 48, 192),
}
_OCR_FILES = {
    "ppocr_det": "PP-OCRv6_det_small.onnx",
    "ppocr_det_320": "PP-OCRv6_det_small.onnx",
    "ppocr_rec": "PP-OCRv6_rec_small.onnx",
    "ppocr_cls": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
}
_OCR_NOTES = {
    "ppocr_det": "opset 11, no control flow; text detector, Resize and ConvTranspose",
    "ppocr_det_320": "ppocr_det on a quarter of the picture, for quick tests",
    "ppocr_rec": "opset 11, no control flow; 18,710 characters, alphabet in the metadata property "
    "`character`; three BatchNormalization",
    "ppocr_cls": "opset 11, no control flow; upside down or not; height and width are both called `?`, "
    "so they cannot be bound by name; 308 Constant nodes hold the weights",
}

# name: (file, inputs in the file's order, what to know)
_SILERO = {
    "silero_vad_op15": (
        "silero_vad_16k_op15.onnx",
        ("input", "state", "sr"),
        "opset 15; 12 If nested three deep, 2 LSTM; 16 kHz only",
    ),
    "silero_vad_op16": (
        "silero_vad.onnx",
        ("input", "state", "sr"),
        "opset 16; one If at the top chooses 8 or 16 kHz, 24 more within, 4 LSTM, weights in Constant nodes; "
        "inputs have no declared sizes at all",
    ),
    "silero_vad_op18": (
        "silero_vad_op18_ifless.onnx",
        ("input", "sr", "state"),
        "opset 18; a single If at the top, on the value of `sr`; LSTM written out as Gemm, Sigmoid and Tanh; "
        "unused initializers inside the branches",
    ),
    "silero_vad_half": (
        "silero_vad_half.onnx",
        ("input", "state"),
        "opset 16; 12 If nested three deep, 2 LSTM; half the file, not half precision: its weights are "
        "float32, and not those of the others",
    ),
    "silero_vad_openvino": (
        "silero_vad_openvino_16k.onnx",
        ("input", "state"),
        "opset 16, no control flow, every size fixed; 1 LSTM, weights in Constant nodes",
    ),
}
N_SEQUENCE_FRAMES = 16
# The sound all Silero examples are cut from, and the frame within it that is surely inside speech.
_SPEECH_S = 1.0
_FRAME = 12


def models() -> Iterator[RealModel]:
    """Every model of this file."""
    for name, shape in OCR_SHAPES.items():
        yield RealModel(
            name=name,
            shapes={"x": shape},
            notes=_OCR_NOTES[name],
            packages=("rapidocr", "PIL"),
            locate=_shipped("rapidocr", "models", _OCR_FILES[name]),
            example=_picture(name, shape),
        )
    yield RealModel(
        name="magika",
        shapes={"bytes": (1, contents.N_BEGIN + contents.N_END)},
        notes="opset 15 (and ai.onnx.ml 2, unused), no control flow; one-hot by Equal, 214 classes; input "
        "int32; many Shape, Expand and Reshape that fold once the batch is bound",
        packages=("magika", "PIL"),
        locate=_shipped("magika", "models", "standard_v3_3", "model.onnx"),
        example=lambda: {"bytes": contents.features(contents.PYTHON)},
    )
    for name, (file, inputs, notes) in _SILERO.items():
        sizes: dict[str, tuple[int, ...]] = {"input": (1, 576), "state": (2, 1, 128), "sr": ()}
        yield RealModel(
            name=name,
            shapes={key: sizes[key] for key in inputs},
            notes=notes + "; state goes round: feed `stateN` back as `state`",
            packages=("silero_vad",),
            locate=_shipped("silero_vad", "data", file),
            example=_frame(inputs),
        )
    yield RealModel(
        name="silero_vad_sequence",
        shapes={"input": (N_SEQUENCE_FRAMES, 576), "h": (1, 1, 128), "c": (1, 1, 128)},
        notes="opset 16, no control flow; 1 LSTM over all frames of a recording at once",
        packages=("silero_vad",),
        locate=_shipped("silero_vad", "data", "silero_vad_16k_sequence.onnx"),
        example=_sequence,
    )


def _shipped(package: str, *parts: str) -> Callable[[], Path]:
    return lambda: package_file(package, *parts)


def _picture(name: str, shape: tuple[int, ...]) -> Callable[[], dict[str, Array]]:
    def example() -> dict[str, Array]:
        if name.startswith("ppocr_det"):
            picture, _ = rendering.page(shape[2])
        else:
            text = rendering.LINE if name == "ppocr_rec" else rendering.SHORT_LINE
            picture = rendering.line(text, width=shape[3], height=shape[2])
        return {"x": rendering.pixels(picture)}

    return example


def _frame(inputs: tuple[str, ...]) -> Callable[[], dict[str, Array]]:
    def example() -> dict[str, Array]:
        made: dict[str, Array] = {
            "input": speech.frames(speech.speech(_SPEECH_S))[_FRAME : _FRAME + 1],
            "state": _carried((2, 1, 128)),
            "sr": np.array(speech.RATE_HZ, np.int64),
        }
        return {key: made[key] for key in inputs}

    return example


def _sequence() -> dict[str, Array]:
    frames = speech.frames(speech.speech(_SPEECH_S))[:N_SEQUENCE_FRAMES]
    carried = _carried((2, 1, 128))
    return {"input": frames, "h": carried[:1], "c": carried[1:]}


def _carried(shape: tuple[int, ...]) -> Array:
    """A state as in mid-stream, within an LSTM's -1..1; zeros would hide the recurrent weights."""
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)
