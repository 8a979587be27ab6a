"""Right or wrong: a target's answers against the reference's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hal.graph.difference import tensor_errors
from hal.graph.model import Graph
from hal.records.profile import OutputError
from hal.records.targets import Signature
from hal.tensor import Array

#: Relative L2 error above which an answer is wrong, not merely rounded.
#: Source: unit roundoff of the format (2^-24, 2^-11, 2^-8) times a growth of about sqrt(n) over the
#: some 10^3 to 10^4 roundings in a row of a deep network (Higham, "Accuracy and Stability of Numerical
#: Algorithms", section 2.8, probabilistic bounds), and a margin for softmax and thresholds near the end.
#: fp32 stays just above TF32's roundoff (2^-11), so that a target that rounds every product to TF32 or
#: bf16 does not pass for fp32 on any but the shallowest models.
TOLERANCES = {"fp32": 5e-4, "fp16": 0.05, "bf16": 0.25}
#: The same for graphs with quantized values, in any precision: a tie that two runtimes round to different
#: sides is a whole step of the scale, and steps add up over layers.
#: Source: measured here, statically quantized MiniLM against the reference on three runtimes: up to 0.3.
QUANTIZED_TOLERANCE = 0.4
_QUANTIZING = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QLinearAdd", "QGemm"}
)


def tolerance(precision: str, graph: Graph) -> float:
    """Relative L2 error above which answers of a graph in a precision are wrong."""
    quantized = any(node.op_type in _QUANTIZING for node in graph.nodes.values())
    return max(TOLERANCES[precision], QUANTIZED_TOLERANCE) if quantized else TOLERANCES[precision]


def compare(
    signature: Signature, reference: Sequence[Array], answers: Sequence[Array]
) -> tuple[OutputError, ...]:
    """Error figures per output."""
    found = []
    for spec, expected, answer in zip(signature.outputs, reference, answers, strict=True):
        error = tensor_errors(np.asarray(expected), np.asarray(answer))
        found.append(
            OutputError(
                name=spec.name,
                relative_l2=_finite(error.relative_l2),
                max_abs=_finite(error.max_abs),
                sqnr_db=_finite(error.sqnr_db),
            )
        )
    return tuple(found)


def fault(errors: Sequence[OutputError], precision: str, graph: Graph) -> str:
    """Why the answers are wrong, or an empty text if rounding explains the difference."""
    most = tolerance(precision, graph)
    for error in errors:
        relative = math.inf if error.relative_l2 is None else error.relative_l2
        if relative > most:
            what = precision if most == TOLERANCES[precision] else f"{precision} with quantized values"
            return (
                f"output {error.name!r} is off by {relative:.3g} (relative L2); "
                f"{what} explains at most {most:g}"
            )
    return ""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
