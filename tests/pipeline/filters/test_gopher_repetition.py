from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filter_config import GopherRepetitionConfig
from pipeline.filters.gopher_repetition import (
    DuplicateBounds,
    duplicate_characters,
    rejection,
    top_characters,
)
from pipeline.filters.view import DocumentView

NOTHING: dict[str, Any] = {
    "max_duplicate_line_fraction": 1,
    "max_duplicate_line_character_fraction": 1,
    "max_duplicate_paragraph_fraction": 1,
    "max_duplicate_paragraph_character_fraction": 1,
    "max_top_ngram_character_fraction": {},
    "max_duplicate_ngram_character_fraction": {},
}


def asked(text: str, **fields: Any) -> str | None:
    """With the rules of these fields alone."""
    config = GopherRepetitionConfig.model_validate({"type": "gopher_repetition"} | NOTHING | fields)
    return rejection(DocumentView(text), config)


def lines(distinct: int, *, copies: int, between: str = "\n") -> str:
    """`distinct` lines of four characters, and `copies` more of the last."""
    made = [f"{number:04}" for number in range(distinct)]
    return between.join(made + made[-1:] * copies)


def test_three_of_ten_lines_may_be_duplicates() -> None:
    assert asked(lines(7, copies=3), max_duplicate_line_fraction=0.3) is None
    assert asked(lines(6, copies=4), max_duplicate_line_fraction=0.3) == "gopher_duplicate_lines"


def test_empty_lines_are_none() -> None:
    assert asked(lines(7, copies=3, between="\n\n\n"), max_duplicate_line_fraction=0.3) is None


def test_three_of_ten_paragraphs_may_be_duplicates() -> None:
    assert asked(lines(7, copies=3, between="\n\n"), max_duplicate_paragraph_fraction=0.3) is None
    text = lines(6, copies=4, between="\n\n")
    assert asked(text, max_duplicate_paragraph_fraction=0.3) == "gopher_duplicate_paragraphs"
    assert asked(text.replace("\n\n", "\n"), max_duplicate_paragraph_fraction=0.3) is None


def test_white_space_around_the_text_hides_no_duplicate_paragraph() -> None:
    text = lines(6, copies=4, between="\n\n")
    assert asked(f" {text} \n", max_duplicate_paragraph_fraction=0.3) == "gopher_duplicate_paragraphs"
    assert asked("a\n\na\n", max_duplicate_paragraph_fraction=0.3) == "gopher_duplicate_paragraphs"


def test_a_fifth_of_the_characters_may_be_in_duplicate_lines() -> None:
    # 4 of 3 + 4·4 + 1 = 20 characters, of 19
    assert asked("1111\n2222\n3333\n1111\n", max_duplicate_line_character_fraction=0.2) is None
    text = "1111\n2222\n3333\n1111"
    assert asked(text, max_duplicate_line_character_fraction=0.2) == "gopher_duplicate_line_characters"


def test_a_fifth_of_the_characters_may_be_in_duplicate_paragraphs() -> None:
    # 4 of 4·3 + 2·2 + 4 = 20 characters, of 19
    text = "1111\n\n2222333\n\n1111"
    assert asked(text + "\n", max_duplicate_paragraph_character_fraction=0.2) is None
    assert asked(text, max_duplicate_paragraph_character_fraction=0.2) == "gopher_duplicate_paragraph_characters"


@pytest.mark.parametrize(("n", "characters"), [(2, 2 * 5), (3, 2 * 8), (4, 2 * 11)])
def test_the_most_frequent_ngram_counts_with_its_spaces(n: int, characters: int) -> None:
    # `aa bb cc dd` twice, and one more word after each
    text = "aa bb cc dd ee aa bb cc dd ff"
    assert len(text) == 29
    assert asked(text, max_top_ngram_character_fraction={n: characters / 29 + 1e-9}) is None
    assert asked(text, max_top_ngram_character_fraction={n: characters / 29 - 1e-9}) == f"gopher_top_{n}_gram"


