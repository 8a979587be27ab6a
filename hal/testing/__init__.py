"""For authors of plugins: the conformance suite, a fake backend and small graphs by name."""

from hal.testing.conformance import BackendConformance, CheckResult, check, checks
from hal.testing.fake import FakeBackend
from hal.testing.graphs import GRAPHS, example_inputs, small_graph, true_outputs
from hal.testing.isolation import check_isolated

__all__ = [
    "GRAPHS",
    "BackendConformance",
    "CheckResult",
    "FakeBackend",
    "check",
    "check_isolated",
    "checks",
    "example_inputs",
    "small_graph",
    "true_outputs",
]
