"""The report: one HTML file that needs nothing else and asks the network for nothing."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
from typing import Any

from hal.records.profile import Profile
from hal.report.data import payload
from hal.report.overview import overview
from hal.report.template import read, render, safe

#: In the order in which they are joined; later ones use what earlier ones define.
_SCRIPTS = ("format.js", "grid.js", "inspector.js", "charts.js", "kernels.js", "units.js", "page.js")


def html(profile: Profile) -> str:
    """The profile as one self-contained page, about 2 MB, most of it the plotting library.

    Nothing of the page is loaded from elsewhere: a content security policy forbids it, and allows only the
    two scripts in it, by digest, so that no name from a model could run as one.
    """
    script = "(() => {\n'use strict';\n" + "".join(map(read, _SCRIPTS)) + "})();\n"
    plotly, plotly_digest = _plotly()
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}' '{plotly_digest}'; "
        # Plotly sets style attributes, which no digest can allow; styles load nothing under this policy.
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return render(
        "report.html",
        view=overview(profile),
        policy=policy,
        style=safe(read("report.css")),
        script=safe(script),
        data=safe(embedded(payload(profile))),
        plotly=safe(plotly),
    )


def embedded(value: Any) -> str:
    """JSON that can stand inside a script element: no ``<``, and no line separators of JavaScript."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@functools.cache
def _plotly() -> tuple[str, str]:
    """The plotting library, packed to a third of its size, and the digest of the unpacked script."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    packed = gzip.compress(script.encode(), 9, mtime=0)
    return base64.b64encode(packed).decode(), _digest(script)


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
