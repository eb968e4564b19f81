"""Union-find over document numbers: clusters of documents that are linked, directly or by way of others.

One number a document (4 bytes, or 8 beyond 2^32 documents). The root of a cluster is its first document.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.unsignedinteger]

_STEP = 1 << 20


def number_dtype(documents: int) -> np.dtype[np.unsignedinteger]:
    """What holds the number of any of so many documents, and how many they are."""
    return np.dtype(np.uint32) if documents < 1 << 32 else np.dtype(np.uint64)


class Clusters:
    """Links may come in any order and often; the clusters are the same."""

    def __init__(self, documents: int) -> None:
        # the parent of a document is never a later one, so there are no cycles, and roots are first documents
        self._parents = np.arange(documents, dtype=number_dtype(documents))

    def link(self, ones: Numbers, others: Numbers) -> None:
        """Join the cluster of each of `ones` with that of its counterpart in `others`."""
        while True:
            ones, others = self._roots(ones), self._roots(others)
            apart = ones != others
            if not apart.any():
                return
            ones, others = ones[apart], others[apart]
            # a root may be hooked on to several at once: the least wins, and the next round joins the rest
            np.minimum.at(self._parents, np.maximum(ones, others), np.minimum(ones, others))

    def _roots(self, numbers: Numbers) -> Numbers:
        parents = self._parents[numbers]
        while not np.array_equal(roots := self._parents[parents], parents):
            self._parents[numbers] = roots  # shorter ways for the next who asks
            parents = roots
        return parents

    def roots(self) -> Numbers:
        """The first document of each document's cluster. A view: it changes with the next link."""
        for start in range(0, len(self._parents), _STEP):
            part = self._parents[start : start + _STEP]
            # all before `start` point to roots already
            while not np.array_equal(roots := self._parents[part], part):
                part[:] = roots
        return self._parents
