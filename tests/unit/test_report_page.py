from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.records.profile import Profile
from hal.report import html
from hal.report.data import payload
from hal.report.overview import overview
from hal.report.page import embedded
from hal.report.text import visible
from tests.unit.report_profiles import bare_profile, full_profile, hostile_profile


class Page(HTMLParser):
    """Elements, attributes and scripts of a page, as a browser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._script: dict[str, str | None] | None = None
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs)
            self.scripts.append((self._script, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_page_asks_for_nothing_from_outside_when_parsed() -> None:
    page = Page(html(full_profile()))
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not {"src", "srcset", "action", "data"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") or name == "style" for name in attributes)


def test_policy_allows_the_two_scripts_by_digest_when_the_page_is_made() -> None:
    page = Page(html(full_profile()))
    policy = next(
        attributes["content"] or ""
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == ["'none'"]
    running = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(running) == 1
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in running
    ]
    assert len(rules["script-src"]) == 2
    assert rules["script-src"][0] == digests[0]
    assert "unsafe" not in " ".join(rules["script-src"])


def test_page_has_no_element_or_attribute_of_a_new_kind_when_every_name_is_hostile() -> None:
    hostile = hostile_profile()
    tame = full_profile(hostile.model.n_nodes)
    kinds = [
        {(tag, frozenset(attributes)) for tag, attributes in Page(html(profile)).tags}
        for profile in (hostile, tame)
    ]
    assert kinds[0] == kinds[1]
    assert len(Page(html(hostile)).scripts) == len(Page(html(tame)).scripts) == 3


def test_page_shows_hostile_names_as_text_when_rendered() -> None:
    hostile = hostile_profile()
    text = html(hostile)
    assert Page(text).text.count("<script>alert(1)</script>") >= 1
    assert not {"\u202e", "\x1b", "\x00"} & set(text)
    assert "\\x1b]0;title" in text


def test_top_names_the_fastest_right_target_when_a_wrong_one_is_faster() -> None:
    profile = full_profile()
    view = overview(profile)
    fastest, exact, stability, answers = view.cards
    assert (fastest.label, fastest.value) == ("Fastest", "cpu:0/openvino/bf16")
    assert "p10–p90" in fastest.lines[0]
    assert "× as fast as cpu:0/openvino/fp32" in fastest.lines[1]
    assert (exact.label, exact.value) == ("Fastest in fp32", "cpu:0/openvino/fp32")
    assert (stability.value, stability.tone) == ("4 of 5 stable", "warn")
    assert stability.lines == ("cpu:0/onnxruntime/fp32 is not",)
    assert answers.value == "4 of 7 targets"
    assert answers.lines[1] == "1 wrong, 1 refused, 1 failed"


def test_top_says_within_the_noise_when_intervals_overlap() -> None:
    profile = full_profile()
    first, second, *rest = profile.targets
    timing = first.timing
    assert timing is not None
    near = msgspec.structs.replace(timing, median_ns=timing.median_ns + 1)
    tied = msgspec.structs.replace(
        profile, targets=(first, msgspec.structs.replace(second, timing=near), *rest)
    )
    assert overview(tied).cards[0].lines[1].endswith("within the noise")
    assert not overview(profile).cards[0].lines[1].endswith("within the noise")


def test_top_says_none_when_no_target_answered_rightly() -> None:
    profile = msgspec.structs.replace(full_profile(), targets=full_profile().targets[4:])
    card = overview(profile).cards[0]
    assert (card.value, card.tone) == ("none", "bad")
    assert "no target answered rightly" in Page(html(profile)).text


def test_reasons_stand_on_the_page_when_targets_are_unusable_or_unstable() -> None:
    text = Page(html(full_profile())).text
    for reason in (
        "cpu:0/cpu/fp16 wrong: scores differs from the reference by 0.31",
        "(Conv): no kernel for 7 dimensions",
        "failed: the child ended with signal 11 (SIGSEGV)",
        "cpu:0/onnxruntime/fp32: the median is known to ±9% only",
        "asked bf16, got fp32 (no kernel for bf16)",
        "cpu:0/cpu/fp32: inflated, its instruments slowed the run by 12%",
        "broken: ImportError: no libfoo",
    ):
        assert reason in text


@pytest.mark.parametrize("part", ["facts", "ceilings", "units", "memory", "links"])
def test_page_says_what_is_missing_when_the_profile_is_old(part: str) -> None:
    missing = overview(bare_profile()).missing
    assert missing[part] in Page(html(bare_profile())).text
    assert part not in overview(full_profile()).missing


def test_page_is_made_when_no_target_is_there_at_all() -> None:
    profile = msgspec.structs.replace(bare_profile(), targets=(), ratios=(), plugins=(), devices=(), notes=())
    assert overview(profile).missing["kernels"] in Page(html(profile)).text


def test_payload_counts_each_kernels_time_once_when_nodes_are_shared() -> None:
    profile = full_profile()
    found = payload(profile)
    for shown, target in zip(found["targets"], profile.targets, strict=False):
        if target.kernels is not None:
            assert sum(shown["kernels"]["median_ns"]) == target.kernels.total_ns
            assert len({len(column) for column in _columns(shown["kernels"])}) == 1


def test_payload_names_nodes_that_the_facts_lack_when_there_are_none() -> None:
    found = payload(bare_profile())
    kernels = found["targets"][0]["kernels"]
    shown = {found["nodes"]["name"][i] for nodes in kernels["nodes"] for i in nodes}
    table = bare_profile().targets[0].kernels
    assert table is not None
    assert shown == {name for kernel in table.kernels for name in kernel.nodes}
    assert set(found["nodes"]["op"]) > {"Conv", "MatMul"}


def test_payload_classifies_kernels_when_ceilings_are_there() -> None:
    kernels = payload(full_profile())["targets"][0]["kernels"]
    assert {"compute", "memory"} <= set(kernels["bound"])
    assert set(payload(bare_profile())["targets"][0]["kernels"]["bound"]) == {None}


@given(st.text())
def test_embedded_json_says_the_same_and_ends_no_script_when_text_is_any(text: str) -> None:
    written = embedded({"name": text})
    assert json.loads(written) == {"name": text}
    assert not set("<>&\u2028\u2029") & set(written)


@given(st.text())
def test_visible_text_has_nothing_unprintable_when_text_is_any(text: str) -> None:
    shown = visible(text).replace("\n", "")
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in shown)


def test_visible_text_is_short_when_an_error_is_megabytes_long() -> None:
    assert len(visible("x" * 5_000_000)) < 2100


def test_page_is_the_same_when_it_is_made_twice() -> None:
    profile = full_profile()
    assert html(profile) == html(msgspec.json.decode(msgspec.json.encode(profile), type=Profile))


def _columns(kernels: dict[str, object]) -> list[list[object]]:
    return [
        value
        for name, value in kernels.items()
        if isinstance(value, list) and name not in ("folded", "unknown")
    ]
