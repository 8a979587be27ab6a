import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal import units


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0.00 ns"),
        (1, "1.00 ns"),
        (999, "999 ns"),
        (999.6, "1.00 us"),
        (1_234, "1.23 us"),
        (12_345, "12.3 us"),
        (123_456, "123 us"),
        (999_500, "1.00 ms"),
        (1_234_567, "1.23 ms"),
        (2_500_000_000, "2.50 s"),
        (-1_500, "-1.50 us"),
        (math.inf, "n/a"),
        (math.nan, "n/a"),
    ],
)
def test_format_ns_is_exact_when_known(duration_ns, text):
    assert units.format_ns(duration_ns) == text


@given(st.floats(1, 9e11))
def test_format_ns_is_within_rounding_when_read_back(duration_ns):
    number, unit = units.format_ns(duration_ns).split()
    scale = {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}[unit]
    assert float(number) * scale == pytest.approx(duration_ns, rel=0.006)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (1 << 20, "1.00 MiB"),
        (300 << 20, "300 MiB"),
        (5 << 30, "5.00 GiB"),
        (3 << 40, "3.00 TiB"),
    ],
)
def test_format_bytes_is_exact_when_known(n_bytes, text):
    assert units.format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("1000", 1000),
        ("8GiB", 8 << 30),
        ("512 MB", 512_000_000),
        (" 1.5kib ", 1536),
        ("2 TB", 2 * 10**12),
        ("7b", 7),
    ],
)
def test_parse_bytes_is_exact_when_known(text, n_bytes):
    assert units.parse_bytes(text) == n_bytes


@given(st.integers(0, 1 << 50))
def test_parse_bytes_reads_a_plain_count_when_written_as_text(n_bytes):
    assert units.parse_bytes(f"{n_bytes}B") == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "8 XB", "eight", "1..5MB", "-"])
def test_parse_bytes_says_what_it_expects_when_the_text_is_no_size(text):
    with pytest.raises(ValueError, match=r"is not a size; expected a number and one of .*for example 8GiB"):
        units.parse_bytes(text)
