"""The errors hal raises: three families, each under the built-in a caller would expect.

* ``UserError``: what was asked for cannot be done; the text says what to change.
* ``PluginError``: a backend or its plugin failed; only its own targets are lost.
* ``InternalError``: hal itself is wrong; please report it.

Every text says what failed with which values, what was expected or available, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class HalError(Exception):
    """Root of everything hal raises on purpose.

    Attributes:
        exit_code: Exit status of the command line when this error ends a command
            (docs/cli.md lists them).
    """

    exit_code: ClassVar[int] = 70

    @property
    def message(self) -> str:
        """The text without the quoting that ``KeyError`` adds in ``str()``."""
        return str(self.args[0]) if self.args else type(self).__name__

    def __str__(self) -> str:
        return self.message


class UserError(HalError):
    """The request cannot be met as it stands."""

    exit_code = 2


class ModelError(UserError, ValueError):
    """The model file or object cannot be used."""


class InputError(UserError, ValueError):
    """Inputs given to a model do not fit its signature."""


class TargetError(UserError, LookupError):
    """A target, device, backend or option is not there."""


class ProfileNotFound(UserError, LookupError):
    """No stored profile has this id, or several do."""


class UnlikeProfiles(UserError, ValueError):
    """Two profiles were measured under unlike conditions."""


class ProblemError(UserError, ValueError):
    """A placement problem's arrays do not fit together."""


class PlanError(UserError, ValueError):
    """A plan does not fit its model or this machine, so it cannot be carried out."""


class BundleError(UserError, ValueError):
    """A file is no bundle, is damaged, or holds what a bundle may not; nothing of it was used."""


class Infeasible(UserError, ValueError):
    """No plan keeps all constraints; the text says which cannot hold and by how much."""


class OutputExists(UserError, FileExistsError):
    """Writing would overwrite a file."""

    def __str__(self) -> str:
        return self.message


class StorageError(HalError, OSError):
    """Reading or writing a file failed (disk full, permission, I/O)."""

    exit_code = 4

    def __str__(self) -> str:
        return self.message


class PluginError(HalError):
    """A plugin failed; the reason is kept and other plugins go on."""

    exit_code = 3


class PluginLoadError(PluginError, ImportError):
    """A plugin could not be found, imported or accepted."""

    def __str__(self) -> str:
        return self.message


class NoBackend(PluginLoadError):
    """A plugin that brings no backend (it may bring an importer) was asked for one."""


class BackendError(PluginError, RuntimeError):
    """A backend raised while discovering, compiling or running."""


class UnsupportedGraph(PluginError, ValueError):
    """A backend refuses a graph; the text names the nodes and the reasons."""


class ContractViolation(PluginError, TypeError):
    """A plugin broke the plugin contract (wrong type, wrong count, wrong version)."""


class WorkerCrashed(PluginError, RuntimeError):
    """The child process of a backend ended without answering."""


class WorkerTimeout(PluginError, TimeoutError):
    """The child process of a backend did not answer before its deadline."""

    def __str__(self) -> str:
        return self.message


class RequestTimeout(PluginError, TimeoutError):
    """A session's request was not answered before its deadline.

    Attributes:
        targets: Those that did not answer; empty where the request waited behind others.
    """

    targets: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.message


class NotEnoughMemory(UserError, MemoryError):
    """Sessions of this process need more of a memory together than it has."""


class UsedAfterFork(UserError, RuntimeError):
    """What belongs to a process is used in one that was forked from it, where its threads are not."""


class InternalError(HalError, RuntimeError):
    """A fault of hal itself."""


def problems(title: str, found: Sequence[str]) -> str:
    """Join several findings into one text, so that a user sees all of them at once.

    Args:
        title: What failed, as a clause without a full stop.
        found: One sentence per problem; at least one.

    Returns:
        ``title: problem`` for one, a bulleted list for several.
    """
    if len(found) == 1:
        return f"{title}: {found[0]}"
    return title + ":\n" + "\n".join(f"  - {problem}" for problem in found)
