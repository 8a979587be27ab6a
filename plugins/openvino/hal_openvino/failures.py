"""OpenVINO's exceptions as one or two readable lines."""

from __future__ import annotations

import re

# Each level of OpenVINO's C++ call chain adds a line that only says where in its sources it was.
_FRAME = re.compile(r"^((Exception|Error) from \S+:\d+:|FrontEnd API failed with \w+:|Summary:|)$")
_CHECK = re.compile(r"Check '.*' failed at \S+:\d+:\s*")
_SOURCE = re.compile(r"\s*\(?\bat? ?src/\S+:\d+:?\)?|\S*src/\S+\.[ch]pp:\d+:?")
_PATH = re.compile(r"(?<![\w.])(?:/|[A-Za-z]:\\)(?:[\w.+@~-]+[/\\])+([\w.+@~-]+)")
_ADVERT = re.compile(r"To facilitate the conversion of unsupported operations.*")
_URL = re.compile(r"https?://\S+")


def summary(error: BaseException | str, *, max_chars: int = 400) -> str:
    """What an OpenVINO exception says, without its source lines, file paths and addresses.

    Args:
        error: The exception, or its text.
        max_chars: Longer texts are cut, with ``...`` at the end.

    Returns:
        One line; the exception's type where nothing else was said.
    """
    kept: list[str] = []
    for line in str(error).splitlines():
        if _FRAME.match(line.strip()):
            continue
        stripped = _ADVERT.sub("", _URL.sub("", _CHECK.sub("", line)))
        stripped = _PATH.sub(r"\1", _SOURCE.sub("", stripped)).strip()
        if stripped and stripped not in kept:
            kept.append(stripped)
    # What follows "While validating ..." is the complaint itself; the dump of the node is not.
    said = [line for line in kept if not line.startswith("While validating node")] or kept
    text = " ".join(said) or (error if isinstance(error, str) else type(error).__name__)
    return text if len(text) <= max_chars else text[: max_chars - 3].rstrip() + "..."


_NAMED = re.compile(r"ONNX node '<Node\((?P<op>[^)]*)\): (?P<name>[^>]*)>'")
_DETAIL = re.compile(r"^-- (?P<op>\S+?)(?:-\d+)? with a message:$", re.MULTILINE)
_MISSING = re.compile(r"No conversion rule found for operations: (?P<ops>.+)")
_FAILED = re.compile(r"Conversion is failed for: (?P<ops>.+)")


class ReadFailure:
    """What OpenVINO's ONNX reader said when it refused a model.

    Attributes:
        by_name: Reason per ONNX node, or output, that it named.
        by_op: Reason per operator that it named without a node; ``Foo`` or ``domain.Foo``.
        summary: Everything in one line.
    """

    def __init__(self, error: BaseException) -> None:
        text = str(error)
        self.by_name: dict[str, str] = {}
        self.by_op: dict[str, str] = {}
        heads = [*_DETAIL.finditer(text)]
        ends = [*(head.start() for head in heads[1:]), _end_of_details(text)]
        for head, end in zip(heads, ends, strict=False):  # no heads: one end too many
            detail = text[head.end() : end]
            reason = _last_line(detail)
            named = _NAMED.search(detail)
            if named:
                self.by_name[named["name"]] = reason
            else:
                self.by_op[head["op"]] = reason
        ops_named = {head["op"] for head in heads}
        for missing in _MISSING.finditer(text):
            for op in _operators(missing["ops"]):
                self.by_op[op] = f"OpenVINO's ONNX reader has no rule for {op}"
        for failed in _FAILED.finditer(text):
            for op in _operators(failed["ops"]):
                if op not in ops_named:
                    self.by_op.setdefault(op, f"OpenVINO's ONNX reader cannot convert {op}")
        self.summary = summary(error)


def _end_of_details(text: str) -> int:
    found = text.rfind("\nSummary:")
    return found if found >= 0 else len(text)


def _operators(listing: str) -> list[str]:
    return [re.sub(r"-\d+$", "", op.strip()) for op in listing.split(",") if op.strip()]


def _last_line(detail: str) -> str:
    # The reader nests its messages; the innermost, and last, says what was wrong.
    lines = [line.strip() for line in detail.strip().splitlines() if line.strip()]
    return summary(lines[-1]) if lines else "it gave no reason"
