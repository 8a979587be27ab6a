"""Takes host, user and path names out of texts that go into a profile."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import re
import site
import socket
import sys
import tempfile
from pathlib import Path

#: A POSIX path of at least two folders that stands by itself. Names of nodes look alike
#: (``/encoder/layer.0/MatMul``), so only paths below a root that real systems have are taken.
_PATH = re.compile(
    r"(?<![\w./-])/(?:home|root|Users|tmp|var|usr|opt|etc|proc|dev|mnt|srv|work|workspace|build|data)"
    r"(?:/[^\s:'\",;()\[\]]+)+"
)


def scrub(text: str) -> str:
    """The text with known folders replaced by tags and other paths by their last part."""
    for folder, tag in _known_folders():
        text = text.replace(folder, tag)
    text = _PATH.sub(lambda found: f"<path>/{found.group().rsplit('/', 1)[-1]}", text)
    for name, tag in _known_names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", tag, text)
    return text


@functools.cache
def _known_folders() -> tuple[tuple[str, str], ...]:
    folders = dict.fromkeys(site.getsitepackages(), "<packages>")
    folders[str(Path(__file__).resolve().parents[1])] = "<hal>"
    folders[sys.prefix] = "<python>"
    folders[sys.base_prefix] = "<python>"
    folders[tempfile.gettempdir()] = "<temporary>"
    folders["/dev/shm"] = "<memory>"
    folders[os.getcwd()] = "<here>"
    folders[str(Path.home())] = "<home>"
    usable = [(folder, tag) for folder, tag in folders.items() if len(folder) > 1]
    return tuple(sorted(usable, key=lambda pair: -len(pair[0])))


@functools.cache
def _known_names() -> tuple[tuple[str, str], ...]:
    names = [(socket.gethostname(), "<host>")]
    with contextlib.suppress(KeyError, OSError):  # a user id without a name, as in some containers
        names.append((getpass.getuser(), "<user>"))
    # Short or everyday words ("root", "user", "localhost") tell nothing and stand in ordinary texts.
    return tuple((name, tag) for name, tag in names if len(name) > 4 and name not in ("localhost", "ubuntu"))
