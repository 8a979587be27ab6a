"""The whole hook surface. Entry-point group: ``hal.plugins``; see docs/writing-a-plugin.md."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import pluggy

from hal.backend import Backend

#: Entry-point group in which distributions name their plugin module.
GROUP = "hal.plugins"

hookspec = pluggy.HookspecMarker("hal")
#: Marks the functions of a plugin module that answer the hooks below.
hookimpl = pluggy.HookimplMarker("hal")


class Importer(Protocol):
    """Turns a framework's model into an ONNX file."""

    def accepts(self, source: Any) -> bool:
        """Whether ``source`` (an object or a path) is this importer's; cheap, never raises."""
        ...

    def to_onnx(
        self,
        source: Any,
        inputs: Any,
        path: Path,
        free: Mapping[str, Collection[int]] | None = None,
    ) -> dict[str, Any]:
        """Write an ONNX file and return example inputs as numpy arrays by the names in the file.

        Args:
            source: What ``accepts`` said yes to.
            inputs: Example inputs as the framework takes them: a tensor, a tuple of positional
                ones, or a dict of keyword ones.
            path: File to write; its folder exists and is empty.
            free: Dimensions to leave free, by the name of the input and their positions; all others have the
                sizes of the example. Given only where the user wants ranges of sizes: an importer that cannot
                do it may leave this parameter out.

        Raises:
            ModelError: The model cannot be exported; the text says why and what to do.
        """
        ...


@hookspec(firstresult=True)
def hal_backend() -> Backend:  # type: ignore[empty-body]
    """The plugin's backend. Called once, in the process that will use it."""


@hookspec(firstresult=True)
def hal_importer() -> Importer:  # type: ignore[empty-body]
    """The plugin's importer of a framework's models, if it has one."""
