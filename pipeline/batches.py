"""Consecutive items in batches of a size, such as texts that are encoded in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def batches(items: Iterable[Item], *, size: Callable[[Item], int], min_size: int) -> Iterator[list[Item]]:
    """A batch ends with the item that makes it so large; the last may be smaller. Holds no item of an earlier one."""
    batch: list[Item] = []
    batch_size = 0
    for item in items:
        batch.append(item)
        batch_size += size(item)
        del item  # as large as a document: whoever takes the batch says how long it lives
        if batch_size >= min_size:
            yield batch
            batch, batch_size = [], 0
    if batch:
        yield batch
