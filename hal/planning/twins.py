"""Targets as they run beside others on their silicon: which is a twin of which.

Apart from what costs are made from, because whoever carries a plan out asks for it too, and must not wait for
all that planning imports.
"""

from __future__ import annotations

import msgspec

from hal.records.targets import Configuration, Target

#: Options that keep runtimes in one process out of each other's way.
SPINNING, THREADS = "spinning", "threads"


def plain(name: str) -> str:
    """A target without what :mod:`hal.choosing` sets where it is to share its silicon with others.

    ``+spinning=false`` and ``+threads=1`` are such: with idle threads that sleep, and with none.
    """
    target = Target.parse(name)
    configuration = target.configuration
    options = {
        option: value
        for option, value in configuration.options
        if not (option == SPINNING and value is False) and not (option == THREADS and value == 1)
    }
    alone = Configuration.of(configuration.precision, options)
    return str(msgspec.structs.replace(target, configuration=alone))


def plain_twin(name: str) -> str | None:
    """For a target that :mod:`hal.choosing` made for mixed plans the one that it was made from; else None."""
    twin = plain(name)
    return None if twin == str(Target.parse(name)) else twin
