"""PyTorch modules with free dimensions: exported once, and right at every size within the ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hal
from hal.errors import InputError, ModelError
from hal.profiling.sources import imported
from hal_torch.importer import TorchImporter
from tests.throwaway import Plugins


class Masked(torch.nn.Module):
    """Any batch and width; the mask goes with the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        y = self.head(torch.relu(self.convolution(x)).mean((2, 3)))
        return {"y": y if mask is None else y * mask}


RANGES = {"x": [(1, 4), 3, 8, (2, 8)], "mask": [(1, 4), 1]}


def examples(n: int = 4, width: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return {
        "x": torch.rand(n, 3, 8, width, generator=generator),
        "mask": torch.rand(n, 1, generator=generator),
    }


def test_dimensions_with_a_range_are_free_and_all_others_as_in_the_example() -> None:
    graph, named = imported(Masked().eval(), examples(), RANGES)
    x, mask = graph.signature.inputs
    batch, width = x.shape[0], x.shape[3]
    assert [x.shape, mask.shape] == [(batch, 3, 8, width), (batch, 1)]
    assert [type(batch), type(width)] == [str, str]
    np.testing.assert_array_equal(named["x"], examples()["x"].numpy())


@pytest.mark.slow
def test_a_module_answers_at_every_size_when_it_was_compiled_for_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAL_HOME", str(tmp_path))
    module = Masked().eval()
    targets = ["cpu:0/onnxruntime/fp32"]
    with hal.compile(module, examples(), shapes=RANGES, targets=targets) as session:
        for n, width in ((4, 8), (1, 2), (2, 5), (1, 8), (4, 8)):
            given = examples(n, width)
            answer = session(**given)["y"]
            torch.testing.assert_close(answer, module(**given)["y"], rtol=1e-4, atol=1e-5)
        assert list(session.events) == []
        for bad in (examples(5), {**examples(3), "mask": torch.ones(2, 1)}):
            with pytest.raises(InputError, match=r"expected float32\[s\d+=1\.\.4, 3, 8, s\d+=2\.\.8\]"):
                session(**bad)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"x": [4, (1, 3), 8, 8]}, r"Masked fixes sizes .*static shape of 3 for dimension inputs\['x'\]"),
        ({"z": [(1, 2)]}, "z cannot have ranges of sizes: expected parameters of Masked.forward that are"),
    ],
)
def test_the_reason_is_told_when_a_size_cannot_be_free(shapes: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        imported(Masked().eval(), examples(), shapes)


def test_an_exported_program_has_no_ranges(tmp_path: Path) -> None:
    program = torch.export.export(Masked().eval(), (), kwargs=examples())
    with pytest.raises(ModelError, match="an exported program keeps the sizes that it was exported with"):
        TorchImporter().to_onnx(program, None, tmp_path / "model.onnx", free={"x": [0]})


OLD = """
from hal.hookspecs import hookimpl

class Old:
    def accepts(self, source):
        return True

    def to_onnx(self, source, inputs, path):
        raise AssertionError("not reached")

@hookimpl
def hal_importer():
    return Old()
"""


def test_ranges_are_refused_when_an_importer_leaves_nothing_free(plugins: Plugins) -> None:
    plugins.add("old", OLD)
    with pytest.raises(ModelError, match="the importer of 'old' leaves no dimensions free"):
        imported(object(), None, RANGES)
