"""Options of a target, and the OpenVINO properties they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hal.backend import Configuration, Device, OptionSpec
from hal.errors import TargetError, problems
from hal.host import n_usable_cpus

#: OpenVINO's element type for each of hal's precisions.
ELEMENT_TYPES: Mapping[str, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

HINTS = ("latency", "throughput")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration with every value filled in.

    Attributes:
        precision: One of hal's precisions.
        hint: ``latency`` or ``throughput``.
        streams: Parallel inference streams; 0 leaves the number to the hint.
        threads: CPU threads over all streams.
        cache_dir: Folder of OpenVINO's cache of compiled models; empty for none.
    """

    precision: str
    hint: str
    streams: int
    threads: int
    cache_dir: str


def specs(device: Device) -> tuple[OptionSpec, ...]:
    """The options of a device; ``threads`` is the CPU's alone."""
    threads = OptionSpec(
        name="threads",
        kind="int",
        default=n_usable_cpus(),
        help="CPU threads over all streams; by default the cores this process may use.",
    )
    found = (
        OptionSpec(
            name="cache_dir",
            kind="str",
            default="",
            help="Existing folder in which OpenVINO keeps compiled models; empty keeps none.",
        ),
        OptionSpec(
            name="hint",
            kind="str",
            default="latency",
            choices=HINTS,
            help="What OpenVINO tunes for: the time of one request, or many requests at once.",
        ),
        OptionSpec(
            name="streams",
            kind="int",
            default=0,
            help="Requests that run in parallel; 0 is one for latency, OpenVINO's choice for throughput.",
        ),
    )
    return (*found, threads) if device.kind == "cpu" else found


def read(device: Device, configuration: Configuration) -> Settings:
    """Check a configuration against a device.

    Raises:
        TargetError: The precision or an option is not to be had there; all problems are named.
    """
    known = {spec.name: spec for spec in specs(device)}
    found: list[str] = []
    if configuration.precision not in device.precisions:
        found.append(
            f"precision {configuration.precision!r} is not computed by {device.id} ({device.name}) itself; "
            f"available: {', '.join(device.precisions)}"
        )
    values: dict[str, Any] = {name: spec.default for name, spec in known.items()}
    for name, value in configuration.options:
        if name not in known:
            found.append(f"option {name!r} is unknown; available: {', '.join(sorted(known))}")
            continue
        problem = _problem(known[name], value)
        if problem:
            found.append(problem)
        values[name] = value
    if found:
        raise TargetError(problems(f"openvino cannot use this configuration on {device.id}", found))
    return Settings(
        precision=configuration.precision,
        hint=values["hint"],
        streams=values["streams"],
        threads=values.get("threads", 0),
        cache_dir=values["cache_dir"],
    )


def properties(
    device: Device, settings: Settings, supported: Sequence[str], *, profiling: bool = False
) -> dict[str, Any]:
    """Compile-time properties, with everything pinned that could lower precision.

    Args:
        device: Where it runs.
        settings: What was asked for.
        supported: Properties that the device's plugin knows; others are left out.
        profiling: Whether to time kernels. One stream then does all the work, because counters are
            kept per stream.

    Source: OpenVINO's CPU plugin computes in bf16 where ``INFERENCE_PRECISION_HINT`` is not set and the
    processor has AVX512_BF16 or AMX; sets ``DYNAMIC_QUANTIZATION_GROUP_SIZE`` to 32 (int8 activations
    under compressed weights) and the key and value caches to 8 bits (its ``config.cpp``; header
    ``openvino/runtime/properties.hpp``). ``EXECUTION_MODE_HINT=ACCURACY`` switches off what is left, and
    on ARM the fast-math mode of its kernels. ``CPU_DENORMALS_OPTIMIZATION`` would flush denormals to
    zero, which IEEE arithmetic does not. ``CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE=1`` keeps weights as
    they are. ``ACTIVATIONS_SCALE_FACTOR`` (GPU) scales fp16 activations.
    """
    n_streams = settings.streams or (1 if settings.hint == "latency" else 0)
    element = ELEMENT_TYPES[settings.precision]
    wanted: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": element,
        "EXECUTION_MODE_HINT": "ACCURACY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "KV_CACHE_PRECISION": element,
        "KEY_CACHE_PRECISION": element,
        "VALUE_CACHE_PRECISION": element,
        "CPU_DENORMALS_OPTIMIZATION": False,
        "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 1.0,
        "PERFORMANCE_HINT": settings.hint.upper(),
        "PERF_COUNT": profiling,
    }
    if settings.precision == "fp32":
        wanted["ACTIVATIONS_SCALE_FACTOR"] = 0.0
    if n_streams:
        wanted["NUM_STREAMS"] = n_streams
    if device.kind == "cpu":
        wanted["INFERENCE_NUM_THREADS"] = settings.threads
        # hal counts cores that the process may use; without this, the latency hint would use one
        # thread per physical core and leave the asked-for number unmet on siblings.
        wanted["ENABLE_HYPER_THREADING"] = True
        # Pinned threads of two processes on the same cores wait for each other, and hal keeps several
        # backends' processes alive to measure them in turn; the scheduler places them better.
        wanted["ENABLE_CPU_PINNING"] = False
    known = set(supported)
    chosen = {name: value for name, value in wanted.items() if name in known}
    if settings.cache_dir and not profiling:
        chosen["CACHE_DIR"] = settings.cache_dir
    return chosen


def per_stream(settings: Settings, n_streams: int) -> Settings:
    """One stream of several, alone: what instrumented runs use."""
    threads = max(1, settings.threads // max(1, n_streams)) if settings.threads else 0
    return msgspec.structs.replace(settings, streams=1, threads=threads)


def _problem(spec: OptionSpec, value: Any) -> str:
    expected = {"int": int, "str": str, "bool": bool}[spec.kind]
    right = isinstance(value, expected) and (spec.kind == "bool" or not isinstance(value, bool))
    if spec.choices and value not in spec.choices:
        return f"{spec.name}={value!r} is unknown; available: {', '.join(map(str, spec.choices))}"
    if not right:
        return f"{spec.name}={value!r} is of the wrong type; expected {spec.kind}"
    smallest = {"threads": 1, "streams": 0}.get(spec.name)
    if smallest is not None and value < smallest:
        return f"{spec.name}={value!r} is too small; expected {smallest} or more"
    if spec.name == "cache_dir" and value and not Path(value).is_dir():
        return "cache_dir is not an existing folder; expected one, or nothing for no cache"
    return ""
