"""Trusted answers that never touch a backend: onnx's ReferenceEvaluator, its heavy operators in float64."""

from hal.graph.reference.cache import cached_reference
from hal.graph.reference.evaluator import ReferenceUnavailable, reference_outputs

__all__ = ["ReferenceUnavailable", "cached_reference", "reference_outputs"]
