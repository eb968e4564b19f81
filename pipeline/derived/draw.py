"""One random number a document, by seed, purpose and place in the stream: the same however the stream is cut.

Philox (Salmon et al., SC 2011), whose stream numpy keeps stable between versions.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.format import SPLITS, Split

MAX_SEED = (1 << 64) - 1

Purpose = Literal["sample", "shuffle"]
_PURPOSES: tuple[Purpose, ...] = ("sample", "shuffle")


class Draw:
    """The numbers of a split's documents in the order of the stream, uniform in [0, 2**64)."""

    def __init__(self, seed: int, *, purpose: Purpose, split: Split) -> None:
        assert 0 <= seed <= MAX_SEED
        domain = _PURPOSES.index(purpose) * len(SPLITS) + SPLITS.index(split)
        self._philox = np.random.Philox(key=np.array([seed, domain], dtype=np.uint64))

    def take(self, documents: int) -> NDArray[np.uint64]:
        """The numbers of the next `documents`."""
        return self._philox.random_raw(documents)
