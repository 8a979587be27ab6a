"""Free dimensions with their limits, as OpenVINO takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hal.backend import Signature
from hal.errors import BackendError
from hal_openvino.failures import summary


def reshape(model: Any, signature: Signature, ranges: Mapping[str, tuple[int, int]]) -> None:
    """Give the inputs of a freshly read model the sizes that may come.

    Raises:
        BackendError: OpenVINO cannot follow them through the model.
    """
    import openvino as ov

    specs = {spec.name: spec for spec in signature.inputs}
    shapes = {}
    for port in model.inputs:
        spec = next(specs[name] for name in port.get_names() if name in specs)
        sizes = [
            ov.Dimension(*ranges.get(size, (0, -1))) if isinstance(size, str) else ov.Dimension(size)
            for size in spec.shape
        ]
        shapes[port] = ov.PartialShape(sizes)
    try:
        model.reshape(shapes)
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot take free sizes here: {summary(error)}") from error
