import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import TargetError
from hal.records.targets import PRECISIONS, Configuration, Target, TensorSpec

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
# Texts that read as numbers or truth values come back as such: options of kind str are words.
WORDS = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).filter(
    lambda text: text not in ("true", "false", "inf", "nan", "infinity")
)
VALUES = st.one_of(
    WORDS, st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False)
)
TARGETS = st.builds(
    lambda device, backend, variant, precision, options: Target(
        device, backend, Configuration.of(precision, options), variant
    ),
    st.from_regex(r"[a-z][a-z0-9]{0,5}:[0-9]{1,2}", fullmatch=True),
    NAMES,
    st.one_of(st.just(""), NAMES),
    st.sampled_from(PRECISIONS),
    st.dictionaries(NAMES, VALUES, max_size=4),
)


@given(TARGETS)
def test_target_comes_back_when_written_and_parsed(target):
    again = Target.parse(str(target))
    assert again == target
    assert [type(value) for _, value in again.configuration.options] == [
        type(value) for _, value in target.configuration.options
    ]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("cpu:0/openvino/bf16", Target("cpu:0", "openvino", Configuration("bf16"))),
        (
            "cuda:0/onnxruntime-tensorrt/fp16",
            Target("cuda:0", "onnxruntime", Configuration("fp16"), "tensorrt"),
        ),
        (
            "cpu:0/cpu/fp32+mode=compiled+n_threads=2",
            Target("cpu:0", "cpu", Configuration("fp32", (("mode", "compiled"), ("n_threads", 2)))),
        ),
        (
            "cpu:0/cpu/fp32+spinning=true",
            Target("cpu:0", "cpu", Configuration("fp32", (("spinning", True),))),
        ),
    ],
)
def test_target_is_exact_when_known(text, target):
    assert Target.parse(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cpu:0",
        "cpu:0/cpu",
        "cpu/cpu/fp32",
        "CPU:0/cpu/fp32",
        "cpu:0//fp32",
        "cpu:0/cpu/fp32/x",
        "cpu:0/cpu/fp32+mode",
        "cpu:0/cpu/fp32+a=1+a=2",
        "cpu:0/cpu/fp32+=2",
    ],
)
def test_target_says_the_form_when_the_text_is_none(text):
    expected = (
        f"{text!r} is not a target; expected DEVICE/BACKEND[-VARIANT]/PRECISION[+OPTION=VALUE], "
        "each option once, for example cpu:0/openvino/bf16"
    )
    with pytest.raises(TargetError, match=re.escape(expected)):
        Target.parse(text)


@pytest.mark.parametrize(
    "value", ["8", "true", "1.5", "/a+b", "100%", "", "nan", "%41", "+", "plain", 8, True, 1e16]
)
def test_target_round_trips_when_an_option_looks_like_something_else(value):
    target = Target("cpu:0", "cpu", Configuration.of("fp32", {"x": value}))
    again = Target.parse(str(target))
    assert again == target
    assert type(again.configuration.option("x", 0)) is type(value)


def test_target_says_so_when_a_number_is_too_large():
    with pytest.raises(TargetError, match="the option value 99999999999999999999 does not fit into 64 bits"):
        Target.parse("cpu:0/cpu/fp32+threads=99999999999999999999")


def test_configuration_names_the_precisions_when_one_is_unknown():
    with pytest.raises(TargetError, match="precision 'int8' is unknown; expected one of fp32, bf16, fp16"):
        Configuration.of("int8")
    with pytest.raises(TargetError, match="precision 'int8' is unknown"):
        Target.parse("cpu:0/cpu/int8")


def test_configuration_is_the_same_when_options_come_in_another_order():
    one = Configuration.of("fp32", {"b": 1, "a": 2})
    assert one == Configuration.of("fp32", {"a": 2, "b": 1})
    assert one.option("a", 0) == 2
    assert one.option("c", "none") == "none"


def test_tensor_spec_is_readable_when_printed():
    assert str(TensorSpec("x", "float32", ("batch", 3, "?"))) == "x: float32[batch, 3, ?]"
