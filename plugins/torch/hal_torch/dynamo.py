"""hal behind ``torch.compile``: ``torch.compile(module, backend="hal")``. Inference only."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import hal
from hal.errors import InputError
from hal.session.variants import Variants


def backend(
    graph: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile a graph of Dynamo's. Entry point ``hal`` in the group ``torch_dynamo_backends``.

    Weights become part of what is compiled, for the values that they have when it first runs; where they
    are changed later, it is compiled again. So it is for each new shape; the last 8 are kept.

    Args:
        graph: Weights are among its inputs.
        example_inputs: Not used: they may be fake. The inputs of the first call are the examples.
        options: Of :func:`hal.compile`: ``torch.compile(..., options={"targets": ["cpu:0/*"]})``.
        mode: None; hal has no modes.

    Raises:
        InputError: A mode was asked for.
    """
    if mode is not None:
        raise InputError(f"the backend 'hal' has no mode {mode!r}; say what you want with options instead")
    return _Compiled(graph, dict(options or {}))


@dataclass(frozen=True)
class _Ready:
    """A session for some sizes, and the outputs that are no tensors, which are the same for these sizes."""

    session: hal.Session
    others: Mapping[int, Any]

    def __call__(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        outputs = list(self.session(*tensors))
        for at, other in sorted(self.others.items()):
            outputs.insert(at, other)
        return tuple(outputs)

    def close(self) -> None:
        self.session.close()


@dataclass(frozen=True)
class _Weights:
    """Weights as they were, by position, and what was compiled with them."""

    tensors: Mapping[int, torch.Tensor]
    versions: Mapping[int, int]
    sessions: Variants[_Ready]

    def are_in(self, given: Sequence[Any]) -> bool:
        return all(
            given[at] is tensor and _version(tensor) == self.versions[at]
            for at, tensor in self.tensors.items()
        )


class _Compiled:
    """One graph. Any number of threads may call it."""

    def __init__(self, graph: torch.fx.GraphModule, options: Mapping[str, Any]) -> None:
        self._graph, self._options = graph, options
        self._lock = threading.Lock()
        self._weights: _Weights | None = None
        self._is_warned = False

    def __call__(self, *given: Any) -> Any:
        weights = self._current(given)
        fixed = {at: one for at, one in enumerate(given) if at in weights.tensors or not _is_tensor(one)}
        tensors = [one for at, one in enumerate(given) if at not in fixed]
        if not tensors:
            return self._graph(*given)  # it makes something of nothing
        self._warn_of_gradients(given)
        # Sizes that vary come as numbers; what is compiled is for these.
        key = tuple(
            one.shape if _is_tensor(one) else one for at, one in enumerate(given) if at not in weights.tensors
        )

        def made() -> _Ready:
            # Whatever mode the caller is in: tensors of inference mode cannot be exported.
            with torch.inference_mode(False), torch.no_grad():
                module = TorchGraph(self._graph, fixed, len(given))
                outputs = self._graph(*given)
                others = {at: one for at, one in enumerate(outputs) if not _is_tensor(one)}
                session = hal.compile(module, tuple(one.clone() for one in tensors), **self._options)
                return _Ready(session, others)

        with weights.sessions.lease(key, made) as ready:
            return ready(tensors)

    def _current(self, given: Sequence[Any]) -> _Weights:
        with self._lock:
            if self._weights is None or not self._weights.are_in(given):
                if self._weights is not None:
                    self._weights.sessions.close()
                tensors = {at: one for at, one in enumerate(given) if _is_weight(one)}
                versions = {at: _version(one) for at, one in tensors.items()}
                self._weights = _Weights(tensors, versions, Variants())
            return self._weights

    def _warn_of_gradients(self, given: Sequence[Any]) -> None:
        if self._is_warned or not torch.is_grad_enabled():
            return
        if any(_is_tensor(one) and one.requires_grad for one in given):
            self._is_warned = True
            warnings.warn(
                "the backend 'hal' runs inference: its outputs carry no gradients; call the module under "
                "torch.no_grad(), or compile it with another backend to train",
                stacklevel=3,
            )


class TorchGraph(torch.nn.Module):
    """A graph whose weights and numbers are in their places, so that they become constants of the model.

    Args:
        graph: Takes everything as inputs.
        fixed: What is constant, by position.
        n_inputs: All inputs of the graph.
    """

    def __init__(self, graph: torch.fx.GraphModule, fixed: Mapping[int, Any], n_inputs: int) -> None:
        super().__init__()
        self.graph = graph
        self._n_inputs = n_inputs
        self._numbers = {at: one for at, one in fixed.items() if not _is_tensor(one)}
        for at, one in fixed.items():
            if at not in self._numbers:
                self.register_buffer(f"weight_{at}", one.detach())
        self._fixed = set(fixed)

    def forward(self, *tensors: torch.Tensor) -> Any:
        """The tensors that the graph returns for its other inputs; numbers cannot be exported."""
        rest = iter(tensors)
        given = [self._input(at) if at in self._fixed else next(rest) for at in range(self._n_inputs)]
        return tuple(one for one in self.graph(*given) if _is_tensor(one))

    def _input(self, at: int) -> Any:
        return self._numbers[at] if at in self._numbers else getattr(self, f"weight_{at}")


def _is_tensor(one: Any) -> bool:
    return isinstance(one, torch.Tensor)


def _is_weight(one: Any) -> bool:
    """Whether Dynamo took it from a module: parameters, and buffers, which it marks."""
    return isinstance(one, torch.nn.Parameter) or (
        _is_tensor(one) and getattr(one, "_dynamo_static_input_type", None) is not None
    )


def _version(tensor: torch.Tensor) -> int:
    """Rises with each change in place; PyTorch does not count those of inference mode's tensors."""
    return 0 if tensor.is_inference() else tensor._version
