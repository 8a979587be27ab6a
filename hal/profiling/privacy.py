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

#: What looks like an absolute path. Names of nodes look alike (``/encoder/layer.0/MatMul``), so POSIX ones
#: are taken only if their first folder exists on this machine or is one that systems have.
_POSIX = re.compile(r"(?:file://)?(?<![\w.])/([^/\s:'\",;()\[\]<>]+)(?:/[^\s:'\",;()\[\]<>]+)+")
_WINDOWS = re.compile(r"\b[A-Za-z]:\\[^\s:'\",;()\[\]<>]+")
_COMMON = {
    "root",
    "user",
    "users",
    "admin",
    "localhost",
    "ubuntu",
    "debian",
    "runner",
    "docker",
    "cpu",
    "gpu",
}
_SYSTEM = {"home", "root", "Users", "tmp", "var", "usr", "opt", "etc", "proc", "dev", "mnt", "srv", "private"}


def scrub(text: str) -> str:
    """The text with known folders replaced by tags and other paths by their last part."""
    for folder, tag in _known_folders():
        text = text.replace(folder, tag)
    text = _POSIX.sub(_last_part, text)
    text = _WINDOWS.sub(lambda found: "<path>/" + found.group().rsplit("\\", 1)[-1], text)
    for name, tag in _known_names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", tag, text)
    return text


def _last_part(found: re.Match[str]) -> str:
    first, whole = found.group(1), found.group()
    if first in _SYSTEM or os.path.isdir(f"/{first}"):
        return "<path>/" + whole.rsplit("/", 1)[-1]
    return whole


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
    # Everyday words tell nothing and stand in ordinary texts.
    return tuple((name, tag) for name, tag in names if len(name) > 2 and name not in _COMMON)
