from __future__ import annotations

from pipeline.text_table import aligned


def test_the_first_column_is_to_the_left_and_the_others_to_the_right() -> None:
    assert list(aligned([["source", "tokens"], ["a", "1"]])) == ["source  tokens", "a            1"]


def test_no_rows_are_no_lines() -> None:
    assert list(aligned([])) == []
