from __future__ import annotations

from typing import Any

import pytest

from pipeline.filter_config import FineWebConfig
from pipeline.filters.fineweb import rejection
from pipeline.filters.view import DocumentView

CONFIG = FineWebConfig(type="fineweb")


def asked(text: str, **fields: Any) -> str | None:
    return rejection(DocumentView(text), CONFIG.model_copy(update=fields))


def lines(count: int, *, end: str = ".", first: int = 0) -> list[str]:
    """Different lines of more than 30 characters, of more than ten words."""
    return [f"{number:02} and so on and on and on and on to it{end}" for number in range(first, first + count)]


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_a_text_without_lines_is_dropped(text: str) -> None:
    assert asked(text) == "fineweb_too_few_punctuated_lines"


def test_three_of_25_lines_with_a_terminal_mark_pass() -> None:
    assert asked("\n".join(lines(3) + lines(22, end="", first=3))) is None
    assert asked("\n".join(lines(2) + lines(23, end="", first=2))) == "fineweb_too_few_punctuated_lines"


def test_lines_of_white_space_are_none() -> None:
    assert asked("\n  \n".join(lines(3) + lines(22, end="", first=3)), max_newlines_per_word=1) is None


@pytest.mark.parametrize("end", ["!", "?", "...", "\u3002", "\u061f", "\u0964"])
def test_terminal_marks_of_many_scripts(end: str) -> None:
    assert asked("\n".join(lines(5, end=end))) is None


@pytest.mark.parametrize("end", ["", '."', ".)", ":", ";", "\u2026", ". "])
def test_what_is_no_terminal_mark(end: str) -> None:
    assert asked("\n".join(lines(5, end=end))) == "fineweb_too_few_punctuated_lines"


@pytest.mark.parametrize(("characters", "reason"), [(30, "fineweb_too_many_short_lines"), (31, None)])
def test_a_line_of_thirty_characters_is_short(characters: int, reason: str | None) -> None:
    text = "\n".join(f"{number} and so on and so".ljust(characters - 1, "x") + "." for number in range(9))
    assert asked(text) == reason


def test_67_of_100_lines_may_be_short() -> None:
    short = [f"{number} is in a short line." for number in range(68)]
    assert asked("\n".join(short[:67] + [line + "x" * 30 + "." for line in short[:33]])) is None
    assert asked("\n".join(short[:68] + [line + "x" * 30 + "." for line in short[:32]])) == (
        "fineweb_too_many_short_lines"
    )


def test_a_tenth_of_the_characters_may_be_in_duplicate_lines() -> None:
    # lines of 40 characters: 40 of 400 without newlines, 40 of 360
    distinct = [f"{number:02} and so on and on and on".ljust(39, "x") + "." for number in range(9)]
    assert asked("\n\n".join([*distinct, distinct[0]])) is None
    assert asked("\n\n".join([*distinct[:8], distinct[0]])) == "fineweb_duplicate_line_characters"


def test_three_newlines_for_ten_words_pass() -> None:
    # two lines of nine words and a full stop: 6 of 20, and 7 of 20
    line = "One and two and three and four and fifteen."
    other = "Six and two and three and four and fifteen."
    assert asked(line + "\n" * 6 + other) is None
    assert asked(line + "\n" * 7 + other) == "fineweb_too_many_newlines"
