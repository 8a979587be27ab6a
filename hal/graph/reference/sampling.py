"""GridSample, whose interpolation modes changed their names in op set 20."""

from __future__ import annotations

from typing import Any

from onnx.reference.ops.op_grid_sample import GridSample as OnnxGridSample

from hal.graph.reference.operator import Array, widen

#: Source: attribute ``mode`` of GridSample-16 and -20, ONNX operator reference.
_RENAMED = {"bilinear": "linear", "bicubic": "cubic"}


class GridSample(OnnxGridSample):
    """GridSample from op set 16 on, in float64."""

    def _run(
        self, x: Array, grid: Array, mode: str | None = None, padding_mode: str | None = None, **options: Any
    ) -> tuple[Array]:
        name = _RENAMED.get(mode or "linear", mode or "linear")
        if name == "cubic" and padding_mode == "border":
            # onnx moves the point to the border; PyTorch, ONNX Runtime and OpenVINO move its neighbours.
            raise ValueError(
                "GridSample with cubic interpolation and border padding has no trusted implementation"
            )
        result = super()._run(widen(x), widen(grid), mode=name, padding_mode=padding_mode, **options)[0]
        return (result.astype(x.dtype),)
