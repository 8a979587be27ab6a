"""Machine profiles written by hand, with figures that are easy to add up."""

from __future__ import annotations

from hal.records.machine import Ceiling, Environment, Handoff, Link, MachineProfile
from hal.records.targets import Device, OptionValue

LAUNCH_NS, CALL_NS = 100, 1_000
#: 10 us and 1 GB/s: 1 ns a byte.
LATENCY_NS = 10_000


def machine(
    n_gpus: int = 1, *, gpu_bytes: int | None = None, host_links: bool = True, cpu_speed: float = 1.0
) -> MachineProfile:
    """GPUs of 1 operation and 1 byte a ns, and a processor; every GPU is linked with the host alone."""
    names = [*(f"cuda:{number}" for number in range(n_gpus)), "cpu:0"]
    ends = [f"{name}/emulator" for name in names[:-1]] if host_links else []
    return MachineProfile(
        schema_version=1,
        hal_version="0",
        created="2026-01-01T00:00:00+00:00",
        environment=Environment(
            system="imagined",
            machine="x86_64",
            cpu="CPU",
            cpu_features=(),
            n_cpus=4,
            n_usable_cpus=4,
            memory_bytes=1 << 30,
            python="",
            packages={},
            settings={},
        ),
        devices=tuple(device(name, gpu_bytes if name != "cpu:0" else 1 << 30) for name in names),
        ceilings=tuple(ceiling(name, cpu_speed if name == "cpu:0" else 1.0) for name in names),
        links=tuple(link(*pair) for end in ends for pair in ((end, "host"), ("host", end))),
        notes=("written by hand",),
    )


def device(name: str, memory_bytes: int | None = None, **properties: OptionValue) -> Device:
    """A device of its own silicon; a processor's memory is the host's."""
    is_cpu = name.startswith("cpu")
    return Device(
        id=name,
        name=name,
        kind="cpu" if is_cpu else "gpu",
        silicon=name,
        memory_pool="host" if is_cpu else name,
        memory_bytes=memory_bytes,
        properties=properties or {"launch_ns": LAUNCH_NS, "call_ns": CALL_NS},
    )


def ceiling(name: str, speed: float = 1.0, precision: str = "fp32") -> Ceiling:
    """1 operation and 1 byte a ns, times a speed."""
    target = f"{name}/emulator/{precision}"
    return Ceiling(
        device=name,
        precision=precision,
        flops_per_s=1e9 * speed,
        bytes_per_s=1e9 * speed,
        compute_target=target,
        copy_target=target,
    )


def link(source: str, destination: str, latency_ns: int = LATENCY_NS) -> Link:
    """A latency and 1 ns a byte."""
    sizes = (0, 1 << 20)
    return Link(
        source=source,
        destination=destination,
        same_silicon=False,
        points=tuple(
            Handoff(n_bytes=n, median_ns=latency_ns + n, p10_ns=latency_ns + n, p90_ns=latency_ns + n, n=0)
            for n in sizes
        ),
    )
