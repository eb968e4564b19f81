"""Words and word n-grams as 64-bit hashes, in NumPy arrays.

Hashes depend on the text alone: xxh3 and integer arithmetic, equal on every platform and in every version.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.deduplication.normalization import comparable_words

Hashes = NDArray[np.uint64]

# a text is cut where words are found, so that a list of words never grows with the document
SLICE_CHARACTERS = 1 << 20

# documents are worked on in batches of about so many words, so that NumPy's calls cost little; longer ones in pieces
BATCH_WORDS = 1 << 16

_MAX_REMEMBERED_WORDS = 1 << 18
_MAX_REMEMBERED_BYTES = 64

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


class WordHasher:
    """Hashes the words of texts, remembering those that it has met."""

    def __init__(self) -> None:
        self._known = _KnownWords()

    def __call__(self, text: str) -> Hashes:
        """The hash of every comparable word in order."""
        slices = [self._of_words(comparable_words(part)) for part in slices_of(text)]
        return slices[0] if len(slices) == 1 else np.concatenate(slices)

    def _of_words(self, words: list[bytes]) -> Hashes:
        return np.fromiter(map(self._known.__getitem__, words), np.uint64, count=len(words))


class _KnownWords(dict[bytes, int]):
    """The hash of a word, never 0; forgets all when it is full."""

    def __missing__(self, word: bytes) -> int:
        value = xxhash.xxh3_64_intdigest(word) or 1
        if len(word) <= _MAX_REMEMBERED_BYTES:
            if len(self) >= _MAX_REMEMBERED_WORDS:
                self.clear()
            self[word] = value
        return value


def ngram_hashes(
    word_hashes: Hashes, counts: NDArray[np.int64], *, ngram_words: int
) -> tuple[Hashes, NDArray[np.int64]]:
    """The n-grams of several documents, whose words lie end to end.

    `counts` are words a document. Returns the hashes of the n-grams and the place of each n-gram's first word.
    """
    places = max(0, len(word_hashes) - ngram_words + 1)
    hashes = word_hashes[:places].copy()
    for offset in range(1, ngram_words):
        hashes *= _MULTIPLIER
        hashes += word_hashes[offset : offset + places]
    ends = np.repeat(np.cumsum(counts), counts)[:places]
    starts = np.flatnonzero(np.arange(ngram_words, ngram_words + places) <= ends)
    return mix(hashes[starts]), starts


def pieces_of(words: Hashes, *, ngram_words: int, piece_words: int = BATCH_WORDS) -> Iterator[tuple[int, Hashes]]:
    """Offset and words of pieces that hold every n-gram of the words once; at least one, if an empty one."""
    overlap = ngram_words - 1
    for start in range(0, max(1, len(words) - overlap), piece_words):
        yield start, words[start : start + piece_words + overlap]


def mix(hashes: Hashes) -> Hashes:
    """Spread every bit over all 64, in place (the finalizer of MurmurHash3); one to one."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes ^= hashes >> np.uint64(33)
        hashes *= np.uint64(multiplier)
    hashes ^= hashes >> np.uint64(33)
    return hashes


def slices_of(text: str) -> Iterator[str]:
    """The text in parts of about SLICE_CHARACTERS, cut at a space where there is one near."""
    start = 0
    while len(text) - start > SLICE_CHARACTERS:
        stop = start + SLICE_CHARACTERS
        space = text.find(" ", stop, stop + 1000)
        stop = space if space >= 0 else stop
        yield text[start:stop]
        start = stop
    yield text[start:]
