"""Histograms of the kept documents, in whole numbers: a few dozen bins that units record and reports add up.

Lengths fall into half octaves: 1, 2, 3, 4, 6, 8, 12, 16, 24 … tokens. Tokens per byte fall into fiftieths; the last bin
holds all from 1 on. Sums of whole numbers do not depend on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

TOKENS_PER_BYTE_BINS = 50


class Histograms(BaseModel):
    """Counts by bin. Lists end at their last bin that is not empty. Lengths in tokens, the EOS included."""

    model_config = ConfigDict(extra="forbid")

    documents_by_length: list[int] = Field(default_factory=list)
    tokens_by_length: list[int] = Field(default_factory=list)
    documents_by_tokens_per_byte: list[int] = Field(default_factory=list)

    def add(self, *, tokens: Sequence[int], text_bytes: Sequence[int]) -> None:
        """Count documents, given the length and the bytes of text of each."""
        lengths, sizes = np.asarray(tokens, dtype=np.int64), np.asarray(text_bytes, dtype=np.int64)
        bins = np.searchsorted(_LENGTH_BOUNDS, lengths, side="right") - 1
        # the EOS is no part of the text
        fiftieths = (lengths - 1) * TOKENS_PER_BYTE_BINS // np.maximum(1, sizes)
        self.documents_by_length = _with(self.documents_by_length, np.bincount(bins))
        # as floats these sums are exact up to 2^53
        self.tokens_by_length = _with(self.tokens_by_length, np.bincount(bins, weights=lengths).astype(np.int64))
        self.documents_by_tokens_per_byte = _with(
            self.documents_by_tokens_per_byte, np.bincount(np.minimum(fiftieths, TOKENS_PER_BYTE_BINS))
        )

    def __add__(self, other: Histograms) -> Histograms:
        return Histograms(
            documents_by_length=_sums(self.documents_by_length, other.documents_by_length),
            tokens_by_length=_sums(self.tokens_by_length, other.tokens_by_length),
            documents_by_tokens_per_byte=_sums(self.documents_by_tokens_per_byte, other.documents_by_tokens_per_byte),
        )


def length_bound(index: int) -> int:
    """The smallest length in a bin: 1, 2, 3, 4, 6, 8, 12 …; bins 2k - 1 and 2k begin at 2^k and at 3·2^(k-1)."""
    if index == 0:
        return 1
    octave = (index + 1) // 2
    return 1 << octave if index % 2 else 3 << (octave - 1)


_LENGTH_BOUNDS = np.array([length_bound(index) for index in range(100)], dtype=np.int64)


def _with(counts: list[int], more: NDArray[np.int64]) -> list[int]:
    return _sums(counts, more.tolist())


def _sums(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip_longest(left, right, fillvalue=0)]
