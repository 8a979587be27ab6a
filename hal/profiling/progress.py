"""How long work says what it is doing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of stages and steps; must return quickly."""

    def stage(self, text: str) -> None:
        """What happens now, as a clause: ``compiling cpu:0/openvino/bf16``."""
        ...

    def advance(self, n_done: int, n_total: int) -> None:
        """Steps done of the present stage."""
        ...


class Silent:
    """Tells nobody."""

    def stage(self, text: str) -> None:
        """Does nothing."""

    def advance(self, n_done: int, n_total: int) -> None:
        """Does nothing."""
