"""MinHash signatures, reduced to one hash a band (Broder 1997; bands as in FineWeb, arXiv:2406.17557, §3.4).

A MinHash is the least a·x + b mod 2^64 over the n-grams x of a document; a and b come of the seed. Two documents that
have a band hash in common are near duplicates. NumPy, not a library: rensa is faster still (6 against 25 microseconds
a document of 500 n-grams, where finding its words takes longer than either), but other versions of it make other
signatures, and equal configs must make equal datasets.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import xxhash

from pipeline.deduplication.config import MinhashConfig
from pipeline.deduplication.ngrams import Hashes, mix, ngram_hashes, pieces_of

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class MinHasher:
    """Band hashes of documents, of the hashes of their words."""

    def __init__(self, config: MinhashConfig) -> None:
        self._config = config
        self._permutations = [
            (np.uint64(_draw(config.seed, "multiplier", row) | 1), np.uint64(_draw(config.seed, "summand", row)))
            for row in range(config.bands * config.rows_per_band)
        ]

    def band_hashes(self, words: Sequence[Hashes]) -> Hashes:
        """`[bands, documents]`. A document of fewer words than an n-gram is one n-gram of all of them."""
        if len(words) > 1:
            return self._bands_of(self._minhashes(words))
        pieces = pieces_of(words[0], ngram_words=self._config.ngram_words)
        return self._bands_of(functools.reduce(np.minimum, (self._minhashes([piece]) for _, piece in pieces)))

    def _minhashes(self, words: Sequence[Hashes]) -> Hashes:
        """`[bands * rows_per_band, documents]`."""
        length = self._config.ngram_words
        padded = [some if len(some) >= length else np.pad(some, (0, length - len(some))) for some in words]
        counts = np.array([len(some) for some in padded])
        ngrams, _ = ngram_hashes(np.concatenate(padded), counts, ngram_words=length)
        ends = np.cumsum(counts - (length - 1))
        starts = np.concatenate(([0], ends[:-1]))
        least = np.empty((len(self._permutations), len(words)), np.uint64)
        permuted = np.empty_like(ngrams)
        for row, (multiplier, summand) in enumerate(self._permutations):
            np.multiply(ngrams, multiplier, out=permuted)
            np.add(permuted, summand, out=permuted)
            np.minimum.reduceat(permuted, starts, out=least[row])
        return least

    def _bands_of(self, minhashes: Hashes) -> Hashes:
        hashes = np.zeros((self._config.bands, minhashes.shape[1]), np.uint64)
        by_band = minhashes.reshape(self._config.bands, self._config.rows_per_band, -1)
        for row in range(self._config.rows_per_band):
            hashes *= _MULTIPLIER
            hashes += by_band[:, row]
            mix(hashes)
        return hashes


def _draw(seed: int, name: str, row: int) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed} {name} {row}".encode())
