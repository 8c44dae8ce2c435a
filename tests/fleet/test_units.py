"""Sizes, durations and shares as people write them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.units import (
    Unfit,
    parse_count,
    parse_duration_ns,
    parse_share,
    parse_size,
    show_duration,
    show_size,
    shown,
)

BAD_SIZES = [
    ("1GB", "write 1GiB or bytes"),
    ("1 Gib/s", 'write bytes or a size like "512GiB"'),
    ("0.3KiB", 'write bytes or a size like "512GiB"'),
    ("1XiB", "known: KiB, MiB, GiB, TiB"),
    (-1, 'write bytes or a size like "512GiB"'),
    (True, 'write bytes or a size like "512GiB"'),
    (1.5, 'write bytes or a size like "512GiB"'),
    ("", 'write bytes or a size like "512GiB"'),
]


@pytest.mark.parametrize(("value", "right"), BAD_SIZES)
def test_a_size_that_is_none_says_what_would_be_right(value: object, right: str) -> None:
    with pytest.raises(Unfit) as caught:
        parse_size(value)
    assert caught.value.right == right


SIZES = [
    ("512GiB", 512 << 30),
    ("2M", 2 << 20),
    ("1.5 GiB", 3 << 29),
    ("7", 7),
    (8, 8),
    ("4k", 4096),
]


@pytest.mark.parametrize(("value", "size"), SIZES)
def test_a_size_is_binary(value: object, size: int) -> None:
    assert parse_size(value) == size


DURATIONS = [
    ("30s", 30 * 10**9),
    ("1h30min", 5400 * 10**9),
    ("0.25 s", 250 * 10**6),
    ("250 ms", 250 * 10**6),
    ("5us", 5000),
    ("5µs", 5000),
    ("0s", 0),
]


@pytest.mark.parametrize(("value", "ns"), DURATIONS)
def test_a_duration_is_nanoseconds(value: str, ns: int) -> None:
    assert parse_duration_ns(value) == ns


@pytest.mark.parametrize("value", [30, "31", "5 minutes", "-5s", "s", "", "0.1ns", "1h oops", None])
def test_a_duration_needs_a_unit_that_is_known(value: object) -> None:
    with pytest.raises(Unfit):
        parse_duration_ns(value)


SHARES = [(8, 8), ("25%", 6), ("100 %", 24), ("12.5%", 3), ("4.2%", 1)]


@pytest.mark.parametrize(("value", "share"), SHARES)
def test_a_share_is_a_number_or_a_percentage_rounded_down(value: object, share: int) -> None:
    assert parse_share(value, 24, 1, 100) == share


@pytest.mark.parametrize("value", [0, 101, "4%", "101%", "%", "1e2%", "5", 2.5, True])
def test_a_share_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(Unfit):
        parse_share(value, 24, 1, 100)


def test_a_number_in_quotes_is_told_so() -> None:
    with pytest.raises(Unfit) as caught:
        parse_count("3", 0, 9)
    assert caught.value.right == "write it without quotes"


SHOWN = [
    ({"a": 1}, "a table"),
    ([1], "a list"),
    (True, "true"),
    (1 << 4000, "a huge number"),
    ("a\nb", '"a?b"'),
    ("x" * 100, '"' + "x" * 59 + "…"),
]


@pytest.mark.parametrize(("value", "text"), SHOWN)
def test_a_value_is_shown_short_and_on_one_line(value: object, text: str) -> None:
    assert shown(value) == text


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.just([1]),
    st.from_regex(r"-?[0-9.]{1,6} ?([KMGT]i?B?|[num]?s|min|h|d|%)?", fullmatch=True),
)


@given(JUNK)
def test_anything_is_an_integer_or_unfit(value: object) -> None:
    for parse in (parse_size, parse_duration_ns, lambda v: parse_share(v, 100, 0, 1000)):
        with suppress(Unfit):
            assert type(parse(value)) is int


@given(st.integers(0, 1 << 62))
def test_what_is_shown_can_be_read_back(number: int) -> None:
    assert parse_duration_ns(show_duration(number)) == number
    text = show_size(number)
    assert "." in text or parse_size(text) == number
