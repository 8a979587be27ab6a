"""A machine whose ceilings and links are in the store, so that no test waits for them to be measured."""

from __future__ import annotations

import hal
from hal import plugins
from hal.profiling import environment
from hal.profiling.store import Store
from hal.records.machine import MACHINE_SCHEMA_VERSION, MachineProfile


def know_the_machine() -> None:
    """Ceilings and links are in the store, without figures: measuring them takes real time."""
    here = environment.describe(plugins.installed())
    machine = MachineProfile(
        schema_version=MACHINE_SCHEMA_VERSION,
        hal_version=hal.__version__,
        created="2026-01-01T00:00:00+00:00",
        environment=here,
        devices=(),
        ceilings=(),
        links=(),
    )
    with Store.open() as store:
        store.put_machine(machine)
