"""PyTorch's tensors through sessions, and modules called as they are themselves called."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers.utils import ModelOutput

from hal.errors import InputError
from hal.graph.interface import Constant, Leaf, read
from hal.graph.model import Graph
from hal.session.session import Session
from hal.testing import example_inputs, small_graph, true_outputs
from hal_torch.importer import TorchImporter
from tests.contract.test_torch_importer import Net, inputs
from tests.unit.sessions import session


def imported(module: torch.nn.Module, given: Any, folder: Path) -> Session:
    TorchImporter().to_onnx(module, given, folder / "model.onnx")
    return session(Graph.load(folder / "model.onnx"))[0]


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert isinstance(got, torch.Tensor)
    torch.testing.assert_close(got, want.detach(), rtol=1e-5, atol=1e-6)


# --- tensors ------------------------------------------------------------------------------------------------


def test_torch_tensors_come_out_when_one_goes_in() -> None:
    add, runner = session()
    x, y = (torch.from_numpy(array) for array in example_inputs(add.graph))
    for got in (
        add(x, y),
        add(x, y=y.numpy()),
        add({"x": x.numpy(), "y": y}),
        add.run(None, {"x": x, "y": y})[0],
    ):
        close(got, x + y)
        assert got.device == x.device
    assert type(add(x.numpy(), y.numpy())) is np.ndarray
    seen: list[Any] = []
    runner.on_run = seen.extend
    add(x, y)
    assert np.shares_memory(seen[0], x.numpy())


def test_torch_tensors_are_read_whatever_they_are() -> None:
    add, _ = session()
    x, y = (torch.from_numpy(array) for array in example_inputs(add.graph))
    close(add(x.requires_grad_(), torch.nn.Parameter(y)), x + y)
    close(add(x.T.contiguous().T, y.flip(0)), x + y.flip(0))
    with torch.inference_mode():
        close(add(x + 1, y), x + 1 + y)
    assert not add(x, y).requires_grad


def test_outputs_can_be_written_to() -> None:
    add, _ = session()
    x, y = (torch.from_numpy(array) for array in example_inputs(add.graph))
    got = add(x, y)
    got += 1
    close(got, x + y + 1)


def test_bfloat16_comes_out_as_bfloat16() -> None:
    graph = small_graph("bfloat16")
    half, _ = session(graph)
    (x,) = example_inputs(graph)
    got = half(torch.from_numpy(x.astype(np.float32)).bfloat16())
    assert got.dtype == torch.bfloat16
    np.testing.assert_array_equal(got.float().numpy(), true_outputs(graph, [x])[0].astype(np.float32))


def test_torch_tensors_are_refused_when_they_do_not_fit() -> None:
    add, _ = session()
    x = torch.ones(2, 3)
    with pytest.raises(InputError, match=r"input 'y' is float64\[2, 3\]; expected float32\[2, 3\]"):
        add(x, x.double())
    with pytest.raises(InputError, match=r"input 'y': (Tensor|SparseTensor) cannot be read"):
        add(x, x.to_sparse())


def test_pytorch_is_not_imported_when_numpy_arrays_go_in() -> None:
    code = (
        "import sys, numpy as np\n"
        "from tests.unit.sessions import session\n"
        "add, _ = session()\n"
        "add(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)[::-1].copy())\n"
        "add.run(None, {'x': np.ones((2, 3), np.float32), 'y': np.ones((3, 2), np.float32).T})\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# --- modules ------------------------------------------------------------------------------------------------


def test_a_module_is_called_as_it_is_itself_called(tmp_path: Path) -> None:
    net, given = Net().eval(), inputs()
    exported = imported(net, given, tmp_path)
    want = net(**given)
    for got in (exported(**given), exported(given["x"], scale=given["scale"]), exported(given)):
        assert list(got) == ["scaled", "pair"]
        assert type(got["pair"]) is tuple
        for one, other in zip((got["scaled"], *got["pair"]), (want["scaled"], *want["pair"]), strict=True):
            close(one, other)
    with pytest.raises(InputError, match=r"input \"scale\['b'\]\" is missing; expected float32\[2\]"):
        exported(given["x"], scale={"a": given["scale"]["a"]})
    with pytest.raises(InputError, match=r"input \"scale\['a'\]\" is int64\[1\]"):
        exported(given["x"], scale={**given["scale"], "a": torch.ones(1, dtype=torch.int64)})


@dataclasses.dataclass
class Answer(ModelOutput):
    logits: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Many(torch.nn.Module):
    """Arguments with defaults, and outputs of every kind."""

    def forward(
        self, x: torch.Tensor, y: torch.Tensor | None = None, kind: str = "dict", deep: bool = False
    ) -> Any:
        left, right = x * 2, x + (1 if y is None else y)
        made = {
            "output": lambda: Answer(logits=left, hidden=right),
            "named": lambda: Pair(left, right),
            "list": lambda: [left, (right, None)],
            "bare": lambda: left + right,
            "one": lambda: (left + right,),
            "twice": lambda: (left, left),
        }[kind]()
        return {"inner": made} if deep else made


X, Y = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)), torch.full((2, 3), 0.5)


def test_model_outputs_are_records(tmp_path: Path) -> None:
    exported = imported(Many(), {"x": X, "y": Y, "kind": "output"}, tmp_path)
    got = exported(x=X, y=Y)
    close(got.logits, X * 2)
    close(got["hidden"], X + Y)
    close(got[1], X + Y)


def test_named_tuples_stay_named_tuples(tmp_path: Path) -> None:
    got = imported(Many(), {"x": X, "kind": "named"}, tmp_path)(X)
    left, right = got
    assert type(got).__name__ == "Pair"
    close(got.left, left)
    close(right, X + 1)


def test_lists_and_constants_stay_where_they_are(tmp_path: Path) -> None:
    exported = imported(Many(), {"x": X, "y": Y, "kind": "list", "deep": True}, tmp_path)
    got = exported(X, Y)
    assert list(got) == ["inner"]
    first, (second, nothing) = got["inner"]
    assert type(got["inner"]) is list
    assert nothing is None
    close(first, X * 2)
    close(second, X + Y)
    close(exported(X, Y, kind="list")["inner"][0], X * 2)
    with pytest.raises(InputError, match="input 'kind' is 'dict'; the model was exported with 'list'"):
        exported(X, Y, kind="dict")


def test_one_output_is_bare_only_when_the_module_returns_it_bare(tmp_path: Path) -> None:
    close(imported(Many(), {"x": X, "y": Y, "kind": "bare"}, tmp_path)(X, Y), X * 3 + Y)
    got = imported(Many(), {"x": X, "y": Y, "kind": "one"}, tmp_path)(X, Y)
    assert type(got) is tuple
    close(got[0], X * 3 + Y)


def test_an_output_that_is_returned_twice_comes_twice(tmp_path: Path) -> None:
    first, second = imported(Many(), {"x": X, "kind": "twice"}, tmp_path)(X)
    close(first, X * 2)
    close(second, X * 2)


def test_arguments_that_are_no_tensors_are_recorded_as_constants(tmp_path: Path) -> None:
    TorchImporter().to_onnx(Many(), (X, None, "bare"), tmp_path / "model.onnx")
    recorded = read(Graph.load(tmp_path / "model.onnx").model)
    assert recorded is not None
    assert [parameter.name for parameter in recorded.parameters] == ["x", "y", "kind"]
    assert [type(parameter.tree) for parameter in recorded.parameters] == [Leaf, Constant, Constant]


def test_programs_are_called_by_the_names_of_their_tensors(tmp_path: Path) -> None:
    program = torch.export.export(Many(), (X, Y, "bare"))
    TorchImporter().to_onnx(program, None, tmp_path / "model.onnx")
    exported = session(Graph.load(tmp_path / "model.onnx"))[0]
    for got in (exported(X, Y), exported(x=X, y=Y), exported(X, Y, "bare")):
        close(got, X * 3 + Y)


def test_examples_may_be_numpy_arrays(tmp_path: Path) -> None:
    numpy_inputs = {"x": inputs()["x"].numpy(), "scale": {k: v.numpy() for k, v in inputs()["scale"].items()}}
    exported = imported(Net(), numpy_inputs, tmp_path)
    got = exported(**numpy_inputs)
    assert type(got["scaled"]) is np.ndarray
    np.testing.assert_allclose(
        got["scaled"], Net().eval()(**inputs())["scaled"].detach(), rtol=1e-5, atol=1e-6
    )
