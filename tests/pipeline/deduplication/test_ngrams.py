from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.deduplication import ngrams
from pipeline.deduplication.ngrams import WordHasher, mix, ngram_hashes, pieces_of


def test_a_word_is_hashed_as_it_is_compared_and_punctuation_is_left_out() -> None:
    expected = [xxhash.xxh3_64_intdigest(word) for word in (b"the", b"cafe", b"00")]
    assert WordHasher()("The, café -- 42!").tolist() == expected
    assert WordHasher()("?!").tolist() == WordHasher()("").tolist() == []


def test_hashes_do_not_depend_on_the_words_met_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "_MAX_REMEMBERED_WORDS", 2)
    hasher = WordHasher()
    text = "one two three four one two three four " + "five" * 20
    assert hasher(text).tolist() == [xxhash.xxh3_64_intdigest(word.encode()) for word in text.split()]
    assert len(hasher._known) <= 2


def test_a_long_text_is_cut_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{number}x" for number in range(500))
    whole = WordHasher()(text).tolist()
    monkeypatch.setattr(ngrams, "SLICE_CHARACTERS", 100)
    assert WordHasher()(text).tolist() == whole
    assert len(WordHasher()("x" * 5000)) == 50  # no space near: cut all the same


@given(documents=st.lists(st.lists(st.integers(1, 5), max_size=8), min_size=1, max_size=6), size=st.integers(1, 5))
def test_ngrams_stay_within_their_document(documents: list[list[int]], size: int) -> None:
    words = np.array([word for document in documents for word in document], np.uint64)
    hashes, starts = ngram_hashes(words, np.array([len(document) for document in documents]), ngram_words=size)
    expected_starts, expected = [], []
    first = 0
    for document in documents:
        for start in range(len(document) - size + 1):
            expected_starts.append(first + start)
            expected.append(tuple(document[start : start + size]))
        first += len(document)
    assert starts.tolist() == expected_starts
    assert len(set(hashes.tolist())) == len(set(expected))
    assert dict(zip(expected, hashes.tolist(), strict=True)) == dict(
        zip(reversed(expected), reversed(hashes.tolist()), strict=True)
    )


def test_the_order_of_words_counts() -> None:
    hashes, _ = ngram_hashes(np.array([7, 9, 7], np.uint64), np.array([3]), ngram_words=2)
    assert hashes[0] != hashes[1]


def test_mix_is_the_finalizer_of_murmurhash3() -> None:
    # of 1, by hand: 1; 0xff51afd7ed558ccd ^ its upper 31 bits; times 0xc4ceb9fe1a85ec53; and again
    assert hex(mix(np.array([1], np.uint64))[0]) == "0xb456bcfc34c2cb2c"


@given(length=st.integers(0, 60), size=st.integers(1, 6), piece=st.integers(1, 9))
def test_pieces_hold_every_ngram_once(length: int, size: int, piece: int) -> None:
    words = np.arange(length, dtype=np.uint64)
    pieces = list(pieces_of(words, ngram_words=size, piece_words=piece))
    assert pieces[0][0] == 0
    found = [(offset + start, part[start]) for offset, part in pieces for start in range(len(part) - size + 1)]
    assert found == [(start, start) for start in range(length - size + 1)]
