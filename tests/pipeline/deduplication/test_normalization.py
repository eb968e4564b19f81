from __future__ import annotations

import unicodedata

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.deduplication.normalization import comparable_bytes, comparable_digests, comparable_words


@pytest.mark.parametrize(
    ("one", "other"),
    [("a b\n", "a  b"), (" a\r\n\tb\f\v", "ab"), ("a\x00b\x1c", "ab"), ("\u00e9 x", "e\u0301\nx"), ("", " \n")],
)
def test_white_space_control_characters_and_composition_do_not_count(one: str, other: str) -> None:
    assert comparable_bytes(one) == comparable_bytes(other)


@given(st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from(" \t\n\r\v\f\x1cab")), max_size=20))
def test_digests_of_many_texts_are_those_of_each(texts: list[str]) -> None:
    expected = [xxhash.xxh3_128_digest(comparable_bytes(text)) for text in texts]
    assert list(comparable_digests(texts)) == expected


@pytest.mark.parametrize("words", ["word \n", "w\u00f6rd e\u0301 \n", "\U0001f600 \x00"])
@pytest.mark.parametrize("lengths", [[60_000, 6_000, 1], [1, 70_000, 1], [65_536], [65_537, 0], [30_000] * 9])
def test_digests_of_long_texts_are_those_of_each(lengths: list[int], words: str) -> None:
    texts = [(words * length)[:length] for length in lengths]
    expected = [xxhash.xxh3_128_digest(comparable_bytes(text)) for text in texts]
    assert list(comparable_digests(texts)) == expected


@pytest.mark.parametrize(("one", "other"), [("a", "A"), ("a.", "a"), ("1", "2"), ("a\u00a0b", "ab"), ("a\x7fb", "ab")])
def test_all_else_counts(one: str, other: str) -> None:
    assert comparable_bytes(one) != comparable_bytes(other)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The end.", "the end"),
        ("don't don\u2019t", "dont dont"),
        ("snake_case well-known", "snake case well known"),
        ("Ärger A\u0301b", "arger ab"),
        ("STRASSE Straße", "strasse strasse"),
        ("1,024 in 2024", "0 000 in 0000"),
        ("٣x x²", "0x x0"),
        ("\ufb01n", "fin"),
        ("\u201cquoted\u201d\u2014here", "quoted here"),
        ("हिन्दी", "हनद"),
        ("東京は", "東 京 は"),
        ("a東b", "a 東 b"),
        ("-- 🙂 \u0301", ""),
        ("", ""),
    ],
)
def test_words_are_compared_without_case_accents_punctuation_and_digits(text: str, words: str) -> None:
    assert comparable_words(text) == words.encode().split()


@given(text=st.text())
def test_words_are_those_of_the_rules_letter_by_letter(text: str) -> None:
    letters = []
    for letter in unicodedata.normalize("NFKD", text.casefold().replace("'", "")):
        if letter.isdecimal():
            letters.append("0")
        elif letter.isalnum():
            letters.append(letter)
        elif letter not in "\u2018\u2019\u02bc" and not unicodedata.category(letter).startswith("M"):
            letters.append(" ")
    spaced = [
        f" {letter} " if any(low <= letter <= high for low, high in UNSPACED) else letter for letter in "".join(letters)
    ]
    assert comparable_words(text) == "".join(spaced).encode().split()


UNSPACED = (
    ("\u0e00", "\u0eff"),
    ("\u1000", "\u109f"),
    ("\u1780", "\u17ff"),
    ("\u3040", "\u30ff"),
    ("\u3400", "\u9fff"),
    ("\U00020000", "\U0003ffff"),
)
