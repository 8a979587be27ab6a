"""Losses."""

from __future__ import annotations

import torch
from torch.nn import functional

from hal_torch.bridge.node import Call, OpNode, Refused, call
from hal_torch.bridge.table import operator

# No class has this number, so nothing is ignored. Source: the default of functional.nll_loss.
_IGNORE_NOTHING = -100


def nll_loss(
    x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, reduction: str, ignore: int
) -> torch.Tensor:
    """Negative log likelihood; class 1 of the input holds the classes."""
    return functional.nll_loss(x, target.to(torch.int64), weight, ignore_index=ignore, reduction=reduction)


def _options(node: OpNode) -> tuple[str, int]:
    reduction = node.text("reduction", "mean")
    if reduction not in ("mean", "sum", "none"):
        raise Refused(f"reduction `{reduction}` is not one of mean, sum, none")
    return reduction, node.integer("ignore_index", _IGNORE_NOTHING)


@operator("NegativeLogLikelihoodLoss", 12)
def nll_loss_node(node: OpNode) -> Call:
    """Negative log likelihood."""
    return call(nll_loss, node.input(0), node.input(1), node.optional(2), *_options(node))


def cross_entropy(
    x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, reduction: str, ignore: int
) -> torch.Tensor:
    """Cross entropy of scores."""
    return nll_loss(functional.log_softmax(x, 1), target, weight, reduction, ignore)


def cross_entropy_and_logs(
    x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, reduction: str, ignore: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of scores, and their log probabilities."""
    return cross_entropy(x, target, weight, reduction, ignore), functional.log_softmax(x, 1)


@operator("SoftmaxCrossEntropyLoss", 12)
def cross_entropy_node(node: OpNode) -> Call:
    """Cross entropy of scores."""
    function = cross_entropy if node.single else cross_entropy_and_logs
    return call(function, node.input(0), node.input(1), node.optional(2), *_options(node))
