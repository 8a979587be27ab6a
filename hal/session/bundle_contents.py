"""What a bundle holds, as records and a graph, checked as something that a stranger wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import onnx
import onnx_ir as ir

from hal.backend import Target
from hal.errors import BundleError, ModelError, TargetError, UserError
from hal.executor.executor import end_of
from hal.graph import interface, reading
from hal.graph.model import Graph
from hal.records.machine import Environment
from hal.records.plan import Plan
from hal.records.profile import PluginInfo, Profile
from hal.records.reading import read_plan, read_profile
from hal.records.targets import Device, OptionSpec
from hal.session import bundle

R = TypeVar("R")

#: Operators that hold compiled code, or name a file that holds it.
#: Source: ONNX Runtime, contrib operator ``com.microsoft.EPContext``.
_NATIVE = frozenset({"EPContext"})


class PlaceInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a partition ran when the bundle was written.

    Attributes:
        plugin: Distribution and version.
        device: As its backend told of it, the runtime's and the driver's versions among its properties.
    """

    plugin: str
    device: Device


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a bundle comes from. Holds no host, user or path name.

    Attributes:
        hal_version: That wrote it.
        created: ISO 8601 in UTC.
        model_name: Of the graph.
        model_digest: Of the graph, as plan and profile name it.
        environment: Of the process that wrote it.
        plugins: That were installed.
        places: Of the plan, by ``DEVICE/BACKEND[-VARIANT]``.
    """

    hal_version: str
    created: str
    model_name: str
    model_digest: str
    environment: Environment
    plugins: tuple[PluginInfo, ...]
    places: dict[str, PlaceInfo]


@dataclass(frozen=True)
class Contents:
    """A bundle's members, blobs apart.

    Attributes:
        model: ONNX, weights inside.
        plan: Of the model.
        profile: Of the model.
        provenance: Of the bundle.
    """

    model: bytes = field(repr=False)
    plan: Plan
    profile: Profile
    provenance: Provenance


class BundledGraph(Graph):
    """A graph that a runtime reads as the bytes it came as, until they are released."""

    def __init__(self, model: ir.Model, *, name: str, digest: str, content: bytes) -> None:
        super().__init__(model, name=name, digest=digest)
        self._content: bytes | None = content

    def serialized(self) -> bytes | Path:
        """See :meth:`hal.graph.model.Graph.serialized`."""
        return super().serialized() if self._content is None else self._content

    def release(self) -> None:
        """Forget the bytes: what is compiled later is written anew from the graph."""
        self._content = None


def members_of(contents: Contents) -> dict[str, bytes]:
    """Contents as the members of a bundle."""
    return {
        bundle.PROVENANCE: msgspec.json.encode(contents.provenance),
        bundle.PLAN: msgspec.json.encode(contents.plan),
        bundle.PROFILE: msgspec.json.encode(contents.profile),
        bundle.MODEL: contents.model,
    }


def contents_of(members: Mapping[str, bytes], what: str) -> Contents:
    """The records of a bundle.

    Args:
        members: By name, as :func:`hal.session.bundle.read` returned them.
        what: Names the bundle in errors.

    Raises:
        BundleError: A member is not what it should be, or they belong to different models.
    """
    provenance = bundle.decode(members[bundle.PROVENANCE], Provenance, f"{bundle.PROVENANCE!r} in {what}")
    plan = _record(read_plan, members[bundle.PLAN], f"{bundle.PLAN!r} in {what}")
    profile = _record(read_profile, members[bundle.PROFILE], f"{bundle.PROFILE!r} in {what}")
    digests = {plan.model.digest, profile.model.digest, provenance.model_digest}
    if len(digests) > 1:
        raise BundleError(
            f"plan, profile and provenance in {what} are of different models, with digests "
            f"{', '.join(sorted(digest[:12] for digest in digests))}; save the session again"
        )
    try:
        for name in (*plan.targets, *(target.target for target in profile.targets)):
            Target.parse(name)
    except TargetError as error:
        raise BundleError(f"{what} names no target: {error.message}; save the session again") from error
    return Contents(members[bundle.MODEL], plan, profile, provenance)


def _record(read: Callable[[bytes, str], R], data: bytes, what: str) -> R:
    try:
        return read(data, what)
    except (UserError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{what} is not what it should be: {error}; get the bundle again from where it came"
        ) from error


def graph_of(contents: Contents, what: str) -> BundledGraph:
    """The model, ready to be compiled.

    It was bound, named and its shapes inferred before it was saved, so that is not done again. What could
    reach out of the bundle is refused: weights in other files, operators that hold native code or name it.

    Args:
        contents: Of the bundle.
        what: Names the bundle in errors.

    Raises:
        BundleError: It is no model, or not the plan's.
    """
    provenance = contents.provenance
    try:
        proto = reading.parse(contents.model, f"{bundle.MODEL!r} in {what}")
        reading.check(proto, None, provenance.model_name)
    except ModelError as error:
        raise BundleError(f"the model in {what} cannot be used: {error.message}") from error
    if reaching := next(_reaching_out(proto), ""):
        raise BundleError(
            f"the model in {what} cannot be used: {reaching}; a bundle holds its model whole: save "
            "the session again"
        )
    try:
        model = ir.serde.deserialize_model(proto)
        graph = BundledGraph(
            model, name=provenance.model_name, digest=provenance.model_digest, content=contents.model
        )
        signature, n_nodes = graph.signature, len(graph.nodes)
        interface.read(model)
    except Exception as error:
        raise BundleError(
            f"the model in {what} cannot be used: {type(error).__name__}: {error}; save the session again"
        ) from error
    told = contents.plan.model
    if (signature.inputs, signature.outputs, n_nodes) != (told.inputs, told.outputs, told.n_nodes):
        raise BundleError(
            f"the model in {what} is not the plan's: it has {n_nodes} nodes, inputs "
            f"{', '.join(map(str, signature.inputs))} and outputs {', '.join(map(str, signature.outputs))}; "
            f"the plan was made for {told.n_nodes} nodes, {', '.join(map(str, told.inputs))} and "
            f"{', '.join(map(str, told.outputs))}: save the session again"
        )
    return graph


def _reaching_out(proto: onnx.ModelProto) -> Iterator[str]:
    """What of a model lies outside of it or is native code, in words."""
    if proto.training_info:
        yield "it has parts for training"
    waiting: list[tuple[Sequence[onnx.NodeProto], Iterable[onnx.TensorProto]]] = [
        (proto.graph.node, _weights(proto.graph)),
        *((function.node, ()) for function in proto.functions),
    ]
    while waiting:
        nodes, tensors = waiting.pop()
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield f"the data of {tensor.name!r} lies in another file"
        for node in nodes:
            if node.op_type in _NATIVE:
                yield f"node {node.name!r} is a {node.op_type}, which holds or names native code"
            for attribute in node.attribute:
                kind = attribute.type
                if kind in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                    waiting += [(g.node, _weights(g)) for g in (attribute.g, *attribute.graphs)]
                elif kind in (onnx.AttributeProto.TENSOR, onnx.AttributeProto.TENSORS):
                    waiting.append(((), (attribute.t, *attribute.tensors)))
                elif kind in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS):
                    sparse = (attribute.sparse_tensor, *attribute.sparse_tensors)
                    waiting.append(((), [t for one in sparse for t in (one.values, one.indices)]))


def _weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    sparse = [tensor for one in graph.sparse_initializer for tensor in (one.values, one.indices)]
    return [*graph.initializer, *sparse]


def check_options(plan: Plan, offered: Mapping[str, Sequence[OptionSpec]], what: str) -> None:
    """Refuse a plan that sets options to free text: it may name a folder that a runtime takes code from.

    Args:
        plan: Its targets are judged.
        offered: Options that backends offer here, by ``DEVICE/BACKEND[-VARIANT]``; others are not judged.
        what: Names the plan in errors.

    Raises:
        BundleError: Names option and target.
    """
    for name in plan.targets:
        target = Target.parse(name)
        specs = offered.get(end_of(target))
        if specs is not None and (option := _free_text(target, specs)):
            raise BundleError(
                f"{what} sets the option {option!r} of {target} to text of its own; a bundle may hold only "
                "numbers, truth values and texts that the backend lists: compile without the option"
            )


def judged(profile: Profile, offered: Mapping[str, Sequence[OptionSpec]]) -> Profile:
    """A profile without the targets that set options to free text, for later plans are made of all it has.

    Args:
        profile: Out of a bundle.
        offered: Options that backends offer here, by ``DEVICE/BACKEND[-VARIANT]``; others may have no text.
    """
    named = [(one, Target.parse(one.target)) for one in profile.targets]
    kept = tuple(one for one, target in named if not _free_text(target, offered.get(end_of(target), ())))
    return msgspec.structs.replace(profile, targets=kept)


def _free_text(target: Target, specs: Sequence[OptionSpec]) -> str:
    """The first option whose text its backend does not list; empty where there is none."""
    known = {spec.name: spec.choices for spec in specs}
    texts = ((name, value) for name, value in target.configuration.options if isinstance(value, str))
    return next((name for name, value in texts if value not in known.get(name, ())), "")


__all__ = [
    "BundledGraph",
    "Contents",
    "PlaceInfo",
    "Provenance",
    "check_options",
    "contents_of",
    "graph_of",
    "judged",
    "members_of",
]
