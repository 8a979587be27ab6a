"""Writes the exact tables again; read the difference before you commit it."""

from tests.golden.renderings import HERE, RENDERINGS

for name, render in RENDERINGS.items():
    (HERE / name).write_text(render())
