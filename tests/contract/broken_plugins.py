"""Plugins with one fault each, in what they say about themselves.

``fails`` names the checks that must notice the fault; all others must pass.
"""

import os

import msgspec

from hal.backend import Finding, OptionSpec, Support
from hal.testing.fake import FakeBackend, FakeExecutable

BROKEN = []


def broken(*fails):
    """Register a backend class, or an executable class with a backend around it."""

    def register(kind):
        if issubclass(kind, FakeExecutable):
            backend = type(
                kind.__name__, (FakeBackend,), {"executable": lambda self, *given: kind(self, *given)}
            )
        else:
            backend = kind
        backend.fails = set(fails)
        BROKEN.append(backend)
        return kind

    return register


def change(struct, **changes):
    return msgspec.structs.replace(struct, **changes)


@broken("name_and_version")
class NameWithSpaces(FakeBackend):
    def __init__(self):
        super().__init__(name="My Backend")


@broken("name_and_version")
class OldVersion(FakeBackend):
    def __init__(self):
        super().__init__()
        self.api_version = 0


@broken("process_is_left_alone")
class SetsEnvironment(FakeBackend):
    def compile(self, device, graph, configuration):
        os.environ["HAL_TEST_BROKEN"] = "1"
        return super().compile(device, graph, configuration)


@broken("process_is_left_alone")
class PrintsFromPython(FakeBackend):
    def discover(self):
        print("looking for devices")
        return super().discover()


@broken("process_is_left_alone")
class PrintsFromNativeCode(FakeExecutable):
    def run(self, inputs, outputs=None):
        os.write(1, b"running\n")
        return super().run(inputs, outputs)


@broken("process_is_left_alone")
class ChangesFolder(FakeBackend):
    def compile(self, device, graph, configuration):
        os.chdir("/")
        return super().compile(device, graph, configuration)


@broken("devices_are_well_formed")
class DeviceWithoutIndex(FakeBackend):
    def __init__(self):
        super().__init__(devices=[{"id": "cpu"}])


@broken("devices_are_well_formed")
class DeviceWithoutSilicon(FakeBackend):
    def __init__(self):
        super().__init__(devices=[{"id": "cpu:0", "silicon": ""}])


@broken("devices_are_well_formed")
class UnknownPrecision(FakeBackend):
    def __init__(self):
        super().__init__(
            devices=[{"id": "cpu:0"}, {"id": "npu:0", "precisions": ["int3"], "unavailable": "no driver"}]
        )


@broken("devices_are_well_formed")
class ReasonOfManyLines(FakeBackend):
    def __init__(self):
        super().__init__(devices=[{"id": "cpu:0"}, {"id": "npu:0", "unavailable": "no\ndriver"}])


@broken("devices_are_well_formed")
class SameDeviceTwice(FakeBackend):
    def __init__(self):
        super().__init__(devices=[{"id": "cpu:0"}, {"id": "cpu:0"}])


@broken("devices_are_well_formed")
class OtherDevicesEachTime(FakeBackend):
    def discover(self):
        found = super().discover()
        self.devices = (*found, change(found[0], id=f"cpu:{len(found)}"))
        self.clocks[self.devices[-1].id] = self.clocks["cpu:0"]
        return found[:4]


@broken("options_are_well_formed")
class DefaultIsNoChoice(FakeBackend):
    def options(self, device):
        return [
            OptionSpec(name="mode", kind="str", default="turbo", choices=("plain", "fast"), help="A mode.")
        ]


@broken("unknown_options_are_refused")
class IgnoresOptions(FakeBackend):
    def check_options(self, configuration):
        pass


@broken("capability_answers_every_node")
class RefusesWithoutReason(FakeBackend):
    def capability(self, device, graph, precision):
        return {
            name: change(a, reason="") for name, a in super().capability(device, graph, precision).items()
        }


@broken("capability_answers_every_node")
class SilentAboutTheLastNode(FakeBackend):
    def capability(self, device, graph, precision):
        return dict(list(super().capability(device, graph, precision).items())[:-1])


@broken("capability_answers_every_node")
class TogetherWithStrangers(FakeBackend):
    def capability(self, device, graph, precision):
        answers = super().capability(device, graph, precision)
        return {name: change(answer, together=("elsewhere",)) for name, answer in answers.items()}


@broken("capability_answers_every_node")
class CapabilityChangesTheGraph(FakeBackend):
    def capability(self, device, graph, precision):
        graph.model.doc_string = (graph.model.doc_string or "") + "seen "
        return super().capability(device, graph, precision)


@broken("refused_graphs_are_refused_by_compile")
class ClaimsEverything(FakeBackend):
    def capability(self, device, graph, precision):
        return dict.fromkeys(graph.nodes, Support(True))

    def _support(self, device, node, precision):
        return Support(True)


@broken("refused_graphs_are_refused_by_compile")
class CompilesWhatItRefuses(FakeBackend):
    def capability(self, device, graph, precision):
        answers = super().capability(device, graph, precision)
        refused = {
            name: Support(False, "too soft") for name, n in graph.nodes.items() if n.op_type == "Softmax"
        }
        return {**answers, **refused}


@broken("telemetry_has_units")
class PowerWithoutUnit(FakeBackend):
    def __init__(self):
        super().__init__(telemetry={"power": 3})


@broken("telemetry_has_units")
class FractionalPower(FakeBackend):
    def __init__(self):
        super().__init__(telemetry={"power_mw": 3.5})


@broken("findings_are_legal")
class UnknownSeverity(FakeBackend):
    def diagnose(self):
        return [Finding(severity="catastrophe", subject="driver", message="is old", advice="upgrade it")]


@broken("findings_are_legal")
class ProblemWithoutAdvice(FakeBackend):
    def diagnose(self):
        return [Finding(severity="problem", subject="driver", message="is old")]


@broken("ranges_of_sizes_are_kept")
class CompilesForTheFirstSize(FakeBackend):
    def compile_ranges(self, device, graph, configuration, ranges):
        return self.compile(device, graph.bind({"x": (5, 8)}), configuration)


@broken("ranges_of_sizes_are_kept")
class TakesAnySizeAnywhere(FakeBackend):
    def compile_ranges(self, device, graph, configuration, ranges):
        made = super().compile_ranges(device, graph, configuration, ranges)
        signature = made.signature
        loose = change(signature.inputs[0], shape=("batch", "width"))
        made._signature = change(signature, inputs=(loose,))
        return made
