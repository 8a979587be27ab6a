"""What both PyTorch backends answer before they compile: supported nodes, legal configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hal.backend import Configuration, Device, OptionSpec, Support
from hal.errors import BackendError, TargetError, problems
from hal.graph.model import Graph

#: How the module is run; the same on every device.
MODE = OptionSpec(
    name="mode",
    kind="str",
    default="eager",
    choices=("eager", "compiled"),
    help="Node by node as PyTorch does by default, or compiled by torch.compile (Inductor).",
)


def capability(device: Device, graph: Graph, precision: str) -> dict[str, Support]:
    """For each node, whether the bridge translates it and the device has the precision."""
    if precision not in device.precisions:
        reason = (
            f"{device.id} ({device.name}) does not compute in {precision} by itself; "
            f"expected one of {', '.join(device.precisions)}"
        )
        return {name: Support(False, reason) for name in graph.nodes}
    from hal_torch import edges
    from hal_torch.bridge import refusals
    from hal_torch.environment import environment_kept

    with environment_kept():
        refused = edges.refusals(graph, device.kind == "cpu") | refusals(graph.model)
    return {name: Support(False, refused[name]) if name in refused else Support(True) for name in graph.nodes}


def check(backend: str, device: Device, specs: Sequence[OptionSpec], configuration: Configuration) -> None:
    """Refuse a configuration that ``compile`` could not keep.

    Raises:
        BackendError: The device cannot be used.
        TargetError: The precision is not the device's, or an option is unknown or not legal; all
            problems are named at once.
    """
    if device.unavailable:
        raise BackendError(f"{device.id} cannot be used: {device.unavailable}")
    found = []
    if configuration.precision not in device.precisions:
        found.append(
            f"precision {configuration.precision} on {device.name}; "
            f"expected one of {', '.join(device.precisions)}"
        )
    known: Mapping[str, OptionSpec] = {spec.name: spec for spec in specs}
    for name, value in configuration.options:
        spec = known.get(name)
        if spec is None:
            found.append(f"option {name!r} is unknown; expected one of {', '.join(known)}")
        elif type(value).__name__ != spec.kind or (spec.choices and value not in spec.choices):
            legal = ", ".join(map(str, spec.choices)) or f"any {spec.kind}"
            found.append(f"option {name!r} cannot be {value!r}; expected {legal}")
        elif spec.kind == "int" and int(value) < 1:
            found.append(f"option {name!r} cannot be {value!r}; expected 1 or more")
    if found:
        raise TargetError(problems(f"{backend} cannot compile for {device.id}", found))
