"""What a test knows about a real model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class RealModel:
    """A trained model that a package ships or that is exported from one.

    Attributes:
        name: Key in MODELS.
        shapes: The size of each input, by input name: what to bind free dimensions to.
        notes: Operator set, control flow, and whatever surprises.
        packages: Import names that must be there; they are looked for, not imported.
        locate: Gives the ONNX file, exporting it first where it is not cached.
        example: Gives inputs of these shapes with real content, the same each time.
        torch_module: Gives the torch.nn.Module in evaluation mode and example arguments with a batch of two,
            None for a model that comes as ONNX.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    notes: str
    packages: tuple[str, ...]
    locate: Callable[[], Path] = field(repr=False)
    example: Callable[[], dict[str, Array]] = field(repr=False)
    torch_module: Callable[[], tuple[Any, tuple[Any, ...]]] | None = field(default=None, repr=False)

    def missing(self) -> str | None:
        """Why the model cannot be had here, None when it can."""
        absent = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if not absent:
            return None
        return f"{self.name} needs {', '.join(absent)}: see requirements-models.txt and requirements-test.txt"

    def require(self) -> RealModel:
        """The model itself; the calling test is skipped with the reason when the model cannot be had."""
        reason = self.missing()
        if reason is not None:
            pytest.skip(reason)
        return self

    def path(self) -> Path:
        """The ONNX file; weights may lie beside it."""
        return self.locate()

    def inputs(self) -> dict[str, Array]:
        """Real inputs of the sizes in `shapes`, new arrays each time."""
        made = {name: np.array(value, order="C") for name, value in self.example().items()}
        sizes = {name: value.shape for name, value in made.items()}
        if sizes != dict(self.shapes):
            raise AssertionError(f"{self.name}: inputs have shapes {sizes}, {dict(self.shapes)} was promised")
        return made

    def module(self) -> tuple[Any, tuple[Any, ...]]:
        """The torch.nn.Module and example arguments, for tests of importers."""
        if self.torch_module is None:
            raise LookupError(f"{self.name} comes as ONNX and has no torch module")
        return self.torch_module()


def package_file(package: str, *parts: str) -> Path:
    """A file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{package} is not installed: see requirements-models.txt and requirements-test.txt", name=package
        )
    return Path(spec.origin).parent.joinpath(*parts)
