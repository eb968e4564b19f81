from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.document import LongText
from pipeline.filter_config import LengthConfig
from pipeline.filters import view
from pipeline.filters.length import rejection
from pipeline.filters.view import DocumentView


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
    config = LengthConfig(type="length", min_characters=3, max_characters=5)
    assert rejection(DocumentView(text), config) == reason


@given(parts=st.lists(st.text(alphabet="a \n\x1c\u3000", min_size=1, max_size=9), min_size=1, max_size=4))
def test_space_around_a_text_is_what_strip_takes(parts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "_LOOK", 2)
        assert DocumentView(LongText(parts)).stripped_characters == len("".join(parts).strip())
        for short in (0, 1 << 10):
            patch.setattr(view, "_SHORT", short)
            assert DocumentView("".join(parts)).stripped_characters == len("".join(parts).strip())


def test_nothing_but_space_is_dropped_by_default() -> None:
    assert rejection(DocumentView(" \n\t"), LengthConfig(type="length")) == "too_short"


def test_no_upper_bound_by_default() -> None:
    assert rejection(DocumentView("x" * 1_000_000), LengthConfig(type="length")) is None
