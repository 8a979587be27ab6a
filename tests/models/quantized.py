"""Static int8 models in QDQ format, made from the real ones; weights per channel, activations uint8.

They are there for their graphs, which runtimes rewrite more than any other, not for their accuracy. Two
right answers differ more than in float: a value at a tie is rounded either way, and the step is large.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hal import demo
from tests.models import cache, exported, rendering, shipped
from tests.models.model import Array, RealModel

Examples = Callable[[], Sequence[Mapping[str, Array]]]

_TEXTS = ("Hello 2048", "Never silent", "plan 17 of 42", "0123456789", "The quick", "brown fox")
_N_DIGITS = 64
_QUANTIZERS = ("onnx", "onnxruntime")
OPSET = 17


def models() -> Iterator[RealModel]:
    """Every model of this file."""
    real = {model.name: model for model in (*shipped.models(), *exported.models())}
    digits = demo.find("digits")
    yield _quantized(
        RealModel(
            name="digits",
            shapes=digits.shapes,
            notes="",
            packages=(),
            locate=lambda: digits.model,
            example=digits.inputs,
        ),
        lambda: [batch for batch, _ in zip(digits.evaluation().batches, range(_N_DIGITS), strict=False)],
        "convolutions, Gemm",
    )
    yield _quantized(real["ppocr_cls"], _lines("ppocr_cls"), "depthwise convolutions, squeeze and excite")
    yield _quantized(real["ppocr_rec"], _lines("ppocr_rec"), "convolutions and attention, LayerNormalization")
    yield _quantized(
        real["minilm"],
        lambda: [exported.encode([exported.SENTENCE]), *(exported.encode([text]) for text in _sentences())],
        "attention, Gather of quantized tables",
        ("MatMul", "Gemm", "Gather"),  # masks of -inf leave no steps for other values
    )


def _quantized(real: RealModel, examples: Examples, what: str, operators: Sequence[str] = ()) -> RealModel:
    return RealModel(
        name=f"{real.name}_int8",
        shapes=real.shapes,
        notes=f"QDQ of {real.name}, every size bound: {what}",
        packages=("onnxruntime", *real.packages),
        locate=lambda: _locate(real, examples, operators),
        example=real.example,
    )


def _locate(real: RealModel, examples: Examples, operators: Sequence[str]) -> Path:
    source = real.path()

    def make(into: Path) -> None:
        quantize(source, real.shapes, examples(), operators, into / "model.onnx")

    here = Path(__file__)
    entry = cache.key(
        f"{real.name}_int8",
        _QUANTIZERS,
        [here, here.with_name("exported.py"), here.with_name("rendering.py"), source],
    )
    return cache.cached(entry, make) / "model.onnx"


def quantize(
    source: Path,
    shapes: Mapping[str, Sequence[int]],
    examples: Sequence[Mapping[str, Array]],
    operators: Sequence[str],
    to: Path,
) -> None:
    """Bind, infer shapes, calibrate on examples (the least and the greatest value seen) and write `to`.

    Args:
        source: The ONNX file.
        shapes: Of its inputs.
        examples: Real inputs.
        operators: To quantize; the tool's own choice where empty.
        to: The file to write.
    """
    import onnx
    import onnxruntime.quantization as tool
    from onnx import version_converter
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from hal.graph.model import Graph

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._left = iter(examples)

        def get_next(self) -> Any:
            return next(self._left, None)

    bound = to.with_name("bound.onnx")
    prepared = to.with_name("prepared.onnx")
    model = Graph.load(source).bind(shapes).to_proto()
    if model.opset_import[0].version < OPSET:  # scales per channel came with 13
        model = version_converter.convert_version(model, OPSET)
    onnx.save(model, bound)
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)  # it advises to prepare the model, which is done here
    try:
        quant_pre_process(str(bound), str(prepared), skip_symbolic_shape=True)
        tool.quantize_static(
            str(prepared),
            str(to),
            Reader(),
            op_types_to_quantize=list(operators) or None,
            per_channel=True,
            activation_type=tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
            reduce_range=True,  # products of 8 bits saturate on processors without VNNI
        )
    finally:
        log.setLevel(level)
    bound.unlink()
    prepared.unlink()


def _lines(name: str) -> Callable[[], Sequence[Mapping[str, Array]]]:
    width = shipped.OCR_SHAPES[name][3]
    return lambda: [{"x": rendering.pixels(rendering.line(text, width))} for text in _TEXTS]


def _sentences() -> Sequence[str]:
    return [sentence for sentence in exported.PROSE.split(". ") if sentence]
