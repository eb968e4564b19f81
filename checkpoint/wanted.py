"""Which checkpoints are to be exported: the one rule that the service exports by and retention spares by. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal


def wanted_exports(
    possible: Sequence[int],
    *,
    known: Collection[int],
    exports: Literal["newest", "every"],
    owed: Collection[int] = (),
) -> tuple[int, ...]:
    """Steps to export, in the order to take them.

    `possible` are the steps, ascending, of which nothing says that they cannot be exported; `known` those that were
    exported before, whatever came of it. Of the steps newer than the newest known one: all, the oldest first, or the
    newest alone. "every" counts those as well that are `owed`: their export failed and is tried again, though newer
    ones are known by then.
    """
    newest = max(known, default=-1)
    if exports == "newest":
        return tuple([step for step in possible if step > newest][-1:])
    return tuple(step for step in possible if step > newest or (step in owed and step not in known))
