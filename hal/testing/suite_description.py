"""Checks of what a backend says about itself: names, devices, options, support, readings."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import SkipTest

from hal.backend import (
    API_VERSION,
    PRECISIONS,
    Configuration,
    Device,
    Diagnosis,
    Finding,
    OptionSpec,
    OptionValue,
    Support,
    Telemetry,
)
from hal.errors import TargetError, UnsupportedGraph
from hal.graph.model import Graph
from hal.testing.graphs import GRAPHS, small_graph, unknown_operator
from hal.testing.suite import EXACTING, Problems, Suite, inputs_of

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_DEVICE_ID = re.compile(r"[a-z][a-z0-9]*:[0-9]+")
_KINDS = ("cpu", "gpu", "npu", "other")
_UNITS = ("_ns", "_bytes", "_mw", "_mj", "_percent", "_hz", "_celsius")
_SEVERITIES = ("ok", "note", "warning", "problem")
_OPTION_TYPES: Mapping[str, type] = {"int": int, "str": str, "bool": bool}


class Description(Suite):
    """What a backend says about itself."""

    def test_process_is_left_alone(self) -> None:
        """Opening, discovering, compiling and running change no environment variable and print nothing."""
        problems = Problems()
        environment, folder = dict(os.environ), Path.cwd()
        with _printed() as printed, problems.about("opening, discovering, compiling and running"):
            self.opened()
            with contextlib.suppress(SkipTest):  # what needs no device is checked all the same
                for device, precision, graph, _ in self.usual():
                    with self.compiled(device, graph, precision) as executable:
                        executable.run(inputs_of(graph))
        changed = sorted(
            key for key in {*environment, *os.environ} if environment.get(key) != os.environ.get(key)
        )
        # pytest keeps the name of the running test here.
        changed = [key for key in changed if key != "PYTEST_CURRENT_TEST"]
        problems.expect(not changed, f"environment variables were changed: {', '.join(changed)}")
        problems.expect(Path.cwd() == folder, f"the current folder was changed from {folder} to {Path.cwd()}")
        text = "".join(printed)
        problems.expect(not text, f"stdout was written to, where programs expect data: {text[:200]!r}")
        problems.finish()

    def test_name_and_version(self) -> None:
        """The name is a word in snake_case and the version is this contract's."""
        backend, problems = self.opened(), Problems()
        name = getattr(backend, "name", None)
        legal = isinstance(name, str) and _NAME.fullmatch(name) is not None
        problems.expect(legal, f"name is {name!r}; expected snake_case, equal to the entry point's name")
        if self.ref is not None and self.ref.entry_point.startswith("plugin:"):
            entry = self.ref.entry_point.removeprefix("plugin:")
            problems.expect(name == entry, f"name is {name!r}; expected the entry point's, {entry!r}")
        problems.expect(
            backend.api_version == API_VERSION,
            f"api_version is {backend.api_version!r}; this hal has {API_VERSION}",
        )
        problems.finish()

    def test_devices_are_well_formed(self) -> None:
        """Ids, kinds, silicon, memory pools and precisions are legal; looking twice finds the same."""
        backend, problems = self.opened(), Problems()
        found, again = list(backend.discover()), list(backend.discover())
        for device in found:
            if not isinstance(device, Device):
                problems.add(f"discover returned {type(device).__name__}; expected hal.backend.Device")
                continue
            with problems.about(f"device {device.id!r}{f' ({device.variant})' if device.variant else ''}"):
                _check_device(device, problems)
        keys = [(device.id, device.variant) for device in found if isinstance(device, Device)]
        problems.expect(len(set(keys)) == len(keys), f"devices are listed twice: {keys}")
        later = [(device.id, device.variant) for device in again if isinstance(device, Device)]
        problems.expect(later == keys, f"a second look found {later}; the first found {keys}")
        problems.finish()

    def test_options_are_well_formed(self) -> None:
        """Every option has a legal name, kind, default, choices and help."""
        backend, problems = self.opened(), Problems()
        for device in self.devices():
            for option in backend.options(device):
                with problems.about(f"{device.id} option {getattr(option, 'name', option)!r}"):
                    _check_option(option, problems)
        problems.finish()

    def test_unknown_options_are_refused(self) -> None:
        """An option that is not listed, or a value that is not legal, is a TargetError that names it."""
        backend, problems = self.opened(), Problems()
        for device, precision, graph, where in self.usual():
            wrong: dict[str, OptionValue] = {"no_such_option": 1}
            wrong.update({option.name: _illegal(option) for option in backend.options(device)})
            for name, value in wrong.items():
                configuration = Configuration.of(precision, {name: value})
                what = f"{where} with {name}={value!r}"
                with problems.expect_error(TargetError, what, [name]):
                    backend.compile(device, graph, configuration).close()
        problems.finish()

    def test_capability_answers_every_node(self) -> None:
        """Each node has an answer, each no a reason, and the graph is as before."""
        problems = Problems()
        for device, precision, where in self.targets():
            for graph in [*map(small_graph, GRAPHS), unknown_operator()]:
                with problems.about(f"{where} {graph.name}"):
                    before = graph.to_proto().SerializeToString(deterministic=True)
                    _check_support(self.support(device, graph, precision), graph, problems)
                    after = graph.to_proto().SerializeToString(deterministic=True)
                    problems.expect(before == after, "capability changed the graph")
        problems.finish()

    def test_refused_graphs_are_refused_by_compile(self) -> None:
        """A graph with a refused node, or an unknown operator, raises UnsupportedGraph, naming a node."""
        problems = Problems()
        for device, precision, where in self.targets():
            for graph in [*map(small_graph, GRAPHS), unknown_operator()]:
                with problems.about(f"{where} {graph.name}"):
                    answers = self.support(device, graph, precision)
                    refused = [name for name, answer in answers.items() if not answer.yes]
                    if graph.name == "unknown_operator":
                        problems.expect(
                            bool(refused), "the unknown operator hal.testing::Unheard is claimed as supported"
                        )
                        refused = refused or list(graph.nodes)
                    if refused and graph.name not in EXACTING:
                        with (
                            problems.expect_error(UnsupportedGraph, "compile of a refused graph", refused),
                            self.compiled(device, graph, precision),
                        ):
                            pass
        problems.finish()

    def test_telemetry_has_units(self) -> None:
        """Readings are whole numbers under names that end in their unit."""
        readings = self.opened().ability(Telemetry)
        if readings is None:
            raise SkipTest("the backend has no telemetry")
        problems = Problems()
        for device in self.devices():
            with problems.about(device.id):
                for key, value in readings.telemetry(device).items():
                    problems.expect(
                        key.endswith(_UNITS), f"{key!r} ends in none of the units {', '.join(_UNITS)}"
                    )
                    problems.expect(
                        isinstance(value, int) and value >= 0,
                        f"{key} is {value!r}; expected a whole number, 0 or more",
                    )
        problems.finish()

    def test_findings_are_legal(self) -> None:
        """Findings have a known severity, a subject and a message; all but ``ok`` give advice."""
        diagnosis = self.opened().ability(Diagnosis)
        if diagnosis is None:
            raise SkipTest("the backend has no diagnosis")
        problems = Problems()
        with problems.about("diagnose"):
            for finding in diagnosis.diagnose():
                if not isinstance(finding, Finding):
                    problems.add(f"returned {type(finding).__name__}; expected hal.backend.Finding")
                    continue
                legal = finding.severity in _SEVERITIES
                problems.expect(
                    legal, f"severity {finding.severity!r}; expected one of {', '.join(_SEVERITIES)}"
                )
                problems.expect(
                    bool(finding.subject and finding.message), f"{finding} lacks a subject or a message"
                )
                silent = finding.severity in ("warning", "problem") and not finding.advice
                problems.expect(not silent, f"{finding.subject}: a {finding.severity} without advice")
        problems.finish()


