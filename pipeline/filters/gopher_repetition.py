"""The repetition filter of Gopher (Rae et al. 2021, arXiv:2112.11446, Appendix A1.1, Table A1).

A line, a paragraph or an n-gram of words is a duplicate where it stood before; its first occurrence is none. Duplicate
n-grams are found reading from the left: behind one, reading goes on where it ends, so that no character counts twice.
The characters of n-grams are those of their words, and for the most frequent n-gram one between two words.

Bounds come first, which are fast; the exact count decides where a bound is above the threshold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.filter_config import GopherRepetitionConfig
from pipeline.filters.view import DocumentView

# spreads the bits of a hash; any odd number would do
_ODD = np.uint64(0x9E3779B97F4A7C15)


def rejection(view: DocumentView, config: GopherRepetitionConfig) -> str | None:
    """`gopher_duplicate_lines`, `…_line_characters`, `…_paragraphs`, `…_paragraph_characters`, `gopher_top_2_gram` and
    `gopher_duplicate_5_gram`, with the n that was above its threshold.
    """
    return _by_lines(view, config) or _by_ngrams(view, config)


def _by_lines(view: DocumentView, config: GopherRepetitionConfig) -> str | None:
    characters = max(len(view.text), 1)
    for kind, pieces, max_fraction, max_character_fraction in (
        (
            "paragraph",
            view.paragraphs,
            config.max_duplicate_paragraph_fraction,
            config.max_duplicate_paragraph_character_fraction,
        ),
        (
            "line",
            [line for line in view.lines if line],
            config.max_duplicate_line_fraction,
            config.max_duplicate_line_character_fraction,
        ),
    ):
        distinct = set(pieces)
        if len(pieces) - len(distinct) > max_fraction * len(pieces):
            return f"gopher_duplicate_{kind}s"
        if sum(map(len, pieces)) - sum(map(len, distinct)) > max_character_fraction * characters:
            return f"gopher_duplicate_{kind}_characters"
    return None


def _by_ngrams(view: DocumentView, config: GopherRepetitionConfig) -> str | None:
    words = view.words
    # no n-gram occurs more often than any of its words: this bounds `top_characters`
    most_characters = max((count * len(word) for word, count in view.word_counts.items()), default=0)
    most_occurrences = max(view.word_counts.values(), default=0)
    for n, max_fraction in config.max_top_ngram_character_fraction.items():
        limit = max_fraction * len(view.text)
        if n * most_characters + (n - 1) * most_occurrences > limit and top_characters(words, n) > limit:
            return f"gopher_top_{n}_gram"
    maxima = config.max_duplicate_ngram_character_fraction
    if not maxima:
        return None
    bounds = DuplicateBounds(words)
    # a duplicate of more words lies wholly in duplicates of fewer: this bounds them all
    if bounds.characters(min(maxima)) <= min(maxima.values()) * len(view.text):
        return None
    for n, max_fraction in maxima.items():
        limit = max_fraction * len(view.text)
        if bounds.characters(n) > limit and duplicate_characters(words, n) > limit:
            return f"gopher_duplicate_{n}_gram"
    return None


def top_characters(words: Sequence[str], n: int) -> int:
    """Characters in all occurrences of the most frequent n-gram, the first of those that are equally frequent."""
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    if not counts:
        return 0
    top = max(counts, key=counts.__getitem__)
    return counts[top] * (sum(map(len, top)) + n - 1)


def duplicate_characters(words: Sequence[str], n: int) -> int:
    """Characters in the n-grams that stood before, as the module says."""
    seen: set[tuple[str, ...]] = set()
    characters = position = 0
    while position + n <= len(words):
        ngram = tuple(words[position : position + n])
        if ngram in seen:
            characters += sum(map(len, ngram))
            position += n
        else:
            seen.add(ngram)
            position += 1
    return characters


class DuplicateBounds:
    """`duplicate_characters` is never above `characters`: those of all words in any n-gram that stood before.

    N-grams are told apart by bits of a hash. Two that share them by chance, which the hashes of a process decide, only
    raise the bound, so that the exact count, not chance, decides.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._lengths = np.fromiter(map(len, words), np.int64, len(words))
        self._hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)

    def characters(self, n: int) -> int:
        count = len(self._lengths) - n + 1
        if count < 2:
            return 0
        hashes = np.zeros(count, np.uint64)
        for start in range(n):
            hashes *= _ODD
            hashes += self._hashes[start : start + count]
        # the position takes the place of the last bits: equal n-grams are neighbours in the order of their positions
        position_bits = np.uint64((1 << count.bit_length()) - 1)
        keys = np.sort((hashes & ~position_bits) | np.arange(count, dtype=np.uint64))
        again = (keys[1:] & position_bits)[keys[1:] ^ keys[:-1] <= position_bits].astype(np.int64)
        steps = np.zeros(len(self._lengths) + 1, np.int64)
        steps[again] += 1
        steps[again + n] -= 1
        return int(self._lengths[np.cumsum(steps[:-1]) > 0].sum())
