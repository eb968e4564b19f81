from __future__ import annotations

import pytest

from pipeline.config import LengthFilterConfig
from pipeline.filters.length import rejection


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "too_short"),
        ("ab", "too_short"),
        (" a b\n", None),  # three characters between the spaces
        ("   ab   ", "too_short"),
        ("éééé", None),  # characters, not bytes
        ("abcde", None),
        ("abcdef", "too_long"),
    ],
)
def test_bounds_are_characters_and_included(text: str, reason: str | None) -> None:
    assert rejection(text, LengthFilterConfig(min_characters=3, max_characters=5)) == reason


def test_nothing_but_space_is_dropped_by_default() -> None:
    assert rejection(" \n\t", LengthFilterConfig()) == "too_short"


def test_no_upper_bound_by_default() -> None:
    assert rejection("x" * 1_000_000, LengthFilterConfig()) is None
