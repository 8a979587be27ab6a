"""What PyTorch raised, in the few lines that help and without this machine's paths."""

from __future__ import annotations

import re

#: Compiler messages beyond this say nothing new.
_MAX_LINES = 5
_FOLDER = re.compile(r"(?:[A-Za-z]:\\|/)(?:[^\s/\\:'\"]+[/\\])+")
_NOISE = re.compile(
    r"^\s*(?:$|Traceback|File \"|at |Set TORCH|You can suppress|This is likely|import torch\._dynamo|"
    r"torch\._dynamo\.config|The above exception|from user code|To fix this|Exception raised from|frame #)"
)


def reason(error: BaseException) -> str:
    """One to five lines: a C++ compiler's errors where there are some, else the first line that tells.

    Args:
        error: What was raised; the innermost cause that PyTorch keeps is used.
    """
    inner = getattr(error, "inner_exception", None)
    while inner is not None:
        error, inner = inner, getattr(inner, "inner_exception", None)
    lines = [line.strip() for line in str(error).splitlines() if not _NOISE.match(line)]
    told = [line for line in lines if re.search(r"\berror: \S", line)] or lines[:1]
    text = "\n".join(_FOLDER.sub("", line) for line in told[:_MAX_LINES])
    kind = type(error).__name__
    return f"{kind}: {text}" if text and kind not in text else text or kind
