"""Whose fault it is: partitions that note what fails in them, and which of their calls are under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, ParamSpec, TypeVar

import msgspec

from hal.backend import Backend, DeviceTensors, Executable
from hal.errors import HalError, InputError
from hal.executor.executor import Place
from hal.graph.model import Graph
from hal.planning.twins import plain
from hal.records.targets import Configuration, Device, Signature, Target
from hal.session.around import Around
from hal.session.isolation import IsolatedExecutable
from hal.tensor import Tensor

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")


class Fault(NamedTuple):
    """What went wrong on a target.

    Attributes:
        target: As :func:`hal.planning.twins.plain` writes it: what that leaves out is the same code on the
            same device, and fails alike.
        kind: ``failed``: it raised; ``timeout``: it hangs.
        text: What happened, in a sentence.
    """

    target: str
    kind: Literal["failed", "timeout"]
    text: str


def told(error: BaseException) -> str:
    """An error in a sentence."""
    return error.message if isinstance(error, HalError) else f"{type(error).__name__}: {error}"


class Watch:
    """What goes wrong in the partitions of one plan, and which calls of theirs are under way.

    Args:
        is_timed: Whether calls are timed, which finds those that hang; it costs a quarter of a microsecond
            for each.

    Attributes:
        faults: The first of each target; any thread adds some.
        compiling: The target that is being compiled; empty where none is.
    """

    def __init__(self, *, is_timed: bool) -> None:
        self.is_timed = is_timed
        self.faults: dict[str, Fault] = {}
        self.compiling = ""
        self._timed: list[Timed] = []
        self._stuck: list[tuple[Timed, int, float]] = []

    def blame(self, target: str, error: BaseException) -> None:
        """Note that a target raised."""
        self.faults.setdefault(target, Fault(target, "failed", told(error)))

    def watched(self, target: str, executable: Executable) -> Executable:
        """A partition's executable whose failures are noted."""
        if not self.is_timed:
            return Watched(executable, target, self)
        timed = Timed(executable, target, self)
        self._timed.append(timed)
        return timed

    def hanging(self, since_s: float, deadline_s: float) -> tuple[str, ...]:
        """The targets that do not answer: a call of theirs is under way, and none has ended for so long.

        The processes of isolated ones are killed: their calls come back at once, with an error.

        Args:
            since_s: When that long began, by ``time.monotonic``.
            deadline_s: How long it is, for the text.
        """
        found = []
        for one in self._timed:
            under_way = list(one.under_way.items())
            if under_way and one.ended_s <= since_s:
                if one.isolated is not None and one.isolated.is_starting:
                    continue  # that may take longer than a request, and those after it find it done
                text = f"it did not answer within {deadline_s:g} s"
                self.faults.setdefault(one.target, Fault(one.target, "timeout", text))
                found.append(one.target)
                if one.isolated is not None:
                    one.isolated.stop(text)
                else:
                    thread, began_s = min(under_way, key=lambda item: item[1])
                    self._stuck.append((one, thread, began_s))
        return tuple(dict.fromkeys(found))

    @property
    def starting(self) -> tuple[str, ...]:
        """The targets whose process ended, and that are compiled in another one now."""
        return tuple(
            one.target for one in self._timed if one.isolated is not None and one.isolated.is_starting
        )

    @property
    def stuck(self) -> tuple[str, ...]:
        """The targets that were found hanging and whose call has not come back since."""
        if not self._stuck:
            return ()
        self._stuck = [
            (one, thread, began_s)
            for one, thread, began_s in self._stuck
            if one.under_way.get(thread) == began_s
        ]
        return tuple(dict.fromkeys(one.target for one, _, _ in self._stuck))


class Watched(Executable):
    """A partition's executable that notes what fails in it, tensors that are brought to it included.

    Args:
        executable: The backend's; closed with this object.
        target: For notes.
        watch: Takes them.
    """

    def __init__(self, executable: Executable, target: str, watch: Watch) -> None:
        self.inner, self.target = executable, target
        self._run, self._watch = executable.run, watch

    @property
    def signature(self) -> Signature:
        """The backend's."""
        return self.inner.signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """See :meth:`hal.backend.Executable.run`."""
        return self.guard(self._run, inputs, outputs)

    def guard(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do something on the device. Inputs that do not fit are nobody's failure here."""
        try:
            return work(*args, **kwargs)
        except InputError:
            raise
        except Exception as error:
            self._watch.blame(self.target, error)
            raise

    def close(self) -> None:
        """Close the backend's."""
        self.inner.close()

    def ability(self, kind: type[A]) -> A | None:
        """The backend's; what places tensors is watched too."""
        found = self.inner.ability(kind)
        if isinstance(found, DeviceTensors) and kind is DeviceTensors:
            return _Placing(found, self)  # type: ignore[return-value]  # kind is the protocol that it keeps
        return found


class Timed(Watched):
    """A watched executable that tells which calls are under way.

    Attributes:
        under_way: When the call that a thread makes began, by ``time.monotonic``.
        ended_s: When the last one ended.
        isolated: It in a child process; None where it is in this one.
    """

    def __init__(self, executable: Executable, target: str, watch: Watch) -> None:
        super().__init__(executable, target, watch)
        self.under_way: dict[int, float] = {}
        self.ended_s = float("-inf")
        self.isolated = executable if isinstance(executable, IsolatedExecutable) else None

    def guard(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do something on the device, and be seen doing it."""
        thread = threading.get_ident()
        self.under_way[thread] = time.monotonic()
        try:
            return super().guard(work, *args, **kwargs)
        finally:
            self.under_way.pop(thread, None)
            self.ended_s = time.monotonic()


class _Placing:
    """Places tensors on a device, watched."""

    def __init__(self, tensors: DeviceTensors, watched: Watched) -> None:
        self._place, self._watched = tensors.place, watched

    def place(self, tensor: Tensor) -> Tensor:
        """See :meth:`hal.backend.DeviceTensors.place`."""
        return self._watched.guard(self._place, tensor)


class WatchedBackend(Around):
    """A backend at one place, whose compilations and executables are watched.

    Args:
        end: ``DEVICE/BACKEND[-VARIANT]``.
        backend: The backend.
        watch: Takes the notes.
    """

    def __init__(self, end: str, backend: Backend, watch: Watch) -> None:
        super().__init__(backend)
        self._target = Target.parse(f"{end}/fp32")
        self._watch = watch

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        """See :meth:`hal.backend.Backend.compile`."""
        target = plain(str(msgspec.structs.replace(self._target, configuration=configuration)))
        self._watch.compiling = target
        try:
            made = self._inner.compile(device, graph, configuration)
        except Exception as error:
            self._watch.blame(target, error)
            raise
        self._watch.compiling = ""
        return self._watch.watched(target, made)


def watched_place(end: str, place: Place, watch: Watch) -> Place:
    """A place whose backend is watched."""
    return Place(place.ref, WatchedBackend(end, place.backend, watch), place.device)


__all__ = ["Fault", "Timed", "Watch", "Watched", "WatchedBackend", "told", "watched_place"]
