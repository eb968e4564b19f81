from __future__ import annotations

import pytest

from pipeline.deduplication.normalization import comparable_bytes, comparable_word


@pytest.mark.parametrize(
    ("one", "other"),
    [("a b\n", "a  b"), (" a\r\n\tb\f\v", "ab"), ("\u00e9 x", "e\u0301\nx"), ("", " \n")],
)
def test_white_space_and_composition_do_not_count(one: str, other: str) -> None:
    assert comparable_bytes(one) == comparable_bytes(other)


@pytest.mark.parametrize(("one", "other"), [("a", "A"), ("a.", "a"), ("1", "2"), ("a\u00a0b", "ab")])
def test_all_else_counts(one: str, other: str) -> None:
    assert comparable_bytes(one) != comparable_bytes(other)


@pytest.mark.parametrize(
    ("word", "comparable"),
    [
        ("Word", "word"),
        ("don't", "dont"),
        ("Ärger", "arger"),
        ("A\u0301b", "ab"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("1,024", "0000"),
        ("٣x", "0x"),
        ("x²", "x0"),
        ("ﬁn", "fin"),
        ("हिन्दी", "हिनदी"),  # the virama is a mark like an accent; vowel signs stay
        ("--", ""),
        ("🙂", ""),
        ("\u0301", ""),
        ("東京", "東京"),
    ],
)
def test_words_are_compared_without_case_accents_punctuation_and_digits(word: str, comparable: str) -> None:
    assert comparable_word(word) == comparable
