"""The conformance suite: what hal relies on, checked on any backend.

It is versioned with the contract: this is the suite of :data:`hal.backend.API_VERSION`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from unittest import SkipTest

import msgspec

from hal.backend import Backend, BackendRef
from hal.testing.suite_abilities import Abilities, Lifetimes
from hal.testing.suite_answers import Answers
from hal.testing.suite_description import Description


# pytest and checks() both go from the last base to the first: description comes first, because what the
# import of a plugin changes can be seen only once.
class BackendConformance(Abilities, Lifetimes, Answers, Description):
    """All checks, one per ``test_`` method; subclass it and set ``ref``.

    The methods need no fixtures. What a backend does not offer is skipped, with the reason. The checks run
    in this process; give :func:`check` a worker's backend to run them in another.
    """


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one check.

    Attributes:
        name: The check, for example ``claimed_support_is_true``.
        outcome: ``passed``, ``failed`` or ``skipped``.
        message: What is wrong or why it was skipped; empty where it passed.
        meaning: What the check asks for, in one sentence.
    """

    name: str
    outcome: str
    message: str = ""
    meaning: str = ""


def checks(suite: type[BackendConformance] = BackendConformance) -> tuple[str, ...]:
    """Names of all checks, in the order in which they run."""
    names: dict[str, None] = {}
    for part in reversed(suite.__mro__):
        names.update((name, None) for name in vars(part) if name.startswith("test_"))
    return tuple(name.removeprefix("test_") for name in names)


def check(
    subject: Backend | BackendRef, progress: Callable[[str], None] | None = None
) -> Sequence[CheckResult]:
    """Run every check without a test runner.

    Args:
        subject: A backend, here or in a worker, or what names one.
        progress: Told each check's name before it runs.

    Returns:
        One result per check; nothing that the backend raises gets out.
    """
    found: dict[str, object] = {"backend": subject} if isinstance(subject, Backend) else {"ref": subject}
    suite = type("Checked", (BackendConformance,), found)
    return list(_results(suite, progress))


def _results(
    suite: type[BackendConformance], progress: Callable[[str], None] | None
) -> Iterator[CheckResult]:
    for name in checks():
        if progress is not None:
            progress(name)
        method = getattr(suite(), f"test_{name}")
        meaning = (method.__doc__ or "").strip()
        outcome, message = "passed", ""
        try:
            method()
        except SkipTest as reason:
            outcome, message = "skipped", str(reason)
        except AssertionError as error:
            outcome, message = "failed", str(error)
        except Exception as error:  # noqa: BLE001 - the boundary to a stranger's code; the reason is kept
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.name}, line {where.lineno}"
            outcome, message = "failed", f"raised {type(error).__name__}: {error} (in {place})"
        yield CheckResult(name=name, outcome=outcome, message=message, meaning=meaning)
