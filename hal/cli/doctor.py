"""``hal doctor``."""

from __future__ import annotations

import sys

from hal.cli import options
from hal.cli.output import emit, show
from hal.cli.progress import shown


def doctor(json: options.Json = False) -> int:
    """Check drivers, versions and settings; say what to do.

    Exit code 1 where something is a problem.
    """
    from hal import profiling
    from hal.cli import doctor_text

    with shown() as progress:
        progress.stage("looking at this machine")
        findings = profiling.diagnose(progress=progress)
    if json:
        emit(doctor_text.doctor_json(findings), sys.stdout)
    else:
        show(doctor_text.doctor_text(findings), sys.stdout)
    return 1 if any(finding.severity == "problem" for _, finding in findings) else 0
