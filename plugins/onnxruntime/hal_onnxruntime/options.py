"""The options of ``compile`` and what they mean to a session."""

from __future__ import annotations

from typing import Any

import msgspec

from hal.backend import Configuration, OptionSpec, OptionValue
from hal.errors import TargetError, problems
from hal.host import n_usable_cpus
from hal_onnxruntime.runtime import onnxruntime

_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


class SessionChoices(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a configuration, checked, with defaults filled in."""

    threads: int
    inter_threads: int
    optimization: str
    spinning: bool


def option_specs() -> tuple[OptionSpec, ...]:
    """The options, the same for every provider."""
    return (
        OptionSpec(
            name="threads",
            kind="int",
            default=n_usable_cpus(),
            help="Threads inside one operator.",
        ),
        OptionSpec(
            name="inter_threads",
            kind="int",
            default=1,
            help="Operators that may run at once; above 1 turns parallel execution on.",
        ),
        OptionSpec(
            name="optimization",
            kind="str",
            default="all",
            choices=tuple(_LEVELS),
            help="ONNX Runtime's graph optimization level.",
        ),
        OptionSpec(
            name="spinning",
            kind="bool",
            default=True,
            help="Idle threads spin: faster alone, but they take time from other backends' threads.",
        ),
    )


def choices_of(configuration: Configuration) -> SessionChoices:
    """Check a configuration's options.

    Raises:
        TargetError: An option is unknown or its value is not legal; all problems are named.
    """
    specs = {spec.name: spec for spec in option_specs()}
    values: dict[str, OptionValue] = {name: spec.default for name, spec in specs.items()}
    found = []
    for name, value in configuration.options:
        if name not in specs:
            found.append(f"option {name!r} is unknown; available: {', '.join(specs)}")
        elif problem := _problem(specs[name], value):
            found.append(f"option {name!r} cannot be {value!r}; expected {problem}")
        else:
            values[name] = value
    if found:
        raise TargetError(problems("options do not fit backend 'onnxruntime'", found))
    return msgspec.convert(values, SessionChoices)


def session_options(choices: SessionChoices) -> Any:
    """A fresh ``SessionOptions``; what decides speed or precision is always set."""
    package = onnxruntime()
    options = package.SessionOptions()
    # Failures arrive as exceptions; printing them as well would only disturb a terminal.
    options.log_severity_level = 4
    options.intra_op_num_threads = choices.threads
    options.inter_op_num_threads = choices.inter_threads
    parallel = choices.inter_threads > 1
    modes = package.ExecutionMode
    options.execution_mode = modes.ORT_PARALLEL if parallel else modes.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(package.GraphOptimizationLevel, _LEVELS[choices.optimization])
    spinning = "1" if choices.spinning else "0"
    for key, value in {
        "session.intra_op.allow_spinning": spinning,
        "session.inter_op.allow_spinning": spinning,
        # fp32 means fp32: neither bf16 matrix products on ARM nor an approximate Gelu.
        "mlas.enable_gemm_fastmath_arm64_bfloat16": "0",
        "optimization.enable_gelu_approximation": "0",
        "session.set_denormal_as_zero": "0",
    }.items():
        options.add_session_config_entry(key, value)
    return options


def _problem(spec: OptionSpec, value: OptionValue) -> str:
    if spec.choices and value not in spec.choices:
        return f"one of {', '.join(map(str, spec.choices))}"
    if spec.kind == "bool" and not isinstance(value, bool):
        return "true or false"
    if spec.kind == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        return "a whole number of 1 or more"
    return ""
