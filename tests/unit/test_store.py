"""What is kept, found again, judged valid and deleted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from hal.errors import ProfileNotFound, StorageError, UserError
from hal.profiling.store import Store, load_profile, profile_id
from hal.records import files
from tests.golden import records
from tests.unit import stored
from tests.unit.stored import OTHER_ENVIRONMENT, day, kernel, profile, table, target, wanted


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open() as opened:
        yield opened


def test_store_lies_below_hal_home_when_it_is_set(store: Store, tmp_path: Path) -> None:
    assert store.path == tmp_path / "home" / "data" / "profiles.sqlite3"
    assert store.path.is_file()


def test_put_gives_back_the_same_profile_when_it_is_opened_again(store: Store) -> None:
    id = store.put(records.FULL)
    store.close()
    store.close()
    with Store.open() as again:
        assert again.get(id) == records.FULL
        assert id in again
        assert "0" * 12 not in again
    assert len(id) == 12
    assert set(id) <= set("0123456789abcdef")


def test_put_keeps_one_when_only_the_date_differs(store: Store) -> None:
    newer, older = profile(created=day(5)), profile(created=day(2))
    assert store.put(newer) == store.put(older) == store.put(profile(created=day(3)))
    assert [one.created for one in store.summaries()] == [day(5)]
    assert store.get("latest") == newer
    assert store.put(profile(created=day(9))) == profile_id(newer)
    assert store.get("latest").created == day(9)


def test_put_keeps_both_when_a_figure_differs(store: Store) -> None:
    assert store.put(profile(target(median_ns=1000))) != store.put(profile(target(median_ns=1001)))
    assert len(store.summaries()) == 2


def test_put_names_the_text_when_a_date_is_none(store: Store) -> None:
    with pytest.raises(
        UserError, match=r"^the profile is dated 'soon'; expected an ISO 8601 time, for example"
    ):
        store.put(profile(created="soon"))
    assert store.summaries() == []


def test_put_sorts_by_time_when_dates_are_of_other_zones(store: Store) -> None:
    east = store.put(profile(created="2026-01-02T01:00:00+09:00"))
    west = store.put(profile(target(median_ns=2), created="2026-01-01T20:00:00"))
    assert [one.id for one in store.summaries()] == [west, east]
    assert store.summaries()[1].created == "2026-01-01T16:00:00+00:00"


def test_get_takes_the_start_of_an_id_when_only_one_begins_so(store: Store) -> None:
    ids = [store.put(profile(target(median_ns=n))) for n in range(1, 40)]
    shortest = next(n for n in range(1, 13) if len({id[:n] for id in ids}) == len(ids))
    for n, id in enumerate(ids, start=1):
        assert store.get(id[:shortest]).targets[0].timing.median_ns == n  # type: ignore[union-attr]


def test_get_lists_candidates_when_several_begin_so(store: Store) -> None:
    ids = [store.put(profile(target(median_ns=n))) for n in range(1, 40)]
    counts = {digit: sum(id.startswith(digit) for id in ids) for digit in "0123456789abcdef"}
    digit, n = max(counts.items(), key=lambda pair: pair[1])
    with pytest.raises(ProfileNotFound, match=rf"^'{digit}' begins the ids of {n} profiles: ") as raised:
        store.get(digit)
    assert raised.value.message.endswith("give more digits")
    listed = [id for id in ids if f"{id} (digits, 2026-01-01T00:00:00+00:00)" in raised.value.message]
    assert len(listed) == min(n, 5)
    assert isinstance(raised.value, LookupError)


@pytest.mark.parametrize("word", ["fff0", "%", "", "'", "latest ", "é"])
def test_get_lists_the_newest_when_no_id_begins_so(store: Store, word: str) -> None:
    id = store.put(profile())
    with pytest.raises(ProfileNotFound, match="there is no profile") as raised:
        store.get(word)
    assert f"the newest are {id} (digits, {day(0)}); hal profiles list shows all" in raised.value.message


@pytest.mark.parametrize("word", ["latest", "abc"])
def test_get_says_how_to_begin_when_the_store_is_empty(store: Store, word: str) -> None:
    with pytest.raises(
        ProfileNotFound, match=rf"^there is no profile '{word}': the store '.*' is empty; run hal"
    ):
        store.get(word)


def test_summaries_tell_the_fastest_right_target_when_others_are_faster_but_wrong(store: Store) -> None:
    id = store.put(msgspec.structs.replace(records.FULL, created=day(3)))
    (found,) = store.summaries()
    assert (found.id, found.created, found.model, found.n_targets) == (id, day(3), "digits", 6)
    assert (found.fastest, found.fastest_ns) == (records.BF16, 70_100)
    assert (found.machine, found.hal_version) == ("Example CPU", "0.1.0")


def test_summaries_name_no_fastest_when_none_is_right(store: Store) -> None:
    store.put(profile(target(status="wrong", reason="off")))
    assert (store.summaries()[0].fastest, store.summaries()[0].fastest_ns) == ("", 0)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (None, ["a[1]", "bert", "digits"]),
        ("bert", ["bert"]),
        ("*t*", ["bert", "digits"]),
        ("a[1]", ["a[1]"]),
        ("cafe01", ["bert"]),
        ("cafe0", []),
        ("none", []),
        ("", []),
    ],
)
def test_summaries_are_of_one_model_when_it_is_named(
    store: Store, model: str | None, expected: list[str]
) -> None:
    for n, (name, digest) in enumerate([("digits", "0a"), ("bert", "cafe0123"), ("a[1]", "0b")]):
        store.put(profile(name=name, digest=digest, created=day(n)))
    assert [one.model for one in store.summaries(model)] == expected
    assert [one.model for one in store.summaries(model, limit=1)] == expected[:1]


def test_remove_takes_kernels_along_when_a_profile_goes(store: Store) -> None:
    made = profile(target(kernels=table(kernel("k", 5, "Conv1"))), facts=stored.facts(Conv1="s"))
    id = store.put(made)
    assert len(store.kernels()) == 1
    store.remove([id, "0" * 12])
    assert (store.summaries(), store.kernels(), store.valid(wanted())) == ([], [], {})
    assert store.put(made) == id
    assert len(store.kernels()) == 1


# --- Pruning -------------------------------------------------------------------------------------


@pytest.fixture
def aged(store: Store) -> Store:
    """Profiles of two models, made 1 to 4 days ago."""
    for n, name in enumerate(["digits", "digits", "bert", "digits"], start=1):
        created = (datetime.now(UTC) - timedelta(days=n, minutes=1)).isoformat()
        store.put(profile(target(median_ns=n), name=name, created=created))
    return store


def medians(store: Store) -> list[int]:
    return sorted(one.fastest_ns for one in store.summaries())


@pytest.mark.parametrize(
    ("older_than", "keep", "model", "left"),
    [
        (2, None, None, [1]),
        (3, None, None, [1, 2]),
        (None, 1, None, [1, 3]),
        (None, 0, None, []),
        (None, 0, "bert", [1, 2, 4]),
        (None, 2, None, [1, 2, 3]),
        (3, 2, None, [1, 2, 3]),
        (999_999_999, None, None, [1, 2, 3, 4]),
    ],
)
def test_prune_deletes_what_is_both_old_and_beyond_the_number(
    aged: Store, older_than: int | None, keep: int | None, model: str | None, left: list[int]
) -> None:
    age = None if older_than is None else timedelta(days=older_than)
    told = aged.prune(older_than=age, keep=keep, model=model, dry_run=True)
    assert medians(aged) == [1, 2, 3, 4]
    assert aged.prune(older_than=age, keep=keep, model=model) == told
    assert medians(aged) == left
    assert sorted([*left, *(one.fastest_ns for one in told)]) == [1, 2, 3, 4]


def test_prune_refuses_when_nothing_says_what_to_delete(aged: Store) -> None:
    with pytest.raises(
        UserError, match=r"nothing says what to delete; give an age .*, a number to keep .*, or both"
    ):
        aged.prune(model="bert")
    with pytest.raises(UserError, match="-1 profiles cannot be kept; expected 0 or more"):
        aged.prune(keep=-1)
    assert medians(aged) == [1, 2, 3, 4]


def test_file_shrinks_when_profiles_are_deleted(store: Store) -> None:
    for n in range(20):
        store.put(profile(notes=(stored.noise(n),)))
    store.close()
    before = store.path.stat().st_size
    with Store.open() as again:
        again.prune(keep=0)
    assert store.path.stat().st_size < before / 2


# --- What is still valid -------------------------------------------------------------------------


def test_valid_finds_the_newest_of_each_target_when_terms_are_equal(store: Store) -> None:
    first = store.put(profile(target(median_ns=1), target(records.BF16, 2), created=day(1)))
    second = store.put(profile(target(median_ns=3), created=day(2)))
    found = store.valid(wanted())
    assert {
        name: (one.result.timing.median_ns, one.profile_id, one.measured) for name, one in found.items()
    } == {  # type: ignore[union-attr]
        records.FP32: (3, second, day(2)),
        records.BF16: (2, first, day(1)),
    }
    assert set(store.valid(wanted(targets=(records.BF16, records.ORT)))) == {records.BF16}


def test_valid_goes_by_when_the_target_was_measured_when_the_profile_is_newer(store: Store) -> None:
    store.put(profile(target(median_ns=1, measured=day(1)), target(records.BF16, 5), created=day(9)))
    store.put(profile(target(median_ns=2), created=day(4)))
    found = store.valid(wanted(targets=(records.FP32,)))[records.FP32]
    assert (found.result.timing.median_ns, found.measured) == (2, day(4))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "terms",
    [
        {"model_digest": "e" * 64},
        {"inputs_digest": "j" * 64},
        {"environment": OTHER_ENVIRONMENT},
        {"hal_version": "0.2.0"},
        {"policy": "another"},
    ],
)
def test_valid_finds_nothing_when_one_term_differs(store: Store, terms: dict[str, object]) -> None:
    store.put(profile())
    assert set(store.valid(wanted())) == {records.FP32}
    assert store.valid(wanted(**terms)) == {}


@pytest.mark.parametrize("term", ["inputs_digest", "policy"])
def test_valid_finds_nothing_when_a_digest_is_not_known(store: Store, term: str) -> None:
    made = profile(target(policy=""))
    store.put(msgspec.structs.replace(made, model=msgspec.structs.replace(made.model, inputs_digest="")))
    assert store.valid(wanted(inputs_digest="", policy="")) == {}
    store.put(profile())
    assert store.valid(wanted(**{term: ""})) == {}


@pytest.mark.parametrize(
    ("status", "has_kernels", "wants_kernels", "valid"),
    [
        ("ok", True, True, True),
        ("ok", False, True, False),
        ("ok", False, False, True),
        ("wrong", True, True, True),
        ("wrong", False, True, False),
        ("refused", False, True, True),
        ("failed", False, False, False),
        ("failed", True, True, False),
    ],
)
def test_valid_asks_for_kernels_and_tries_failures_again(
    store: Store, status: str, has_kernels: bool, wants_kernels: bool, valid: bool
) -> None:
    store.put(profile(target(status=status, kernels=table() if has_kernels else None)))
    assert (records.FP32 in store.valid(wanted(kernels=wants_kernels))) == valid


def test_valid_takes_an_older_one_when_the_newest_has_no_kernels(store: Store) -> None:
    store.put(profile(target(median_ns=1), created=day(1)))
    store.put(profile(target(median_ns=2, kernels=None), created=day(2)))
    found = store.valid(wanted(kernels=True))[records.FP32]
    assert found.measured == day(1)
    assert store.valid(wanted(kernels=False))[records.FP32].measured == day(2)


# --- Machines and kernels ------------------------------------------------------------------------


def test_machine_is_the_newest_of_the_environment_when_several_were_put(store: Store) -> None:
    assert store.machine(stored.ENVIRONMENT) is None
    newest = stored.machine(day(5), 2e12)
    for one in (stored.machine(day(1)), newest, stored.machine(day(2), 3e12)):
        store.put_machine(one)
    assert store.machine(stored.ENVIRONMENT) == newest
    assert store.machine(OTHER_ENVIRONMENT) is None


def test_kernels_are_found_by_target_op_and_environment(store: Store) -> None:
    facts = stored.facts(Conv1="c", Relu1="r", Add1="a")
    kernels = table(kernel("fused", 10, "Conv1", "Relu1"), kernel("add", 3, "Add1"))
    store.put(profile(target(kernels=kernels), target(records.BF16, kernels=kernels), facts=facts))
    store.put(profile(target(kernels=kernels), facts=facts, environment=OTHER_ENVIRONMENT))
    assert len(store.kernels()) == 6
    assert {record.target for record in store.kernels(records.BF16)} == {records.BF16}
    assert [record.median_ns for record in store.kernels(records.BF16, "Relu")] == [10]
    assert [record.ops for record in store.kernels(records.BF16, "Conv")] == [("Conv", "Relu")]
    assert store.kernels(op="Con") == []
    assert len(store.kernels(environment=OTHER_ENVIRONMENT)) == 2
    assert len(store.kernels(environment=stored.ENVIRONMENT, op="Add")) == 2


def test_kernels_are_the_newest_when_models_share_a_signature(store: Store) -> None:
    for n, (digest, signature) in enumerate([("m1", "s"), ("m2", "s"), ("m3", "t")]):
        facts = stored.facts(Conv1=signature)
        made = table(kernel("k", 10 + n, "Conv1"))
        store.put(profile(target(kernels=made), facts=facts, digest=digest, created=day(9 - n)))
    assert {record.model: record.median_ns for record in store.kernels()} == {"m1": 10, "m3": 12}


def test_kernels_give_the_one_of_middle_cost_when_layers_repeat(store: Store) -> None:
    facts = stored.facts(Conv1="s", Conv2="s", Conv3="s")
    made = table(kernel("a", 50, "Conv1"), kernel("b", 1, "Conv2"), kernel("c", 7, "Conv3"))
    store.put(profile(target(kernels=made), facts=facts))
    assert [record.median_ns for record in store.kernels()] == [7]


# --- A word of the command line ------------------------------------------------------------------


def test_load_profile_takes_a_file_an_id_or_latest(store: Store) -> None:
    id = store.put(profile(created=day(4)))
    other = profile(target(median_ns=7))
    Path("mine.json").write_bytes(files.to_json(other))
    Path("latest").write_bytes(files.to_json(other))
    assert load_profile("mine.json") == load_profile(str(Path("mine.json").absolute())) == other
    assert load_profile(id) == load_profile(id[:6]) == profile(created=day(4))
    assert load_profile("latest") == other
    Path("latest").unlink()
    assert load_profile("latest").created == day(4)


@pytest.mark.parametrize("word", ["gone.json", "./gone", "folder/gone"])
def test_load_profile_speaks_of_files_when_the_word_looks_like_one(word: str) -> None:
    with pytest.raises(ProfileNotFound, match=rf"^there is no file '{word}'; name a file .*, or an id from"):
        load_profile(word)


def test_load_profile_refuses_when_the_word_can_be_neither(store: Store) -> None:
    with pytest.raises(ProfileNotFound, match=r"^there is no profile 'a"):
        load_profile("a\0b")
    with pytest.raises(StorageError, match="cannot be read: "):
        load_profile("a" * 5000)
