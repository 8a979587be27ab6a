"""What programs that use ONNX Runtime call, carried out by sessions of hal's."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from hal.backend import TensorSpec
from hal.errors import InputError, ModelError, TargetError, problems
from hal.graph.model import ANY_RANK, Graph
from hal.profiling.discovery import discover
from hal.profiling.sources import opened
from hal.session.calling import Calling
from hal.session.compiling import compile, examples
from hal.session.session import Session
from hal.session.variants import Variants
from hal.tensor import Array

#: Options that go to :func:`hal.compile`.
_OPTIONS = (
    "objective",
    "max_error",
    "memory",
    "targets",
    "strict",
    "budget_s",
    "deadline_s",
    "on_event",
    "isolate",
    "watch",
    "adaptive",
)

#: Targets that an execution provider's devices are, as shell patterns.
#: Source: ONNX Runtime's documentation, "Execution Providers"; others are no devices of hal's.
_TARGETS = {
    "CPUExecutionProvider": "cpu:*/*",
    "CUDAExecutionProvider": "cuda:*/*",
    "TensorrtExecutionProvider": "cuda:*/*",
    "NvTensorRTRTXExecutionProvider": "cuda:*/*",
    "OpenVINOExecutionProvider": "*/openvino*/*",
}
#: Names of element types where ONNX Runtime's differ from numpy's. Source: onnxruntime, ``NodeArg.type``.
_TYPES = {"float32": "float", "float64": "double"}


class NodeArg(msgspec.Struct, frozen=True):
    """An input or output.

    Attributes:
        name: Of the tensor.
        shape: Sizes; the name of a free dimension, or None where it has no name.
        type: ``tensor(float)``, ``tensor(int64)``, ...
    """

    name: str
    shape: list[int | str | None]
    type: str


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says of itself, by ONNX Runtime's names."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


class InferenceSession:
    """The common part of ``onnxruntime.InferenceSession``, on whatever was measured to be the best here.

    A model without free dimensions is compiled at once. Else it is compiled for the shapes of the first
    inputs when they come, and again for others; the last 8 shapes are kept.

    Args:
        path_or_bytes: An ONNX file, or its bytes.
        sess_options: An ``onnxruntime.SessionOptions``. How threads, memory and optimisations are set is
            measured here, so that a warning names the options that have no effect.
        providers: Names, or pairs of a name and its options. They say which devices may be used; which
            runtime runs on them is measured. Those without a device here are left out with a warning. None
            allows all.
        provider_options: Options by position, where ``providers`` are names alone. ``device_id`` is heeded; a
            warning names the others.
        kwargs: ``objective``, ``max_error``, ``memory``, ``targets``, ``strict``, ``budget_s``,
            ``deadline_s``, ``on_event``, ``isolate``, ``watch`` and ``adaptive`` of :func:`hal.compile`.

    Raises:
        ModelError: The model cannot be read.
        InputError: An argument is not what it should be.
        TargetError: No device of the providers is here.
        HalError: As :func:`hal.compile`.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if unknown := sorted(kwargs.keys() - set(_OPTIONS)):
            raise InputError(
                f"hal.InferenceSession has no {', '.join(unknown)}; expected {', '.join(_OPTIONS)}"
            )
        if providers is not None and kwargs.get("targets") is not None:
            raise InputError("providers and targets both say where to run; give one of them")
        self._graph = _read(path_or_bytes)
        self._sess_options = sess_options
        _warn_of("session options", sess_options)
        self._providers = _providers(providers, provider_options)
        self._options = kwargs
        if self._providers:
            self._options = {**kwargs, "targets": list(dict.fromkeys(self._providers.values()))}
        self._variants: Variants[Session] = Variants()
        self._session: Session | None = None
        if not self._graph.unbound:
            self._session = compile(self._graph, **self._options)
        self._calling = Calling(self._graph.name, self._graph.signature)

    # --- what it is ------------------------------------------------------------------------------------

    @property
    def sessions(self) -> list[Session]:
        """What is compiled now: one, or one for each of the last shapes."""
        return self._variants.kept if self._session is None else [self._session]

    def get_inputs(self) -> list[NodeArg]:
        """The inputs, as the file has them."""
        return [_node_arg(spec) for spec in self._graph.signature.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs, as the file has them."""
        return [_node_arg(spec) for spec in self._graph.signature.outputs]

    def get_modelmeta(self) -> ModelMetadata:
        """What the file says of itself."""
        model = self._graph.model
        return ModelMetadata(
            producer_name=model.producer_name or "",
            graph_name=model.graph.name or "",
            domain=model.domain or "",
            description=model.doc_string or "",
            graph_description=model.graph.doc_string or "",
            version=model.model_version or 0,
            custom_metadata_map=dict(model.metadata_props),
        )

    def get_session_options(self) -> Any:
        """What was given as ``sess_options``."""
        return self._sess_options

    def get_providers(self) -> list[str]:
        """ONNX Runtime's names of the devices in use; before anything is compiled, those that may be used."""
        targets = [target for session in self.sessions for target in session.plan.targets]
        if not targets:
            return list(self._providers)
        return list(dict.fromkeys(map(_provider_of, targets)))

    # --- running ---------------------------------------------------------------------------------------

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """Run once. Any number of threads may call it.

        Args:
            output_names: Outputs that are wanted, in this order; None or none for all.
            input_feed: Tensors by input name.
            run_options: An ``onnxruntime.RunOptions``; a warning names those that have no effect.

        Returns:
            One numpy array per output.

        Raises:
            InputError: Inputs are missing, unknown, or of another type or shape; each is named.
            BackendError: It is closed, or no device could answer.
            HalError: The model cannot be compiled for these shapes; see :func:`hal.compile`.
        """
        if run_options is not None:
            _warn_of("run options", run_options)
        if self._session is not None:
            return self._session.run(output_names, input_feed)
        shapes = self._shapes(input_feed)
        if shapes is None:
            arrays, _ = self._calling.fit(self._calling.feeds(input_feed))
            shapes = tuple(array.shape for array in arrays)
            make = functools.partial(self._compiled, arrays)
        else:
            make = functools.partial(self._compiled, [input_feed[name] for name in self._calling.names])
        with self._variants.lease(shapes, make) as session:
            return session.run(output_names, input_feed)

    def close(self) -> None:
        """Release everything, after the runs under way. A second call does nothing."""
        self._variants.close()
        if self._session is not None:
            self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _shapes(self, feeds: Any) -> tuple[tuple[int, ...], ...] | None:
        """Shapes by position where all are plain arrays of the right types; else None."""
        if not isinstance(feeds, Mapping) or len(feeds) != len(self._calling.names):
            return None
        found = []
        for name, (dtype, _) in zip(self._calling.names, self._calling.wanted, strict=True):
            array = feeds.get(name)
            if type(array) is not np.ndarray or array.dtype is not dtype:
                return None
            found.append(array.shape)
        return tuple(found)

    def _compiled(self, arrays: Sequence[Array]) -> Session:
        inputs, shapes = examples(self._calling.names, arrays)
        return compile(self._graph, inputs, shapes=shapes, **self._options)


def _read(path_or_bytes: Any) -> Graph:
    if not isinstance(path_or_bytes, str | os.PathLike | bytes):
        raise ModelError(
            f"{type(path_or_bytes).__name__} is neither a path nor bytes of an ONNX model; "
            "hal.compile takes models of frameworks"
        )
    graph = opened(path_or_bytes)
    # A file of another format: the reader says of which, and what to do.
    return Graph.load(Path(os.fsdecode(path_or_bytes))) if graph is None else graph


def _providers(
    providers: Sequence[Any] | None, options: Sequence[Mapping[str, Any]] | None
) -> dict[str, str]:
    """Providers that have devices here, with the targets that they stand for; empty for all.

    Raises:
        InputError: They are not names or pairs of name and options.
        TargetError: None of them has a device here.
    """
    if providers is None:
        return {}
    asked = [_pair(one) for one in providers]
    if options is not None:
        if len(options) != len(asked) or any(pair[1] for pair in asked):
            raise InputError(
                f"{len(options)} provider_options were given for {len(asked)} providers; expected as many, "
                "and providers that are names alone"
            )
        asked = [(name, given) for (name, _), given in zip(asked, options, strict=True)]
    patterns: dict[str, str] = {}
    missing = []
    for name, given in asked:
        ignored = {key: value for key, value in given.items() if key != "device_id"}
        if ignored:
            told = ", ".join(f"{key}={value!r}" for key, value in ignored.items())
            _warn(f"options of {name} have no effect: {told}; hal measures which settings are best")
        pattern = _TARGETS.get(name)
        if pattern is None:
            missing.append(name)
        else:
            patterns[name] = pattern.replace("cuda:*", f"cuda:{given.get('device_id', '*')}")
    if set(patterns) - {"CPUExecutionProvider"}:
        here = discover()
        for name, pattern in list(patterns.items()):
            try:
                here.targets([pattern])
            except TargetError:
                missing.append(name)
                del patterns[name]
    if missing and patterns:
        _warn(f"{', '.join(missing)} has no device here and is left out; {', '.join(patterns)} is used")
    if not patterns:
        raise TargetError(
            f"none of the providers {', '.join(name for name, _ in asked) or '(none given)'} has a device "
            f"here; known are {', '.join(_TARGETS)}: see hal devices, or leave providers out"
        )
    return patterns


def _pair(provider: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(provider, str):
        return provider, {}
    if isinstance(provider, tuple) and len(provider) == 2 and isinstance(provider[1], Mapping):
        return str(provider[0]), provider[1]
    raise InputError(f"{provider!r} is no provider; expected a name, or a pair of name and dict of options")


def _provider_of(target: str) -> str:
    kind = target.partition(":")[0]
    known = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    return known.get(kind, "OpenVINOExecutionProvider")


def _node_arg(spec: TensorSpec) -> NodeArg:
    shape = () if spec.shape == ANY_RANK else spec.shape
    kind = _TYPES.get(spec.dtype, spec.dtype.replace("float8_", "float8"))
    return NodeArg(spec.name, [None if size == "?" else size for size in shape], f"tensor({kind})")


def _warn_of(what: str, options: Any) -> None:
    """Warn of options of ONNX Runtime's that differ from their defaults, none of which has an effect."""
    if options is None:
        return
    if found := list(_changed(options, what)):
        _warn(f"{what} have no effect: {', '.join(found)}; hal measures which settings are best")


def _changed(options: Any, what: str) -> Iterator[str]:
    try:
        default = type(options)()
    except TypeError as error:
        raise InputError(
            problems(f"the {what} are not ONNX Runtime's", [f"{type(options).__name__} was given: {error}"])
        ) from error
    for name in dir(options):
        value = getattr(options, name)
        if not name.startswith("_") and not callable(value) and value != getattr(default, name):
            yield f"{name}={value!r}"


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)


__all__ = ["InferenceSession", "ModelMetadata", "NodeArg"]
