from __future__ import annotations

import pytest

from pipeline.quantities import binary_number, duration, share, short_number


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7.25, "7.25"), (999, "999"), (1000, "1K"), (2490, "2.49K"), (123_456, "123K"), (1.1e13, "11T")],
)
def test_short_numbers_have_three_digits(value: float, text: str) -> None:
    assert short_number(value) == text


@pytest.mark.parametrize(("value", "text"), [(768, "768"), (1024, "1K"), (1536, "1.5K"), (3 << 20, "3M")])
def test_binary_numbers_count_in_1024s(value: int, text: str) -> None:
    assert binary_number(value) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 5, "0%"), (0, 0, "0%"), (5, 5, "100%"), (1, 3, "33.3%"), (1, 200, "0.50%"), (1, 10**6, "<0.01%"),
     (10**6 - 1, 10**6, ">99.99%"), (995, 1000, "99.50%")],
)  # fmt: skip
def test_a_little_is_not_nothing_and_nearly_all_is_not_all(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min 01 s"), (7325, "2 h 02 min")]
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
