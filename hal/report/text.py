"""Texts from models and plugins, made safe to look at; escaping for HTML comes on top."""

from __future__ import annotations

from typing import Any

from hal.escapes import printable

#: Most characters of one text: an error of a plugin may be megabytes long. Both ends say most.
_LONGEST = 2000


def visible(text: str) -> str:
    r"""Write characters that cannot be seen, or that turn text around, as escapes; cut out a long middle.

    ``"\x1b"`` becomes the four characters ``\x1b``. Line feeds stay.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 :]}"
    return printable(text)


def all_visible(value: Any) -> Any:
    """The same JSON value with each text in it, keys included, made :func:`visible`."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(name): all_visible(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [all_visible(item) for item in value]
    return value
