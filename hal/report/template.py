"""Templates of pages: escaped by default, and what this package itself wrote as it is."""

from __future__ import annotations

from importlib import resources
from typing import Any


def render(template: str, **values: Any) -> str:
    """Fill in a template of this package; texts are escaped, and a name that is missing is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hal.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def safe(text: str) -> Any:
    """A text that is not to be escaped: only for what this package wrote or escaped itself."""
    import markupsafe

    return markupsafe.Markup(text)


def read(name: str) -> str:
    """A file of this package."""
    return (resources.files("hal.report") / name).read_text("utf-8")
