"""Sessions to files and back over fake plugins: on the same machine, a changed one, and another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import helper

import hal
from hal.errors import BundleError, OutputExists, PlanError
from hal.graph.model import Graph
from hal.profiling.store import Store
from hal.session import bundle
from hal.session.events import Event
from hal.session.session import Session
from tests.throwaway import FAKE_MODULE, Plugins
from tests.unit.bundling import (
    FAILING,
    FREE,
    GRAPH,
    ONE,
    TWO,
    WHOLE,
    X,
    Y,
    add,
    device_of,
    elsewhere,
    forget_modules,
    saved,
    session,
    telling,
)


@pytest.fixture(autouse=True)
def _anew() -> None:
    """Each test has plugins of its own, of the same names."""
    forget_modules()


def kinds(loaded: Session) -> list[str]:
    return [event.kind for event in loaded.events]


# --- the same machine ------------------------------------------------------------------------------------


def test_a_session_comes_back_when_everything_is_as_it_was(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    path = tmp_path / "m.hal"
    with saved(path) as made, hal.load(path) as loaded:
        assert (loaded.plan, loaded.profile, loaded.signature) == (made.plan, made.profile, made.signature)
        assert (loaded.graph.digest, loaded.graph.name) == (GRAPH.digest, "small")
        np.testing.assert_array_equal(loaded(X), Y)
        assert loaded.events == []


def test_a_session_comes_back_when_it_was_loaded_and_saved_again(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    saved(tmp_path / "a.hal").close()
    with hal.load(tmp_path / "a.hal") as loaded:
        loaded.save(tmp_path / "b.hal")
    first, second = (bundle.read(tmp_path / name).members for name in ("a.hal", "b.hal"))
    for name in (bundle.PLAN, bundle.PROFILE, bundle.MODEL):
        assert first[name] == second[name]
    with hal.load(tmp_path / "b.hal") as again:
        np.testing.assert_array_equal(again(X), Y)


def test_nothing_is_measured_searched_or_kept_when_the_plan_fits(plugins: Plugins, tmp_path: Path) -> None:
    told = telling(plugins, tmp_path)
    add(plugins, "two")
    saved(tmp_path / "m.hal").close()
    told.unlink()
    hal.load(tmp_path / "m.hal").close()
    assert told.read_text().split() == ["compile"]
    with Store.open() as store:
        assert store.summaries() == []


def test_provenance_says_where_the_bundle_comes_from(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    saved(tmp_path / "m.hal").close()
    members = bundle.read(tmp_path / "m.hal").members
    told = json.loads(members[bundle.PROVENANCE])
    assert told["hal_version"] == hal.__version__
    assert told["model_digest"] == GRAPH.digest
    assert [plugin["name"] for plugin in told["plugins"]] == ["one", "two"]
    assert {end: place["plugin"] for end, place in told["places"].items()} == {
        "cpu:0/one": "hal-one 1.2.3",
        "npu:0/two": "hal-two 1.2.3",
    }
    assert str(tmp_path).encode() not in members[bundle.PROVENANCE]


def test_an_existing_file_stays_when_it_is_not_forced(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    path = tmp_path / "m.hal"
    with saved(path) as made:
        before = path.read_bytes()
        with pytest.raises(OutputExists, match="exists"):
            made.save(path)
        assert path.read_bytes() == before
        made.save(path, force=True)
    hal.load(path).close()


def test_saving_is_refused_when_the_model_is_too_large(
    plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(plugins, "one", "two")
    monkeypatch.setattr("hal.session.bundles._MOST_WEIGHTS", 100)
    with session() as made, pytest.raises(BundleError) as raised:
        made.save(tmp_path / "m.hal")
    assert "model 'small' has 128 bytes of weights; a bundle holds up to 100" in raised.value.message
    assert not (tmp_path / "m.hal").exists()


def test_saving_is_refused_when_an_option_is_free_text(plugins: Plugins, tmp_path: Path) -> None:
    plugins.add("one", FREE.format(configuration=json.dumps({"name": "one", "devices": [device_of("one")]})))
    with session((f"{ONE}+cache_dir=x", tuple(GRAPH.nodes))) as made, pytest.raises(BundleError) as raised:
        made.save(tmp_path / "m.hal")
    expected = f"the plan of 'small' sets the option 'cache_dir' of {ONE}+cache_dir=x to text of its own"
    assert expected in raised.value.message
    assert not (tmp_path / "m.hal").exists()


def test_saving_is_refused_when_the_model_holds_native_code(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    with session() as made:
        proto = made.graph.to_proto()
        proto.graph.node.append(helper.make_node("EPContext", [], ["z"], name="ctx", domain="com.microsoft"))
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        made.graph = Graph.load(proto)
        with pytest.raises(BundleError, match=r"the model in the session of .* node 'ctx' is a EPContext"):
            made.save(tmp_path / "m.hal")
    assert not (tmp_path / "m.hal").exists()


def test_loading_is_refused_when_any_member_is_damaged(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    path = tmp_path / "m.hal"
    saved(path).close()
    content = path.read_bytes()
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :])
        with pytest.raises(BundleError):
            hal.load(path)


def test_loading_is_refused_when_a_member_is_a_lie_that_the_manifest_confirms(
    plugins: Plugins, tmp_path: Path
) -> None:
    add(plugins, "one", "two")
    path = tmp_path / "m.hal"
    saved(path).close()
    members = bundle.read(path).members
    plan = msgspec.json.decode(members[bundle.PLAN])
    plan["partitions"][0]["target"] = f"{ONE}+mode=%2Ftmp"
    lie = {**members, bundle.PLAN: msgspec.json.encode(plan)}
    bundle.write(path, lie, hal_version="0.1.0", force=True)
    with pytest.raises(BundleError, match=r"sets the option 'mode' of cpu:0/one/fp32\+mode=/tmp to text"):
        hal.load(path)


def test_requests_are_answered_elsewhere_when_a_device_fails_later(plugins: Plugins, tmp_path: Path) -> None:
    devices = [device_of("one"), {"id": "npu:0"}]
    source = FAILING.format(configuration=json.dumps({"name": "one", "devices": devices}))
    plugins.add("one", source)
    saved(tmp_path / "m.hal", WHOLE, others=("npu:0/one/fp32",)).close()
    with hal.load(tmp_path / "m.hal") as loaded:
        np.testing.assert_array_equal(loaded(X), Y)
        assert loaded.plan.targets == ("npu:0/one/fp32",)
        assert kinds(loaded) == ["failed", "replanned", "retried"]


# --- another machine -------------------------------------------------------------------------------------


def test_the_profile_is_planned_again_when_a_plugin_is_not_there(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    path = tmp_path / "m.hal"
    saved(path).close()
    elsewhere(plugins, "one")
    told: list[Event] = []
    with pytest.warns(UserWarning, match=r"for targets that are not here: npu:0/two/fp32 \(there is no"):
        loaded = hal.load(path, on_event=told.append)
    with loaded:
        assert [part.target for part in loaded.plan.partitions] == [ONE]
        assert "replanned" in kinds(loaded)
        assert "replanned" in [event.kind for event in told]
        np.testing.assert_array_equal(loaded(X), Y)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"unavailable": "it is switched off"}, "it is switched off"),
        ({"id": "npu:1"}, "no such device"),
        ({"precisions": ["bf16"]}, "Fake npu:0 computes in bf16"),
    ],
)
def test_the_profile_is_planned_again_when_a_device_is_not_there(
    plugins: Plugins, tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    add(plugins, "one", "two")
    saved(tmp_path / "m.hal").close()
    changed = {"name": "two", "devices": [device_of("two", **fields)]}
    plugins.replace("two", FAKE_MODULE.format(configuration=json.dumps(changed)))
    forget_modules()
    with pytest.warns(UserWarning, match=rf"targets that are not here: {TWO} \({reason}\)"):
        loaded = hal.load(tmp_path / "m.hal")
    with loaded:
        assert loaded.plan.targets == (ONE,)
        np.testing.assert_array_equal(loaded(X), Y)


def test_the_profile_is_planned_again_when_a_plugin_does_not_open(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    saved(tmp_path / "m.hal").close()
    plugins.replace("two", "raise RuntimeError('no driver')")
    forget_modules()
    with pytest.warns(UserWarning, match=r"npu:0/two/fp32 \(plugin 'two' .* no driver\)"):
        loaded = hal.load(tmp_path / "m.hal")
    with loaded:
        assert loaded.plan.targets == (ONE,)


def test_loading_is_refused_when_a_target_is_missing_in_strict(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    saved(tmp_path / "m.hal").close()
    elsewhere(plugins, "one")
    with pytest.raises(PlanError, match=r"not here: npu:0/two/fp32 .*; load it without strict to plan again"):
        hal.load(tmp_path / "m.hal", strict=True)


def test_loading_is_refused_when_no_profiled_target_is_here(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    saved(tmp_path / "m.hal").close()
    plugins.add_fake("three")
    elsewhere(plugins, "three")
    with (
        pytest.warns(UserWarning, match="targets that are not here"),
        pytest.raises(PlanError, match=r"it cannot be planned again: (.|\n)*take its model out") as raised,
    ):
        hal.load(tmp_path / "m.hal")
    assert f"{TWO}: failed: it is not on this machine" in raised.value.message
    assert "(unzip it, model.onnx) and compile that" in raised.value.message


def test_constraints_hold_when_it_is_planned_again(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    saved(tmp_path / "m.hal", (TWO, tuple(GRAPH.nodes)), targets=(TWO,)).close()
    elsewhere(plugins, "one")
    with (
        pytest.warns(UserWarning, match="targets that are not here"),
        pytest.raises(PlanError, match=rf"{ONE}: it was not asked for"),
    ):
        hal.load(tmp_path / "m.hal")


def test_a_warning_names_what_changed_when_targets_are_others(plugins: Plugins, tmp_path: Path) -> None:
    add(plugins, "one", "two")
    saved(tmp_path / "m.hal").close()
    changed = {"name": "two", "devices": [device_of("two", name="Other NPU", properties={"driver": "9"})]}
    plugins.replace("two", FAKE_MODULE.format(configuration=json.dumps(changed)))
    plugins.upgrade("one", "1.3.0")
    forget_modules()
    with pytest.warns(UserWarning, match="was saved elsewhere") as found:
        loaded = hal.load(tmp_path / "m.hal")
    told = str(found[0].message)
    assert "plugin of cpu:0/one was 'hal-one 1.2.3' and is 'hal-one 1.3.0'" in told
    assert "device of npu:0/two was 'Fake npu:0' and is 'Other NPU'" in told
    assert "driver of npu:0/two was None and is '9'" in told
    assert "its plan is kept: compile anew to measure it here" in told
    with loaded:
        assert loaded.plan.targets == (ONE, TWO)
        assert loaded.events == []
        np.testing.assert_array_equal(loaded(X), Y)


def test_no_code_is_named_by_a_bundle(plugins: Plugins, tmp_path: Path) -> None:
    # A backend that is not installed is missing, whatever module of that name could be imported.
    add(plugins, "one", "two")
    (plugins.folder / "three.py").write_text("raise SystemExit('imported')")
    path = tmp_path / "m.hal"
    saved(path).close()
    members = bundle.read(path).members
    plan = msgspec.json.decode(members[bundle.PLAN])
    plan["partitions"][0]["target"] = "cpu:0/three/fp32"
    bundle.write(path, {**members, bundle.PLAN: msgspec.json.encode(plan)}, hal_version="0.1.0", force=True)
    with pytest.raises(PlanError, match="there is no plugin 'three'"):
        hal.load(path, strict=True)
