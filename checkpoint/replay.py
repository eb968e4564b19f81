"""Finds where a resumed run parts from what its log told before. MLflow cannot take rows back, so a tag says it."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from checkpoint.events import LEARNING_RATE, TRAIN_LOSS, VALIDATION_LOSS, Event, read_events

# speeds and times differ in every repetition and say nothing
COMPARED = (TRAIN_LOSS, VALIDATION_LOSS, LEARNING_RATE)


class ReplayFinder:
    """`parted_at` is the lowest step that was told again with another value, None so far.

    The first tellings are read from the log when a repetition begins, and only until one is found that differs.
    """

    def __init__(self, path: Path, parted_at: int | None) -> None:
        self.parted_at = parted_at
        self._path = path
        self._first: dict[tuple[str, int], float] = {}
        self._known_from: float = math.inf

    def look(self, event: Event, new: Collection[str], *, offset: int) -> None:
        """Take the event that ends at `offset` of the log, of whose metrics `new` were not told before."""
        if event.kind != "metrics" or (self.parted_at is not None and event.step >= self.parted_at):
            return
        repeated = [key for key in COMPARED if key in event.fields and key not in new]
        if repeated and event.step < self._known_from:
            self._read_first_tellings(event.step, before=offset)
        for key in COMPARED:
            value = event.fields.get(key)
            if not isinstance(value, int | float):
                continue
            before = self._first.setdefault((key, event.step), value) if self._known_from <= event.step else value
            if value != before and not (math.isnan(value) and math.isnan(before)):
                self.parted_at = event.step

    def _read_first_tellings(self, step: int, *, before: int) -> None:
        self._first, self._known_from = {}, step
        for event, offset in read_events(self._path):
            if offset >= before:
                return
            if event.kind == "metrics" and event.step >= step:
                for key in COMPARED:
                    value = event.fields.get(key)
                    if isinstance(value, int | float):
                        self._first.setdefault((key, event.step), value)
