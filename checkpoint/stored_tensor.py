"""Tensors that lie in files and are not loaded: storages as extents, and tensors as views of them, as in torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from checkpoint.extents import Extent

# torch's names of typed storages, and the bytes of their elements
ELEMENT_BYTES = {
    "FloatStorage": 4, "BFloat16Storage": 2, "HalfStorage": 2, "DoubleStorage": 8, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Storage:
    """The elements of one or more tensors, as extents one after the other; shared by identity, as in torch."""

    element_type: str
    numel: int
    extents: tuple[Extent, ...]

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.element_type]


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that is not loaded; `offset` and `stride` are in elements of its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def flat_tensor(element_type: str, extents: Iterable[Extent], *, requires_grad: bool = False) -> StoredTensor:
    """A row of all elements of the extents, in a storage of its own."""
    pieces = tuple(extents)
    numel = sum(piece.size_bytes for piece in pieces) // ELEMENT_BYTES[element_type]
    return StoredTensor(Storage(element_type, numel, pieces), 0, (numel,), (1,), requires_grad)
