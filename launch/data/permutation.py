"""A keyed permutation of range(size) as arithmetic: no array of the order, none of its memory, no start-up.

    index = l · b + r   with  l in Z_a, r in Z_b,  a = ⌈√size⌉, b = ⌈size / a⌉
    round:  l ← l + F(key, r) mod a   or   r ← r + F(key, l) mod b,   in turn
    while the result is not below size: again (cycle walking)

This is the generalised Feistel cipher of Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002),
§4–5. A round is undone by subtracting what it added, so any F gives a bijection of Z_a × Z_b, and walking the cycles
gives one of range(size). Since a · b < size + a, fewer than one index in √size walks at all, where the nearest power
of four would make three in four walk. Statistical quality is what is wanted here, not secrecy.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import numpy as np
from numpy.typing import NDArray

MAX_SIZE = 1 << 48
ROUNDS = 6  # four pass the tests of large sizes; two more are cheap and help the smallest ones
_BLOCK = 1 << 13  # indices at a time: the temporaries of a block stay in the second-level cache
_MASK = (1 << 64) - 1
_MULTIPLIER = np.uint64(0xFF51AFD7ED558CCD)  # MurmurHash3's 64-bit finaliser
_SHIFT = np.uint64(33)
_HALF = np.uint64(32)


_Step = Callable[[NDArray[np.uint64]], NDArray[np.uint64]]


class Permutation:
    """One of the permutations of range(size), chosen by a key of 64 bits. 1 ≤ size ≤ 2**48."""

    def __init__(self, size: int, key: int) -> None:
        assert 1 <= size <= MAX_SIZE, size
        self.size = size
        rows = isqrt(size - 1) + 1
        self._rows = np.uint64(rows)
        self._columns = np.uint64(-(-size // rows))
        # mixed first: neighbouring keys must not share round keys
        state = _split_mix(key)
        self._round_keys = [np.uint64(_split_mix(state + number)) for number in range(ROUNDS)]

    def apply(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each index goes; same shape. Every index is in range(size)."""
        return self._walk(indices, self._encrypt)

    def invert(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """What `apply` takes to each index; same shape."""
        return self._walk(indices, self._decrypt)

    def _walk(self, indices: NDArray[np.int64], step: _Step) -> NDArray[np.int64]:
        """Steps along the cycles of Z_a × Z_b until they are below the size again."""
        flat = np.ascontiguousarray(indices, dtype=np.int64).reshape(-1)
        assert not len(flat) or (flat.min() >= 0 and flat.max() < self.size), f"an index outside range({self.size})"
        result = np.empty_like(flat)
        for start in range(0, len(flat), _BLOCK):
            values = step(flat[start : start + _BLOCK].astype(np.uint64))
            outside = np.flatnonzero(values >= self.size)
            while len(outside):
                values[outside] = step(values[outside])
                outside = outside[values[outside] >= self.size]
            result[start : start + _BLOCK] = values
        return result.reshape(np.shape(indices))

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = np.divmod(values, self._columns)
        for number, key in enumerate(self._round_keys):
            if number % 2 == 0:
                left = _add(left, _hash_below(right, key, self._rows), self._rows)
            else:
                right = _add(right, _hash_below(left, key, self._columns), self._columns)
        return left * self._columns + right

    def _decrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = np.divmod(values, self._columns)
        for number, key in reversed(list(enumerate(self._round_keys))):
            if number % 2 == 0:
                left = _add(left, self._rows - _hash_below(right, key, self._rows), self._rows)
            else:
                right = _add(right, self._columns - _hash_below(left, key, self._columns), self._columns)
        return left * self._columns + right


def _hash_below(values: NDArray[np.uint64], key: np.uint64, bound: np.uint64) -> NDArray[np.uint64]:
    """A hash of each value under the key, in range(bound); bound is below 2**25."""
    mixed = values ^ key
    mixed *= _MULTIPLIER
    mixed ^= mixed >> _SHIFT
    mixed *= _MULTIPLIER
    mixed >>= _HALF
    # the upper half times the bound, shifted back, is uniform below the bound without a division (Lemire 2019)
    mixed *= bound
    mixed >>= _HALF
    return mixed


def _add(values: NDArray[np.uint64], addend: NDArray[np.uint64], modulus: np.uint64) -> NDArray[np.uint64]:
    """(values + addend) mod modulus, for values below it and an addend of at most it."""
    total = values + addend
    return np.where(total >= modulus, total - modulus, total)


def _split_mix(state: int) -> int:
    """A well-spread 64-bit number of a counter (SplitMix64; Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = (state * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
