"""Writes docs/operators.md again: python -m scripts.write_operators, when a translation has changed.

The table is made from the run of the onnx package's node tests through the bridge, as
tests/contract/test_bridge_ops.py does it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import onnx

from hal_torch.bridge import TABLE
from tests.contract.test_bridge_ops import Verdict, cases, is_standard, verdicts

PLACE = Path(__file__).parents[1] / "docs" / "operators.md"

_HEAD = """# ONNX operators on PyTorch

What `cpu` and `cuda` translate. Made by `python -m scripts.write_operators` from the node tests of onnx
{version} (the functions written out included), compared with the answers of the onnx package; do not edit.
`tests/contract/test_bridge_ops.py` runs the same and fails when an answer is wrong or fewer pass.
`tests/contract/test_bridge_versions.py` does it for every version of every operator from operator set 7 on,
`tests/contract/test_bridge_contrib.py` compares the operators of com.microsoft with ONNX Runtime.

Of {n_cases} node tests in the standard domain {n_passed} pass ({percent:.1f} %), {n_refused} are refused
with a reason, {n_wrong} are answered wrongly. Of {n_others} in other domains {n_others_passed} pass.

hal takes and gives tensors: a sequence or an optional value that is an input or an output of the whole model
is refused by hal itself, inside of a model they are translated. Types that PyTorch lacks (INT4, UINT4, INT2,
UINT2, FLOAT4E2M1, FLOAT6) are carried by value in a wider type: they can be moved, cast, quantized and
dequantized.

"""


def text() -> str:
    """The page."""
    found = [(is_standard(case), verdict) for op in cases() for case, verdict in _judged(op)]
    standard = Counter(verdict.kind for is_ours, verdict in found if is_ours)
    others = Counter(verdict.kind for is_ours, verdict in found if not is_ours)
    head = _HEAD.format(
        version=".".join(onnx.__version__.split(".")[:2]),
        n_cases=standard.total(),
        n_passed=standard["passed"],
        percent=100 * standard["passed"] / standard.total(),
        n_refused=standard["refused"],
        n_wrong=standard["wrong"],
        n_others=others.total(),
        n_others_passed=others["passed"],
    )
    return head + _translated() + "\n" + _refused()


def _judged(op: str) -> list[tuple[Any, Verdict]]:
    return list(zip(cases()[op], verdicts(op), strict=True))


def _translated() -> str:
    rows = [
        "## Translated",
        "",
        "| operator | from operator set | node tests passed | refused |",
        "|---|---|---|---|",
    ]
    for domain, name in sorted(TABLE):
        kinds = Counter(verdict.kind for verdict in verdicts(name)) if domain == "" else Counter()
        since = ", ".join(str(version) for version, _ in reversed(TABLE[domain, name]))
        title = f"{domain}::{name}" if domain else name
        rows.append(f"| {title} | {since} | {kinds['passed'] or '-'} | {kinds['refused'] or '-'} |")
    return "\n".join(rows) + "\n"


def _refused() -> str:
    reasons: dict[str, list[str]] = defaultdict(list)
    for op in sorted(cases()):
        for verdict in verdicts(op):
            if verdict.kind == "refused":
                reasons[_reason(verdict.why)].append(verdict.name)
    rows = ["## Refused", "", "| reason | node tests |", "|---|---|"]
    rows += [f"| {reason} | {len(names)} |" for reason, names in sorted(reasons.items())]
    return "\n".join(rows) + "\n"


def _reason(why: str) -> str:
    """The reason alone, without the node's name: two nodes with the same one share a row."""
    line = next(part for part in why.splitlines() if "node '" in part)
    return line.split("): ", 1)[1].replace("|", "\\|")


if __name__ == "__main__":
    PLACE.write_text(text())
    print(f"wrote {PLACE.name}")
