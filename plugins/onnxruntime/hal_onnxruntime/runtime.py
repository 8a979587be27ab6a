"""Loading the onnxruntime package, and turning what it raises into words for people."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hal.errors import BackendError

_log = logging.getLogger("hal.onnxruntime")

#: What to do about a missing package, in every place that says so.
INSTALL = (
    "install one build of it: hal-onnxruntime[cpu] (the package onnxruntime) or "
    "hal-onnxruntime[gpu] (the package onnxruntime-gpu)"
)

#: First version that tells which provider each node was assigned to
#: (``session.record_ep_graph_assignment_info``).
#: Source: ONNX Runtime C API, Session_GetEpGraphAssignmentInfo, "since version 1.24".
OLDEST = (1, 24)

_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][\w.+~@-]+)+[/\\]([\w.+~@-]+)")
_SOURCE_LINE = re.compile(r"\S+\.(?:cc|h|cpp|hpp|cu):\d+ (?:[^()\[]*\([^()]*\))?(?: const)? ?")
_PREFIX = re.compile(r"^\s*\[ONNXRuntimeError\] : -?\d+ : \w+ : ")
_LOG_HEAD = re.compile(r"(?:\x1b\[[0-9;]*m|^\S+ \S+ \[[VIWEF]:onnxruntime:[^\]]*\] )", re.MULTILINE)


@functools.cache
def onnxruntime() -> Any:
    """The package, imported on first use.

    Raises:
        BackendError: It is not installed, does not load, or is too old.
    """
    try:
        import onnxruntime as package
    except ImportError as error:
        raise BackendError(
            f"the Python package onnxruntime cannot be loaded ({tidy(error)}); {INSTALL}"
        ) from error
    version = tuple(int(part) for part in re.findall(r"\d+", package.__version__)[:2])
    if version < OLDEST:
        raise BackendError(
            f"onnxruntime {package.__version__} is too old: it does not tell where nodes run; "
            f"expected {'.'.join(map(str, OLDEST))} or later; {INSTALL}"
        )
    return package


def tidy(error: object) -> str:
    """The useful line of an error, without codes, source positions and folders.

    Args:
        error: An exception, or text that the runtime wrote to its log.
    """
    text = _LOG_HEAD.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__ if isinstance(error, BaseException) else ""
    line = " ".join(lines)
    # The runtime wraps an inner failure in an outer one: the last part is the cause.
    if "with error: " in line:
        line = line.rsplit("with error: ", 1)[1]
    line = _SOURCE_LINE.sub("", _PREFIX.sub("", line))
    line = _PATH.sub(r"\1", _PREFIX.sub("", line.lstrip()))
    return line.strip().removesuffix(".")


@contextmanager
def native_stderr() -> Iterator[list[str]]:
    """Collect what native code writes to the process's standard error.

    A provider whose library does not load is only told about there. The list is filled when the
    block ends. Other threads' words in that time are collected too, and are kept in the debug log.
    """
    collected: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield collected
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text = file.read().decode(errors="replace")
            collected.extend(line for line in text.splitlines() if line.strip("\x1b[0m "))
            _log.debug("onnxruntime wrote: %s", text)
