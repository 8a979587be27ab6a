"""A program with a watched session: run as a process of its own by tests.

It prints ``ready`` once it can be watched, and ends when its stdin does.
"""

from __future__ import annotations

import sys

from hal.session.sockets import announced
from hal.testing import example_inputs, small_graph
from tests.unit.sessions import session


def main() -> None:
    add = announced(session()[0], watch=True)
    for _ in range(3):
        add(*example_inputs(small_graph("add")))
    print("ready", flush=True)
    sys.stdin.read()
    if "--close" in sys.argv:
        add.close()


if __name__ == "__main__":
    main()
