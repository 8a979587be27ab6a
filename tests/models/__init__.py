"""Real, trained models for tests, from packages that ship them: see requirements-models.txt.

model = MODELS["ppocr_rec"].require()      # skips the test, with the reason, where the package is missing
model.path(), model.inputs(), model.shapes
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tests.models import exported, shipped
from tests.models.model import RealModel

__all__ = ["MODELS", "RealModel"]

MODELS: Mapping[str, RealModel] = MappingProxyType(
    {model.name: model for model in (*shipped.models(), *exported.models())}
)
