from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.deduplication.config import ParagraphsConfig
from pipeline.deduplication.paragraphs import paragraphs_of, without

LINES = ParagraphsConfig(min_characters=3)
BLOCKS = ParagraphsConfig(min_characters=3, separator="blank_line")


def test_lines_that_are_long_enough_are_compared() -> None:
    assert list(paragraphs_of("abc\n  d \n\n efg ", LINES)) == [(0, "abc"), (3, " efg ")]


def test_blank_lines_part_blocks() -> None:
    text = "abc\ndef\n \t\n\n  ghi\n\nj"
    assert list(paragraphs_of(text, BLOCKS)) == [(0, "abc\ndef"), (1, "ghi")]
    assert without(text, {0}, BLOCKS) == "ghi\n\nj"
    assert without(text, {1, 2}, BLOCKS) == "abc\ndef"


@given(text=st.text(alphabet="ab \n", max_size=30), places=st.sets(st.integers(0, 9)))
def test_what_is_left_is_as_it_was(text: str, places: set[int]) -> None:
    lines = text.split("\n")
    assert without(text, places, LINES) == "\n".join(line for place, line in enumerate(lines) if place not in places)
    assert without(text, set(), LINES) == text


@pytest.mark.parametrize("config", [LINES, BLOCKS])
def test_nothing_is_left_of_a_text_without_its_only_paragraph(config: ParagraphsConfig) -> None:
    assert without("abc", {0}, config) == ""
