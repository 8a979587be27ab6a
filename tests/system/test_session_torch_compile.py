"""``torch.compile(module, backend="hal")``: found by its entry point, right, and said when it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hal.errors import HalError

pytestmark = pytest.mark.slow

OPTIONS = {"targets": ["cpu:0/onnxruntime/fp32"]}


class Net(torch.nn.Module):
    """Parameters, buffers, and an output that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.norm.running_mean.fill_(0.3)
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, Any]:
        y = torch.relu(self.norm(self.convolution(x)))
        return {"logits": self.linear(y.mean((2, 3))) * scale, "size": x.shape[0]}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def images(n: int = 1) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(n))


def check(compiled: Any, net: Net, x: torch.Tensor) -> None:
    got, want = compiled(x), net(x)
    torch.testing.assert_close(got["logits"], want["logits"], rtol=1e-4, atol=1e-5)
    assert got["size"] == want["size"]


def test_hal_is_among_the_backends() -> None:
    assert "hal" in torch._dynamo.list_backends()


def test_a_module_answers_the_same_when_it_is_compiled_and_its_weights_or_shapes_change() -> None:
    net = Net().eval()
    compiled = torch.compile(net, backend="hal", options=OPTIONS)
    with torch.no_grad():
        check(compiled, net, images())
        check(compiled, net, images(3))
        net.linear.weight += 1
        check(compiled, net, images())
    with torch.inference_mode():
        check(compiled, net, images())


def test_a_warning_says_that_there_are_no_gradients() -> None:
    compiled = torch.compile(torch.nn.Linear(3, 2).eval(), backend="hal", options=OPTIONS)
    with pytest.warns(
        UserWarning, match="its outputs carry no gradients; call the module under torch.no_grad"
    ):
        assert not compiled(torch.ones(1, 3)).requires_grad


def test_a_mode_is_refused() -> None:
    compiled = torch.compile(torch.nn.ReLU(), backend="hal", mode="max-autotune")
    with torch.no_grad(), pytest.raises(Exception, match="the backend 'hal' has no mode 'max-autotune'"):
        compiled(torch.ones(1, 3))


def test_the_reason_is_told_when_no_target_fits() -> None:
    compiled = torch.compile(torch.nn.ReLU(), backend="hal", options={"targets": ["tpu:7/*"]})
    with torch.no_grad(), pytest.raises(HalError, match="no target here fits 'tpu:7/\\*'"):
        compiled(torch.ones(1, 3))
