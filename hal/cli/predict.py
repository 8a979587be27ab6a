"""``hal predict``."""

from __future__ import annotations

import sys

from hal.cli import options
from hal.cli.output import emit, show


def predict(
    model: options.Model,
    shape: options.Shapes = None,
    target: options.Targets = None,
    json: options.Json = False,
) -> int:
    """Estimate what a model would take, from the profiles of other models and shapes. Runs nothing.

    Every figure is an estimate with an error bar; hal profile measures.
    """
    from hal.cli.inputs import parse_shapes
    from hal.cli.predict_text import predict_json, predict_text
    from hal.profiling.predict import predict as estimate

    found = estimate(model, shapes=parse_shapes(shape or ()) or None, targets=target)
    if json:
        emit(predict_json(found), sys.stdout)
    else:
        show(predict_text(found), sys.stdout)
    return 0