def _check_device(device: Device, problems: Problems) -> None:
    problems.expect(_DEVICE_ID.fullmatch(device.id) is not None, "the id is not of the form kind:index")
    problems.expect(device.kind in _KINDS, f"kind is {device.kind!r}; expected one of {', '.join(_KINDS)}")
    legal = not device.variant or _NAME.fullmatch(device.variant) is not None
    problems.expect(legal, f"variant is {device.variant!r}; expected snake_case")
    problems.expect("\n" not in device.unavailable, "the reason for being unavailable has several lines")
    unknown = set(device.precisions) - set(PRECISIONS)
    problems.expect(
        not unknown, f"precisions {sorted(unknown)} are unknown; expected some of {', '.join(PRECISIONS)}"
    )
    if device.unavailable:
        return
    for field in ("name", "silicon", "memory_pool", "precisions"):
        problems.expect(bool(getattr(device, field)), f"{field} is empty")
    size = device.memory_bytes
    problems.expect(size is None or size > 0, f"memory_bytes is {size}; expected more than 0, or None")


def _check_option(option: OptionSpec, problems: Problems) -> None:
    problems.expect(_NAME.fullmatch(option.name) is not None, "the name is not in snake_case")
    problems.expect(bool(option.help), "it has no help")
    kind = _OPTION_TYPES.get(option.kind)
    if kind is None:
        problems.add(f"kind is {option.kind!r}; expected one of {', '.join(_OPTION_TYPES)}")
        return
    for value in (option.default, *option.choices):
        problems.expect(type(value) is kind, f"the value {value!r} is not of kind {option.kind}")
    chosen = not option.choices or option.default in option.choices
    problems.expect(chosen, f"the default {option.default!r} is none of the choices {option.choices}")


def _illegal(option: OptionSpec) -> OptionValue:
    """A value that the option's description rules out."""
    if option.kind == "str" and not option.choices:
        return 7  # a number where a text belongs
    return "no_such_value"


def _check_support(answers: Mapping[str, Support], graph: Graph, problems: Problems) -> None:
    missing, extra = set(graph.nodes) - set(answers), set(answers) - set(graph.nodes)
    problems.expect(not missing, f"capability is silent about nodes {sorted(missing)}")
    problems.expect(not extra, f"capability speaks of nodes that are not there: {sorted(extra)}")
    for name, answer in answers.items():
        problems.expect(answer.yes or bool(answer.reason), f"node {name!r} is refused without a reason")
        strangers = set(answer.together) - set(graph.nodes)
        problems.expect(not strangers, f"node {name!r} goes together with unknown nodes {sorted(strangers)}")


@contextlib.contextmanager
def _printed() -> Iterator[list[str]]:
    """Catch what the block writes to stdout, by Python and by native code."""
    texts: list[str] = []
    sys.stdout.flush()
    kept = os.dup(1)
    stream = io.StringIO()
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            with contextlib.redirect_stdout(stream):
                yield texts
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            texts += [stream.getvalue(), file.read().decode(errors="replace")]