def test_of_equally_frequent_ngrams_the_first_counts() -> None:
    # `aaaa bbbb` and `cc dd` each once
    assert asked("aaaa bbbb cc dd", max_top_ngram_character_fraction={2: 0.5}) == "gopher_top_2_gram"
    assert asked("cc dd aaaa bbbb", max_top_ngram_character_fraction={2: 0.5}) is None


def test_a_text_shorter_than_an_ngram_passes() -> None:
    assert rejection(DocumentView("word"), GopherRepetitionConfig(type="gopher_repetition")) is None
    assert rejection(DocumentView(""), GopherRepetitionConfig(type="gopher_repetition")) is None


def test_duplicate_ngrams_count_from_their_second_occurrence() -> None:
    words = ["a", "bb", "ccc", "dddd", "eeeee", "a", "bb", "ccc", "dddd", "eeeee"]
    assert duplicate_characters(words, 5) == 15
    text = " ".join(words)
    assert len(text) == 39
    assert asked(text, max_duplicate_ngram_character_fraction={5: 15 / 39 + 1e-9}) is None
    assert asked(text, max_duplicate_ngram_character_fraction={5: 15 / 39 - 1e-9}) == "gopher_duplicate_5_gram"


def test_overlapping_duplicates_count_once() -> None:
    # a a a a a a: from the left `a a` is new at 0, seen at 1 (then 3), and from 5 on there is none
    assert duplicate_characters(["a"] * 6, 2) == 4


def test_each_n_has_its_own_threshold() -> None:
    text = "a b c d e f g a b c d e f g"  # 27 characters; 5 of 27 in 5-grams, 6 of 27 in 6-grams, 7 of 27 in 7-grams
    assert asked(text, max_duplicate_ngram_character_fraction={5: 0.2, 7: 0.25}) == "gopher_duplicate_7_gram"
    assert asked(text, max_duplicate_ngram_character_fraction={5: 0.2, 7: 0.26}) is None
    assert asked(text, max_duplicate_ngram_character_fraction={5: 0.18, 7: 0.26}) == "gopher_duplicate_5_gram"


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=60), st.integers(1, 6))
def test_bounds_are_never_below_the_exact_counts_nor_those_of_longer_duplicates(words: list[str], n: int) -> None:
    bounds = DuplicateBounds(words)
    duplicates = [bounds.characters(size) for size in (n, n + 1, n + 3)]
    assert duplicates[0] >= duplicate_characters(words, n)
    assert duplicates == sorted(duplicates, reverse=True)


def test_the_bound_is_zero_where_nothing_repeats() -> None:
    words = [f"{number:02}" for number in range(100)]
    assert DuplicateBounds(words).characters(5) == 0


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "d."]), max_size=60), st.floats(0, 0.6))
def test_decisions_equal_those_of_the_exact_counts(pieces: list[str], fraction: float) -> None:
    text = " ".join(pieces)
    words = DocumentView(text).words
    for field, kind, count in (
        ("max_duplicate_ngram_character_fraction", "duplicate", duplicate_characters),
        ("max_top_ngram_character_fraction", "top", top_characters),
    ):
        maxima = {2: fraction, 3: fraction / 2, 5: fraction / 3}
        exact = (n for n, maximum in maxima.items() if count(words, n) > maximum * len(text))
        expected = next((f"gopher_{kind}_{n}_gram" for n in exact), None)
        assert asked(text, **{field: maxima}) == expected


@given(st.lists(st.sampled_from(["a", "bb"]), max_size=40), st.integers(1, 4))
def test_duplicate_characters_equal_a_count_by_positions(words: list[str], n: int) -> None:
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    counted: set[int] = set()
    began: set[int] = set()
    for start in range(len(ngrams)):
        if start in counted:
            continue
        if any(ngrams[before] == ngrams[start] for before in began):
            counted.update(range(start, start + n))
        else:
            began.add(start)
    assert duplicate_characters(words, n) == sum(len(words[position]) for position in counted)


def test_the_defaults_are_those_of_table_a1() -> None:
    config = GopherRepetitionConfig(type="gopher_repetition")
    assert config.max_top_ngram_character_fraction == {2: 0.20, 3: 0.18, 4: 0.16}
    assert config.max_duplicate_ngram_character_fraction == {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
