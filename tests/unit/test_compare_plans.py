from __future__ import annotations

import msgspec
import pytest

from hal.cli.compare_plans import compare_plan_files, is_plan, plans_text
from hal.cli.output import plain
from hal.errors import UnlikeProfiles
from hal.profiling.compare_plans import compare_plans
from hal.records import files
from tests.golden import records
from tests.unit.compared import timing
from tests.unit.planned import CPU, GPU, plan, single


def test_compare_plans_lists_moved_nodes_when_placements_differ() -> None:
    found = compare_plans(single(), plan())
    assert [(move.a, move.b, move.nodes) for move in found.moves] == [(CPU, GPU, ("conv", "relu"))]
    assert found.n_same == 2
    assert found.n_partitions == (1, 2)
    assert found.n_transfers == (0, 1)


def test_compare_plans_says_where_nodes_are_missing_when_one_lacks_them() -> None:
    lacking = plan(partitions=plan().partitions[:1])
    found = compare_plans(lacking, plan())
    assert [(move.a, move.b, move.nodes) for move in found.moves] == [("", CPU, ("pool", "head"))]


def test_compare_plans_refuses_when_models_differ() -> None:
    other = plan(model=msgspec.structs.replace(plan().model, digest="0" * 64))
    with pytest.raises(UnlikeProfiles, match="model digest: 3f2a91c0b7de in A, 000000000000 in B"):
        compare_plans(plan(), other)
    assert compare_plans(plan(), other, anyway=True).unlike[0].field == "model digest"


def test_compare_plans_names_the_environment_field_when_it_differs() -> None:
    environment = msgspec.structs.replace(records.FULL.environment, cpu="another")
    with pytest.raises(UnlikeProfiles, match=r"cpu: .* in A, another in B"):
        compare_plans(plan(), plan(environment=environment))


@pytest.mark.parametrize(("slow_ns", "too_slow"), [(103_000, False), (150_000, True)])
def test_compare_plans_judges_measured_times_when_both_have_them(slow_ns: int, too_slow: bool) -> None:
    found = compare_plans(plan(), plan(measured=timing(slow_ns)), limit=0.05)
    assert found.measured is not None
    assert found.too_slow is too_slow


def test_compare_plans_judges_predictions_when_one_was_not_measured() -> None:
    assert compare_plans(plan(), single(), limit=0.05).too_slow
    assert not compare_plans(plan(), single(), limit=0.25).too_slow


def test_is_plan_tells_plans_from_profiles_when_files_are_there(tmp_path) -> None:
    (tmp_path / "plan.json").write_bytes(files.to_json(plan()))
    (tmp_path / "profile.json").write_bytes(files.to_json(records.FULL))
    (tmp_path / "text").write_text("no json")
    assert is_plan(str(tmp_path / "plan.json"))
    assert not is_plan(str(tmp_path / "profile.json"))
    assert not is_plan(str(tmp_path / "text"))
    assert not is_plan(str(tmp_path / "absent.json"))


def test_compare_plan_files_exits_with_one_when_slower_than_allowed(tmp_path, capsys) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_bytes(files.to_json(plan()))
    b.write_bytes(files.to_json(plan(measured=timing(150_000))))
    assert compare_plan_files(str(a), str(b), anyway=False, limit=0.05, json=False) == 1
    assert "B is slower: 1.46x of A's measured time; beyond the limit of 5.0%" in capsys.readouterr().out
    assert compare_plan_files(str(b), str(a), anyway=False, limit=0.05, json=False) == 0


def test_plans_text_says_nothing_differs_when_plans_are_equal() -> None:
    text = plain(plans_text(compare_plans(plan(), plan())), 100)
    assert "0 nodes on other targets, 4 on the same" in text
    assert "no difference in time beyond noise" in text
