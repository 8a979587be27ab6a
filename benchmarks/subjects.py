"""What benchmarks measure: models with inputs that are like those of their users."""

from __future__ import annotations

from hal.profiling.sources import Subject, resolve
from tests.models import MODELS, QUANTIZED


def subject_of(name: str) -> Subject:
    """A demo or one of tests/models, quantized ones too, with its real inputs."""
    if name.startswith("demo:"):
        return resolve(name)
    real = {**MODELS, **QUANTIZED}[name]
    return resolve(real.path(), real.inputs())
