"""The importer of PyTorch models: what it accepts, writes, leaves alone, and says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hal.errors import ModelError
from hal_torch.importer import TorchImporter


class Net(torch.nn.Module):
    """Nested inputs and outputs, and layers that differ between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 4, 3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, *, scale: dict[str, torch.Tensor]) -> dict[str, Any]:
        y = self.dropout(torch.relu(self.convolution(x)))
        return {"scaled": y * scale["a"], "pair": (y.mean((2, 3)), scale["b"] + 1)}


class Branches(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "scale": {"a": torch.rand(1, generator=generator), "b": torch.rand(2, generator=generator)},
        "x": torch.rand(1, 3, 8, 8, generator=generator),
    }


def answers(path: Path, named: dict[str, Any]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, named)


def test_accepts_takes_pytorch_objects_and_paths_only() -> None:
    importer = TorchImporter()
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
    assert importer.accepts(Net())
    assert importer.accepts(program)
    assert importer.accepts("model.pt2")
    assert importer.accepts(Path("model.pt2"))
    assert not any(
        importer.accepts(other) for other in ("model.onnx", Path("model.pt"), b"", None, np.ones(2))
    )


def test_accepts_does_not_import_pytorch() -> None:
    code = (
        "import sys; from hal_torch.plugin import hal_importer; i = hal_importer()\n"
        "assert i.accepts('a.pt2') and not i.accepts(3) and not i.accepts('a.onnx')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_to_onnx_exports_in_evaluation_mode_and_restores_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net = Net().train()
    net.convolution.eval()  # a frozen layer must stay frozen
    named = TorchImporter().to_onnx(net, inputs(), tmp_path / "model.onnx")
    assert (net.training, net.dropout.training, net.convolution.training) == (True, True, False)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    with torch.no_grad():
        expected = net.eval()(**inputs())
    got = answers(tmp_path / "model.onnx", named)
    for array, tensor in zip(got, (expected["scaled"], *expected["pair"]), strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-5, atol=1e-6)


def test_to_onnx_gives_inputs_by_the_names_in_the_file(tmp_path: Path) -> None:
    named = TorchImporter().to_onnx(Net(), inputs(), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert list(named) == [value.name for value in model.graph.input]
    shapes = {tuple(d.dim_value for d in v.type.tensor_type.shape.dim): v.name for v in model.graph.input}
    assert {named[name].shape: name for name in named} == shapes
    np.testing.assert_array_equal(named[shapes[(2,)]], inputs()["scale"]["b"].numpy())


def test_to_onnx_keeps_source_lines_without_folders(tmp_path: Path) -> None:
    TorchImporter().to_onnx(Net(), inputs(), tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    assert b"test_torch_importer.py" in data
    assert b'File "torch/nn/modules/conv.py"' in data
    assert str(Path(__file__).parent).encode() not in data
    assert b"site-packages" not in data


@pytest.mark.parametrize(
    "given", [torch.ones(2, 3), (torch.ones(2, 3),), [torch.ones(2, 3)], {"input": torch.ones(2, 3)}]
)
def test_to_onnx_takes_inputs_in_every_form(tmp_path: Path, given: Any) -> None:
    named = TorchImporter().to_onnx(torch.nn.ReLU(), given, tmp_path / "model.onnx")
    assert [array.shape for array in named.values()] == [(2, 3)]


def test_to_onnx_reads_saved_programs_with_their_own_inputs(tmp_path: Path) -> None:
    x = torch.rand(2, 3)
    program = torch.export.export(torch.nn.Softmax(-1), (x,))
    torch.export.save(program, tmp_path / "model.pt2")
    for source in (program, str(tmp_path / "model.pt2")):
        (tmp_path / "model.onnx").unlink(missing_ok=True)
        named = TorchImporter().to_onnx(source, None, tmp_path / "model.onnx")
        (got,) = answers(tmp_path / "model.onnx", named)
        np.testing.assert_allclose(got, x.softmax(-1).numpy(), rtol=1e-5)


def test_to_onnx_says_so_when_file_is_not_a_program(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "junk.pt2").write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"junk.pt2 cannot be read as a PyTorch program") as caught:
        TorchImporter().to_onnx(tmp_path / "junk.pt2", None, tmp_path / "model.onnx")
    assert "expected a file that torch.export.save wrote" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_to_onnx_says_so_when_inputs_are_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Net needs example inputs to be exported; expected a tensor"):
        TorchImporter().to_onnx(Net(), None, tmp_path / "model.onnx")


def test_to_onnx_says_so_when_inputs_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="cannot export Net to ONNX: TypeError: missing a required argument: 'scale'"
    ):
        TorchImporter().to_onnx(Net(), torch.ones(1, 3, 8, 8), tmp_path / "model.onnx")


def test_to_onnx_says_so_when_model_branches_on_values(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=r"cannot export Branches to ONNX: .*data-dependent") as caught:
        TorchImporter().to_onnx(Branches().train(), torch.ones(2), tmp_path / "model.onnx")
    assert "replace Python control flow on the values of tensors" in str(caught.value)
    assert capfd.readouterr().out == ""
    assert not (tmp_path / "model.onnx").exists()


def test_to_onnx_says_so_when_program_gets_another_number_of_inputs(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
    with pytest.raises(ModelError, match="2 example inputs were given where the program takes 1: input"):
        TorchImporter().to_onnx(program, (torch.ones(2), torch.ones(2)), tmp_path / "model.onnx")
