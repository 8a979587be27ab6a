"""Sessions to files and back: a bundle is written whole, and opened where it fits and where it does not."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hal import plugins
from hal.backend import Backend, OptionSpec, Target
from hal.errors import BundleError, PlanError, UserError
from hal.executor.backend import Spot
from hal.executor.executor import Place, end_of
from hal.executor.partitions import pieces_of
from hal.records import files
from hal.records.plan import Plan
from hal.records.profile import PluginInfo
from hal.records.targets import place_name
from hal.session import bundle, sockets
from hal.session.batching import gathered_runner
from hal.session.bundle_blobs import blobs_of, ref_with_blobs, version_of
from hal.session.bundle_contents import (
    Contents,
    PlaceInfo,
    Provenance,
    check_options,
    contents_of,
    graph_of,
    judged,
    members_of,
)
from hal.session.events import OnEvent
from hal.session.faults import told
from hal.session.isolation import Isolate, Isolation
from hal.session.runner import runner_of
from hal.version import __version__
from hal.worker import WorkerBackend

if TYPE_CHECKING:
    from hal.session.session import Session

#: Most bytes of weights in a bundle. Source: protobuf's 2 GiB for a message, less room for nodes and shapes,
#: as in :meth:`hal.graph.model.Graph.to_proto`.
_MOST_WEIGHTS = (2 << 30) - (64 << 20)


def save_session(
    session: Session, path: str | os.PathLike[str], *, blobs: bool = False, force: bool = False
) -> None:
    """Write a session into one file that :func:`load` opens.

    The file has the model with its weights, plan, profile and provenance; docs/bundles.md describes it. It is
    there whole or not at all.

    Args:
        session: Its plan is saved as it is now in force.
        path: The file; by convention it ends in ``.hal``.
        blobs: Also what backends compiled the partitions to, where they can export it. They compile once more
            for that. See :func:`load` for what it takes to use them.
        force: Replace an existing file.

    Raises:
        BundleError: The model is too large for a bundle, or model or plan have what none may hold.
        OutputExists: The file exists and ``force`` is false.
        StorageError: The file cannot be written.
    """
    from hal.profiling import environment  # it comes with all of the profiler
    from hal.profiling.machine import public

    place = Path(path)
    files.check_free(place, force=force)
    graph, plan = session.graph, session.plan
    if graph.weight_bytes > _MOST_WEIGHTS:
        raise BundleError(
            f"model {graph.name!r} has {graph.weight_bytes} bytes of weights; a bundle holds up to "
            f"{_MOST_WEIGHTS}, as ONNX in one piece does: keep the model's own files and compile them"
        )
    here, _ = _places(_backends(plan))
    check_options(plan, _offered(here), f"the plan of {graph.name!r}")
    ends = {end_of(Target.parse(name)) for name in plan.targets}
    installed = plugins.installed()
    provenance = Provenance(
        hal_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model_name=graph.name,
        model_digest=graph.digest,
        environment=environment.describe(installed),
        plugins=tuple(
            PluginInfo(name=plugin.name, distribution=plugin.distribution, version=plugin.version)
            for plugin in installed
        ),
        places={
            end: PlaceInfo(plugin=version_of(one.backend.name, installed), device=public(one.device))
            for end, one in here.items()
            if end in ends
        },
    )
    contents = Contents(graph.to_proto().SerializeToString(), plan, session.profile, provenance)
    # What could not be loaded is not saved either.
    checked = graph_of(contents, f"the session of {graph.name!r}")
    made = blobs_of(checked, pieces_of(plan, graph), here) if blobs and ends <= here.keys() else []
    bundle.write(place, members_of(contents), made, hal_version=__version__, force=force)


def load(
    path: str | os.PathLike[str],
    *,
    blobs: bool = False,
    strict: bool = False,
    deadline_s: float | None = None,
    on_event: OnEvent | None = None,
    isolate: Isolate = False,
    watch: bool = False,
    adaptive: bool = False,
) -> Session:
    """Open a bundle that ``session.save`` wrote.

    Where all targets of its plan are here, they are compiled and nothing is measured or searched. Where the
    versions or devices behind them are others, a warning says so. Where a target is missing, the stored
    profile is planned anew for the targets that are here; a warning and an event ``replanned`` say so.

    A file from anywhere may be opened: it is checked before anything of it is used, nothing of it is
    executed, no other file is read for it, and nothing of it enters the store of profiles. docs/bundles.md
    has the rules.

    Args:
        path: The file.
        blobs: Trust the file: load what backends compiled for it, where backend, versions, device and
            partition are the same here. Such a blob is native code to its runtime; leave this off for files
            of strangers.
        strict: Raise where a target is missing, and where a device is lost later.
        deadline_s: As for ``hal.compile``.
        on_event: As for ``hal.compile``.
        isolate: As for ``hal.compile``; such a backend is not opened in this process at all.
        watch: As for ``hal.compile``.
        adaptive: As for ``hal.compile``.

    Raises:
        BundleError: The file is no bundle, of another version, damaged, or holds what a bundle may not.
        PlanError: A target is missing, and ``strict`` is true or none that the profile knows is here.
        StorageError: The file cannot be read; or the session is to be watched, and cannot.
        PluginError: A backend cannot compile its partition.
    """
    from hal.session.session import Session

    sockets.check(watch)
    what = repr(os.fspath(path))
    opened = bundle.read(path)
    contents = contents_of(opened.members, what)
    graph = graph_of(contents, what)
    plan = contents.plan
    isolation = Isolation(isolate)
    here, reasons = _places(_backends(plan), isolation)
    missing = _missing(plan, here, reasons)
    if missing:
        text = f"{what} was made for targets that are not here: {'; '.join(missing)}"
        if strict:
            raise PlanError(f"{text}; load it without strict to plan again, or install what is missing")
        warnings.warn(f"{text}; it is planned again from its profile, see session.plan", stacklevel=2)
        spots, offered = _everything()
    else:
        if changed := _changed(contents, here):
            text = f"{what} was saved elsewhere: {', '.join(changed)}"
            warnings.warn(f"{text}; its plan is kept: compile anew to measure it here", stacklevel=2)
        spots, offered = {end: Spot(ref=at.ref, device=at.device) for end, at in here.items()}, _offered(here)
    check_options(plan, offered, what)
    profile = judged(contents.profile, offered)
    if blobs:
        spots = _with_blobs(spots, opened, os.path.abspath(path))
    try:
        # Where the plan does not fit, the runner plans again, as it does when a device is lost.
        carry = functools.partial(
            runner_of,
            constraints=plan.constraints,
            deadline_s=deadline_s,
            on_event=on_event,
            isolation=isolation,
        )
        # What is isolated is opened once more, in a process that the session starts again where it ends.
        runner = carry(graph, plan, profile, spots, strict=strict, opened=None if isolate else here)
        gathered = gathered_runner(carry, graph, runner.plan, profile, spots)
    except UserError as error:
        if not missing:
            raise
        raise PlanError(
            f"{text}; it cannot be planned again: {error.message}; take its model out (unzip it, "
            f"{bundle.MODEL}) and compile that"
        ) from error
    finally:
        graph.release()
    return sockets.announced(
        Session(runner, graph, profile, gathered=gathered, adaptive=adaptive), watch=watch
    )


def _backends(plan: Plan) -> list[str]:
    return list(dict.fromkeys(Target.parse(name).backend for name in plan.targets))


def _places(
    backends: Iterable[str], isolation: Isolation | None = None
) -> tuple[dict[str, Place], dict[str, str]]:
    """Every device of some backends that can be used; why others cannot.

    Backends are opened in this process, isolated ones in one of their own, which ends with the place. No
    other plugin is asked: that takes a process and a framework's import each.

    Returns:
        Places by ``DEVICE/BACKEND[-VARIANT]``, and reasons by that or by the backend's name.
    """
    places, reasons = {}, {}
    for name in backends:
        try:
            # Names are looked up among the installed plugins; a bundle cannot name code.
            ref = plugins.reference(name)
            apart = isolation is not None and isolation.may_cover(name)
            backend: Backend = WorkerBackend(ref) if apart else plugins.open_backend(ref)
            devices = backend.discover()
        except Exception as error:  # noqa: BLE001  whatever a plugin raises: its devices are not here
            reasons[name] = told(error)
            continue
        for device in devices:
            end = place_name(device.id, name, device.variant)
            if device.unavailable:
                reasons[end] = device.unavailable
            else:
                places[end] = Place(ref, backend, device)
    return places, reasons


def _missing(plan: Plan, here: Mapping[str, Place], reasons: Mapping[str, str]) -> list[str]:
    """Targets of a plan that are not here, and why."""
    found = []
    for name in plan.targets:
        target = Target.parse(name)
        end = end_of(target)
        place = here.get(end)
        if place is None:
            found.append(f"{name} ({reasons.get(end) or reasons.get(target.backend) or 'no such device'})")
        elif target.configuration.precision not in place.device.precisions:
            found.append(f"{name} ({place.device.name} computes in {', '.join(place.device.precisions)})")
    return found


def _everything() -> tuple[dict[str, Spot], dict[str, Sequence[OptionSpec]]]:
    """Every device of this machine, with its options: each plugin is asked, in a process of its own."""
    from hal.choosing.finalists import spots_of  # it comes with all of the profiler
    from hal.profiling.discovery import discover

    discovery = discover()
    offered: dict[str, Sequence[OptionSpec]] = {
        place_name(one.device.id, one.backend, one.device.variant): one.options for one in discovery.found
    }
    return spots_of(discovery), offered


def _offered(here: Mapping[str, Place]) -> dict[str, Sequence[OptionSpec]]:
    return {end: place.backend.options(place.device) for end, place in here.items()}


def _changed(contents: Contents, here: Mapping[str, Place]) -> list[str]:
    """What is other here than where the bundle was written, in words."""
    found = []
    installed = plugins.installed()
    for end, was in contents.provenance.places.items():
        if end not in here:
            continue
        now = PlaceInfo(plugin=version_of(here[end].backend.name, installed), device=here[end].device)
        if now != was:
            found += [f"{name} of {end} was {a!r} and is {b!r}" for name, a, b in _unlike(was, now)]
    return found


def _unlike(was: PlaceInfo, now: PlaceInfo) -> Iterator[tuple[str, object, object]]:
    from hal.profiling.machine import public  # it comes with all of the profiler

    device = public(now.device)  # as it was saved
    yield from _pairs({"plugin": was.plugin}, {"plugin": now.plugin})
    yield from _pairs({"device": was.device.name}, {"device": device.name})
    yield from _pairs(was.device.properties, device.properties)


def _pairs(was: Mapping[str, object], now: Mapping[str, object]) -> Iterator[tuple[str, object, object]]:
    for name in {**was, **now}:
        if was.get(name) != now.get(name):
            yield name, was.get(name), now.get(name)


def _with_blobs(spots: Mapping[str, Spot], opened: bundle.Opened, path: str) -> dict[str, Spot]:
    """Spots of backends that the bundle has blobs of are opened with them."""
    having = {member.backend for member in opened.manifest.members if member.backend}
    return {
        end: Spot(ref=ref_with_blobs(name, path, opened), device=spot.device)
        if (name := end.split("/")[1].partition("-")[0]) in having
        else spot
        for end, spot in spots.items()
    }


__all__ = ["load", "save_session"]
