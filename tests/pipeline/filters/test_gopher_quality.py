"""Numbers by hand. `the of` are two stop words; `alpha` is a word of five letters."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.filter_config import GopherQualityConfig
from pipeline.filters.gopher_quality import rejection
from pipeline.filters.view import DocumentView

CONFIG = GopherQualityConfig(type="gopher_quality")
STOP = "the of "
GOOD = STOP + "alpha " * 48  # 50 words


def asked(text: str, **fields: Any) -> str | None:
    return rejection(DocumentView(text), CONFIG.model_copy(update=fields))


def test_an_empty_text_has_too_few_words() -> None:
    assert asked("") == "gopher_too_few_words"


def test_fifty_words_are_enough_and_marks_are_none() -> None:
    assert asked(GOOD) is None
    assert asked(STOP + "alpha " * 47) == "gopher_too_few_words"
    assert asked(STOP + "alpha " * 46 + "; ;") == "gopher_too_few_words"


def test_the_most_words_pass_and_one_more_does_not() -> None:
    assert asked(GOOD, max_words=50) is None
    assert asked(GOOD + "alpha", max_words=50) == "gopher_too_many_words"


def test_mean_word_length_of_three_passes() -> None:
    # 3 + 2 + 48·3 + 4 = 153 = 51·3; without the last word 149 / 50
    assert asked(STOP + "abc " * 48 + "abcd") is None
    assert asked(STOP + "abc " * 48) == "gopher_words_too_short"


def test_mean_word_length_of_ten_passes() -> None:
    # 3 + 2 + 47·10 + 25 = 500 = 50·10
    assert asked(STOP + "abcdefghij " * 47 + "x" * 25) is None
    assert asked(STOP + "abcdefghij " * 47 + "x" * 26) == "gopher_words_too_long"


def test_a_hash_for_each_ten_words_passes() -> None:
    # hashes are words of their own: 5 / 50, 6 / 51
    text = STOP + "alpha " * 43
    config = {"min_words": 40}
    assert asked(text + "# " * 5, **config) is None
    assert asked(text + "# " * 6, **config) == "gopher_too_many_hashes"


@pytest.mark.parametrize("ellipsis", ["... ", "\u2026 "])
def test_an_ellipsis_for_each_ten_words_passes(ellipsis: str) -> None:
    text = STOP + "alpha " * 43
    config = {"min_words": 40, "max_ellipsis_line_fraction": 1}
    assert asked(text + ellipsis * 5, **config) is None
    assert asked(text + ellipsis * 6, **config) == "gopher_too_many_ellipses"


@pytest.mark.parametrize("bullet", ["\u2022", "-", "  \u2022"])
def test_nine_of_ten_lines_may_be_bullets(bullet: str) -> None:
    line = "the of alpha alpha alpha alpha alpha alpha"
    assert asked("\n".join([f"{bullet} {line}"] * 9 + [line])) is None
    assert asked("\n".join([f"{bullet} {line}"] * 10)) == "gopher_too_many_bullet_lines"


def test_a_line_end_at_the_end_is_no_line_more() -> None:
    bullets = "- the of alpha alpha alpha alpha alpha alpha\n" * 8
    assert asked(bullets) == "gopher_too_many_bullet_lines"
    assert asked(bullets + "alpha\n") is None
    assert asked("", min_words=0, min_stop_words=0, min_mean_word_length=0, min_alphabetic_word_fraction=0) is None


def test_three_of_ten_lines_may_end_with_an_ellipsis() -> None:
    line = "the of alpha alpha alpha alpha alpha alpha alpha alpha alpha"
    assert asked("\n".join([line + "... "] * 3 + [line] * 7)) is None
    assert asked("\n".join([line + "\u2026"] * 4 + [line] * 6)) == "gopher_too_many_ellipsis_lines"


def test_four_of_five_words_have_a_letter() -> None:
    # 40 / 50 and 40 / 51; 48 / 60 and 48 / 61
    assert asked(STOP + "alpha " * 38 + "1 " * 10) is None
    assert asked(STOP + "alpha " * 38 + "1 " * 11) == "gopher_too_few_alphabetic_words"
    assert asked(STOP + "alpha " * 46 + "; " * 12, min_words=48) is None
    assert asked(STOP + "alpha " * 46 + "; " * 13, min_words=48) == "gopher_too_few_alphabetic_words"


def test_a_word_of_letters_and_digits_has_a_letter() -> None:
    assert asked(STOP + "1234x " * 48) is None


def test_two_different_stop_words_in_small_letters() -> None:
    assert asked("the the " + "alpha " * 48) == "gopher_too_few_stop_words"
    assert asked("the Of " + "alpha " * 48) == "gopher_too_few_stop_words"
    assert asked("with have " + "alpha " * 48) is None
    assert asked("alpha " * 50, min_stop_words=0) is None
