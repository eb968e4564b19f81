"""The repetition filter of Gopher (Rae et al. 2021, arXiv:2112.11446, Appendix A1.1, Table A1).

A line, a paragraph or an n-gram of words is a duplicate where it stood before; its first occurrence is none. Duplicate
n-grams are found reading from the left: behind one, reading goes on where it ends, so that no character counts twice.
The characters of n-grams are those of their words, and for the most frequent n-gram one between two words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.filter_config import GopherRepetitionConfig
from pipeline.filters.view import DocumentView


def rejection(view: DocumentView, config: GopherRepetitionConfig) -> str | None:
    """`gopher_duplicate_lines`, `…_line_characters`, `…_paragraphs`, `…_paragraph_characters`, `gopher_top_2_gram` and
    `gopher_duplicate_5_gram`, with the n that was above its threshold.
    """
    return _by_lines(view, config) or _by_top_ngrams(view, config) or _by_duplicate_ngrams(view, config)


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


def _by_top_ngrams(view: DocumentView, config: GopherRepetitionConfig) -> str | None:
    words = view.words
    for n, max_fraction in config.max_top_ngram_character_fraction.items():
        counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
        if not counts:
            continue
        # the first of those that are equally frequent
        top = max(counts, key=counts.__getitem__)
        if counts[top] * (sum(map(len, top)) + n - 1) > max_fraction * len(view.text):
            return f"gopher_top_{n}_gram"
    return None


def _by_duplicate_ngrams(view: DocumentView, config: GopherRepetitionConfig) -> str | None:
    maxima = config.max_duplicate_ngram_character_fraction
    if not maxima or len(view.words) < min(maxima):
        return None
    hashes = np.fromiter(map(hash, view.words), np.int64, len(view.words)).view(np.uint64)
    lengths = np.fromiter(map(len, view.words), np.int64, len(view.words))
    # a duplicate of more words lies wholly in duplicates of fewer: this bounds them all
    bound = _repeated_characters(hashes, lengths, min(maxima))
    if bound <= min(maxima.values()) * len(view.text):
        return None
    for n, max_fraction in maxima.items():
        limit = max_fraction * len(view.text)
        if _repeated_characters(hashes, lengths, n) > limit and duplicate_characters(view.words, n) > limit:
            return f"gopher_duplicate_{n}_gram"
    return None


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


def _repeated_characters(hashes: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """At least `duplicate_characters`: those of all words that lie in any n-gram that stood before, overlaps included.

    n-grams are told apart by 64 bits. Two that share them by chance, which the hashes of a process decide, only raise
    the bound, so that the exact count, not chance, decides.
    """
    count = len(hashes) - n + 1
    if count < 2:
        return 0
    ngrams = np.zeros(count, np.uint64)
    for start in range(n):
        ngrams *= np.uint64(0x9E3779B97F4A7C15)
        ngrams += hashes[start : start + count]
    order = np.argsort(ngrams, kind="stable")
    again = order[1:][ngrams[order[1:]] == ngrams[order[:-1]]]
    if not again.size:
        return 0
    steps = np.zeros(len(hashes) + 1, np.int64)
    steps[again] += 1
    steps[again + n] -= 1
    return int(lengths[np.cumsum(steps[:-1]) > 0].sum())
