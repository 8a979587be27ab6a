"""Two sessions on one processor in one process: the threads of the first spin, those of the second rest."""

from __future__ import annotations

import msgspec

import hal
from hal.records.plan import Plan
from hal.testing import example_inputs, small_graph

TARGET = "cpu:0/onnxruntime/fp32"
GRAPH = small_graph("chain")


def spins(session: hal.Session) -> bool:
    """What ONNX Runtime was told for the session's one partition."""
    inside = session.runner._engine._executable  # type: ignore[attr-defined]  # what is inside
    entry = inside._session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning")
    return str(entry) == "1"


def plan() -> Plan:
    """The model on all threads of ONNX Runtime."""
    with hal.compile(GRAPH, targets=[TARGET]) as session:
        (part,) = session.plan.partitions
        return msgspec.structs.replace(
            session.plan, partitions=(msgspec.structs.replace(part, target=TARGET),)
        )


def test_threads_of_the_second_session_rest_when_the_first_is_open() -> None:
    on_all_threads = plan()
    with hal.compile(GRAPH, plan=on_all_threads) as first:
        with hal.compile(GRAPH, plan=on_all_threads) as second:
            assert (spins(first), spins(second)) == (True, False)
            assert second.plan.targets == (TARGET,)
            inputs = example_inputs(GRAPH)
            assert (second(*inputs) == first(*inputs)).all()
        with hal.compile(GRAPH, plan=on_all_threads) as third:
            assert not spins(third)
    with hal.compile(GRAPH, plan=on_all_threads) as alone:
        assert spins(alone)
