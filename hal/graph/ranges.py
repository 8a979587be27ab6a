"""Ranges of sizes: what the free dimensions of a model's inputs may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hal.errors import InputError, problems
from hal.records.targets import TensorSpec

#: A size, or the lowest and the highest one that may come, both included.
Size = int | tuple[int, int]
#: Shapes of inputs by name.
Shapes = Mapping[str, Sequence[Size]]


@dataclass(frozen=True)
class Ranges:
    """Which shapes a model's inputs may have.

    Attributes:
        shapes: Of each input by position; a dimension with a range has a name, equal sizes the same one.
        limits: The lowest and the highest size of each such dimension, by its name.
    """

    shapes: tuple[tuple[int | str, ...], ...]
    limits: Mapping[str, tuple[int, int]]

    def hold(self, shapes: Sequence[Sequence[int]]) -> bool:
        """Whether inputs of these shapes, by position, are within the ranges."""
        sizes: dict[str, int] = {}
        for wanted, given in zip(self.shapes, shapes, strict=True):
            if len(wanted) != len(given):
                return False
            for want, size in zip(wanted, given, strict=True):
                if want == size:
                    continue
                if want.__class__ is int or sizes.setdefault(want, size) != size:  # type: ignore[arg-type]
                    return False
        limits = self.limits
        for name, size in sizes.items():
            low, high = limits[name]
            if not low <= size <= high:
                return False
        return True

    def shown(self, position: int) -> str:
        """The shape of an input with its ranges: ``batch=1..8, 3``."""
        return ", ".join(
            f"{size}={self.limits[size][0]}..{self.limits[size][1]}" if isinstance(size, str) else str(size)
            for size in self.shapes[position]
        )


def has_ranges(shapes: Shapes | None) -> bool:
    """Whether there is a range among the sizes."""
    return any(not isinstance(size, int) for shape in (shapes or {}).values() for size in shape)


def largest(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes with the upper end in place of each range.

    Raises:
        InputError: Something is neither a size nor a range of sizes; all are named.
    """
    found = [
        f"input {name!r} has {size!r} at position {at}; expected a size, or a pair of the lowest and the "
        "highest, such as (1, 8)"
        for name, shape in shapes.items()
        for at, size in enumerate(shape)
        if not _is_size(size)
    ]
    if found:
        raise InputError(problems("the shapes cannot be used", found))
    return {
        name: tuple(int(size[1]) if isinstance(size, tuple | list) else int(size) for size in shape)
        for name, shape in shapes.items()
    }


def named(
    specs: Sequence[TensorSpec], shapes: Shapes, others: Mapping[str, Sequence[int | str]] | None = None
) -> Ranges:
    """The ranges of a model's inputs.

    Args:
        specs: Of the inputs, free dimensions among them.
        shapes: Shapes that fit them. An input that is left out takes the sizes of named dimensions that it
            shares with others.
        others: Whole shapes of inputs, for sizes that are not known by that.

    Raises:
        InputError: A dimension of one name has two ranges, or a range for one input and a size for another;
            or one is fixed by the model. All are named.
    """
    sizes: dict[str, Size] = {}
    made: dict[str, list[int | str]] = {}
    found: list[str] = []
    for spec in specs:
        shape = shapes.get(spec.name, ())
        known = spec.shape if len(spec.shape) == len(shape) else ("?",) * len(shape)
        made[spec.name] = []
        for at, (name, size) in enumerate(zip(known, shape, strict=True)):
            size = _narrowed(size)
            if isinstance(name, int) and not isinstance(size, int):
                found.append(f"{spec} is fixed to {name} where {_shown(size)} is given; expected {name}")
                continue
            own = name if isinstance(name, str) and name != "?" else f"{spec.name}_{at}"
            if sizes.setdefault(own, size) != size:
                found.append(
                    f"dimension {own!r} is {_shown(sizes[own])} for one input and {_shown(size)} for "
                    f"{spec.name!r}; expected the same"
                )
            made[spec.name].append(size if isinstance(size, int) else own)
    if found:
        raise InputError(problems("the ranges do not fit the inputs", found))
    for spec in specs:
        if spec.name not in shapes:
            whole = (others or {}).get(spec.name, spec.shape)
            if len(whole) != len(spec.shape):  # nothing was known of it
                made[spec.name] = list(whole)
                continue
            made[spec.name] = [
                size if isinstance(size, int) else _shared(size, sizes.get(size), other)
                for size, other in zip(spec.shape, whole, strict=True)
            ]
    limits = {name: size for name, size in sizes.items() if not isinstance(size, int)}
    return Ranges(tuple(tuple(made[spec.name]) for spec in specs), limits)


def _shared(name: str, known: Size | None, other: int | str) -> int | str:
    """A dimension of an input that nothing was said of."""
    if known is None:
        return other
    return known if isinstance(known, int) else name


def _is_size(size: object) -> bool:
    if isinstance(size, tuple | list):
        return len(size) == 2 and all(map(_is_number, size)) and 0 <= size[0] <= size[1]
    return _is_number(size)


def _is_number(size: object) -> bool:
    return hasattr(size, "__index__") and not isinstance(size, bool)


def _narrowed(size: Size) -> Size:
    """A range of one size is that size."""
    if isinstance(size, tuple | list):
        low, high = int(size[0]), int(size[1])
        return low if low == high else (low, high)
    return int(size)


def _shown(size: Size) -> str:
    return str(size) if isinstance(size, int) else f"{size[0]}..{size[1]}"


__all__ = ["Ranges", "Shapes", "Size", "has_ranges", "largest", "named"]
