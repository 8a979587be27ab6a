"""What README and docs claim: Python blocks run, and every command, hook, error and variable is described."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hal import errors, hookspecs

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "document",
    # runtime.md compiles in every way there is: minutes.
    [pytest.param(d, marks=pytest.mark.slow if d.name == "runtime.md" else ()) for d in DOCUMENTS],
    ids=lambda path: path.name,
)
def test_python_blocks_run_when_taken_in_order(document: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(document.read_text())
    if not blocks:
        return
    script = tmp_path / "blocks.py"
    # Guarded, so that a block may start workers as a program would.
    script.write_text("\n".join(blocks))
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere_when_they_are_local(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not re.match(r"\w+:", link):
            assert (document.parent / link).exists(), link


def test_every_hook_stands_in_the_docs_with_its_signature() -> None:
    text = (ROOT / "docs" / "writing-a-plugin.md").read_text()
    hooks = [value for name, value in vars(hookspecs).items() if name.startswith("hal_")]
    assert len(hooks) >= 2
    for hook in hooks:
        signature = f"def {hook.__name__}{inspect.signature(hook)}".replace("'", "")
        assert signature in text, signature


def test_every_error_stands_in_the_docs() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, errors.HalError):
            assert f"`{name}`" in text, name


def test_every_environment_variable_stands_in_the_docs() -> None:
    sources = [*(ROOT / "hal").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    used = {name for path in sources for name in re.findall(r"\bHAL_[A-Z_]+\b", path.read_text())}
    text = (ROOT / "docs" / "cli.md").read_text()
    assert {"HAL_PLUGINS", "HAL_TRACE", "HAL_HOME"} <= used
    assert set(re.findall(r"`(HAL_[A-Z_]+)`", text)) == used


def test_no_document_names_this_machine() -> None:
    private = {str(Path.home()), str(ROOT), os.uname().nodename}
    for document in DOCUMENTS:
        text = document.read_text()
        for name in private:
            assert len(name) < 5 or name not in text, (document.name, name)
