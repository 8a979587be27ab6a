"""docs/cli.md names every command, option, exit code and environment variable, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from hal.cli.app import build
from hal.cli.outcome import EXIT_CODES

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "cli.md").read_text()


def commands() -> dict[str, list[str]]:
    """Options by command, as typer holds them; the global ones under an empty name."""
    top = typer.main.get_command(build())
    found = {"": top}
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        found[name] = command
        found.update({f"{name} {sub}": child for sub, child in getattr(command, "commands", {}).items()})
    return {
        name: [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        for name, command in found.items()
    }


def section(command: str) -> str:
    """The text below a command's heading."""
    pattern = rf"^## `hal {command}(?: [A-Z][A-Z. ]*)?`$(.*?)(?=^## )"
    found = re.search(pattern, DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/cli.md has no section for hal {command}"
    return found.group(1)


@pytest.mark.parametrize("command", [name for name in commands() if name])
def test_docs_name_every_option_when_a_command_has_it(command: str) -> None:
    text = section(command)
    rows = "\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("|"))
    documented = set(re.findall(r"--[a-z][a-z-]+", rows))
    assert documented == set(commands()[command]) - {"--help"}


def test_docs_name_every_global_option() -> None:
    head = DOCUMENT.split("## What every command shares")[0]
    assert {"--version", "--traceback", "--help"} == set(re.findall(r"`(--[a-z-]+)`", head))
    assert set(commands()[""]) - {"--help"} == {"--version", "--traceback"}


def test_docs_name_every_exit_code() -> None:
    table = DOCUMENT.split("## Exit codes")[1].split("##")[0]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", table, re.MULTILINE)
    assert {int(code) for code, _ in rows} == set(EXIT_CODES)
    for code, text in rows:
        assert text.startswith(EXIT_CODES[int(code)])
