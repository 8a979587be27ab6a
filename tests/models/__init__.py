"""Real, trained models for tests, from packages that ship them: see requirements-models.txt.

model = MODELS["ppocr_rec"].require()      # skips the test, with the reason, where the package is missing
model.path(), model.inputs(), model.shapes

QUANTIZED holds int8 models made from some of them, on which runtimes differ by more than float's rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tests.models import exported, quantized, shipped
from tests.models.model import RealModel

__all__ = ["MODELS", "QUANTIZED", "RealModel"]

MODELS: Mapping[str, RealModel] = MappingProxyType(
    {model.name: model for model in (*shipped.models(), *exported.models())}
)
QUANTIZED: Mapping[str, RealModel] = MappingProxyType({model.name: model for model in quantized.models()})
