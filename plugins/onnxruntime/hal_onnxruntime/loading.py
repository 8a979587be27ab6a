"""Making sessions: on the provider that was asked for, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from hal.errors import BackendError, UnsupportedGraph
from hal.graph.model import Graph
from hal_onnxruntime.providers import Provider
from hal_onnxruntime.runtime import onnxruntime, tidy

_log = logging.getLogger("hal.onnxruntime")

# What ONNX Runtime calls a model that it cannot take, as against a failure of its own.
_REFUSALS = ("NotImplemented", "InvalidGraph")
_REFUSING = ("is not a registered function/op", "official released onnx opset", "This is an invalid model")
_INFERENCE = ("ShapeInferenceError", "TypeInferenceError")


class Endpoint(msgspec.Struct, frozen=True):
    """A provider on one device.

    Attributes:
        provider: What is known of it.
        index: Which of its devices.
        ep_device: The ``OrtEpDevice`` of a provider that was loaded from a library, else None.
    """

    provider: Provider
    index: int = 0
    ep_device: Any = None


def open_session(
    model: bytes | Path,
    options: Any,
    endpoint: Endpoint,
    precision: str,
    disabled_optimizers: Collection[str] = (),
) -> Any:
    """An ``InferenceSession`` whose first provider is the endpoint's.

    Args:
        model: As :meth:`hal.graph.model.Graph.serialized` gives it.
        options: A ``SessionOptions`` that nothing else uses.
        endpoint: Where to run.
        precision: Decides the provider options.
        disabled_optimizers: Names of graph rewrites to leave out.

    Raises:
        UnsupportedGraph: The runtime does not take the model.
        BackendError: The runtime failed, or quietly left the provider out.
    """
    package = onnxruntime()
    provider = endpoint.provider
    pinned = dict(provider.options.get(precision) or next(iter(provider.options.values())))
    listed = None
    # The package's own fallback makes a session on other providers and prints; it must stay off.
    arguments: dict[str, Any] = {"enable_fallback": 0, "disabled_optimizers": set(disabled_optimizers)}
    try:
        if endpoint.ep_device is not None:
            options.add_provider_for_devices([endpoint.ep_device], pinned)
        else:
            listed = provider.session_list(precision, endpoint.index, package.get_available_providers())
        source = str(model) if isinstance(model, Path) else model
        session = package.InferenceSession(source, options, providers=listed, **arguments)
    except Exception as error:  # every class of the runtime's derives from Exception only
        text = tidy(error)
        refused = type(error).__name__ in _REFUSALS or any(word in text for word in _REFUSING)
        if refused or trips_over_sizes(text):
            raise UnsupportedGraph(text) from error
        raise BackendError(f"onnxruntime cannot make a session: {text}") from error
    expect_provider(provider.name, session.get_providers())
    return session


def expect_provider(asked: str, used: Sequence[str]) -> None:
    """Refuse a session that quietly runs elsewhere.

    Raises:
        BackendError: The provider asked for is not among those that the session uses.
    """
    if asked not in used:
        raise BackendError(
            f"{asked} was asked for, but the session runs on {', '.join(used)}: the provider's library or "
            "its device did not load; `hal devices` shows the reason"
        )


def open_graph(
    graph: Graph,
    options_of: Any,
    endpoint: Endpoint,
    precision: str,
    disabled_optimizers: Collection[str] = (),
) -> Any:
    """A session on a graph; static sizes are withheld where the runtime trips over them.

    The runtime checks the branches of an ``If`` against bound sizes even where they can never be
    taken, and refuses models that run well with free ones (silero-vad is one).

    Args:
        graph: Bound.
        options_of: Makes a fresh ``SessionOptions`` for each try.
        endpoint: Where to run.
        precision: Decides the provider options.
        disabled_optimizers: Names of graph rewrites to leave out.

    Raises:
        UnsupportedGraph: The runtime does not take the model, with free sizes either.
        BackendError: As :func:`open_session`.
    """
    try:
        return open_session(graph.serialized(), options_of(), endpoint, precision, disabled_optimizers)
    except UnsupportedGraph as refusal:
        if not trips_over_sizes(str(refusal)):
            raise
        relaxed = with_free_sizes(graph)
        try:
            session = open_session(
                relaxed.serialized(), options_of(), endpoint, precision, disabled_optimizers
            )
        except (UnsupportedGraph, BackendError):
            raise refusal from None
        _log.info("onnxruntime refused %r with bound sizes (%s); it runs with free ones", graph.name, refusal)
        return session


def trips_over_sizes(text: str) -> bool:
    """Whether an error comes from the runtime's inference of shapes and types."""
    return any(word in text for word in _INFERENCE)


def with_free_sizes(graph: Graph) -> Graph:
    """A copy whose inputs keep their rank only, and from which inferred shapes are gone."""
    model = graph.model.clone()
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([None] * len(value.shape))
    # The file's own output shapes may carry sizes; without a rank the runtime infers them.
    for value in model.graph.outputs:
        value.shape = None
    return Graph(model, name=graph.name, digest=graph.digest)
