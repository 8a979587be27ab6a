"""Texts from models and plugins as something that can be shown: what cannot be seen is written as escapes."""

from __future__ import annotations

import unicodedata

#: Unicode categories that are not printed as they are: controls, formats (text direction), surrogates,
#: private use, unassigned, and separators of lines and paragraphs.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: str) -> str:
    r"""Escape what is not plain text, line feeds excepted: an escape character becomes ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character == "\n" or unicodedata.category(character) not in _UNPRINTABLE
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
