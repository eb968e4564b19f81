"""What deduplication decided about the documents of a unit: asked by the pass that encodes them, in the same order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from pipeline.config import PipelineConfig
from pipeline.deduplication.array_file import ArrayFile
from pipeline.deduplication.folder import Folder
from pipeline.deduplication.paragraphs import without
from pipeline.document import Document, PipelineError

DuplicateReason = Literal["exact_duplicate", "near_duplicate", "contaminated", "duplicate_paragraphs"]

# the verdicts' file holds these numbers; where several hold, the last of them is said
KEPT, NEAR_DUPLICATE, EXACT_DUPLICATE, CONTAMINATED = range(4)
REASONS: dict[int, DuplicateReason] = {
    NEAR_DUPLICATE: "near_duplicate",
    EXACT_DUPLICATE: "exact_duplicate",
    CONTAMINATED: "contaminated",
}


class UnitVerdicts:
    """Give it every document that the filters let through, in order."""

    def __init__(self, config: PipelineConfig, unit: int) -> None:
        folder = Folder(config.output_dir)
        self._config = config.deduplication
        self._unit = unit
        self._verdicts: list[int] = ArrayFile(folder.verdicts).section(unit)["verdict"].tolist()
        self._removals = _removals(folder, unit) if self._config.paragraphs else {}
        self._next = 0

    def judge(self, document: Document) -> Document | DuplicateReason:
        """The document, without the paragraphs that others have, or the reason to drop it."""
        if self._next >= len(self._verdicts):
            raise self._out_of_step()
        number, verdict = self._next, self._verdicts[self._next]
        self._next += 1
        if verdict != KEPT:
            return REASONS[verdict]
        if number not in self._removals:
            return document
        assert self._config.paragraphs is not None
        text = without(document.text, self._removals[number], self._config.paragraphs)
        return dataclasses.replace(document, text=text) if text.strip() else "duplicate_paragraphs"

    def end(self) -> None:
        """Raises PipelineError if there were fewer documents than were judged."""
        if self._next != len(self._verdicts):
            raise self._out_of_step()

    def _out_of_step(self) -> PipelineError:
        return PipelineError(
            f"unit {self._unit} has other documents now than when it was deduplicated ({len(self._verdicts):,}): its "
            "input has changed meanwhile, or this is another version of a library or of this program; "
            "restore it, or remove the output folder to start over"
        )


def unit_verdicts(config: PipelineConfig, unit: int) -> UnitVerdicts | None:
    """None where nothing is deduplicated."""
    return UnitVerdicts(config, unit) if config.deduplication.is_on else None


def _removals(folder: Folder, unit: int) -> dict[int, set[int]]:
    """Places of paragraphs by the number of their document in the unit."""
    removals: dict[int, set[int]] = {}
    for document, place in _removal_rows(folder, unit):
        removals.setdefault(document, set()).add(place)
    return removals


def _removal_rows(folder: Folder, unit: int) -> Iterator[tuple[int, int]]:
    verdicts = ArrayFile(folder.verdicts)
    first = int(verdicts.section(unit)["first_document"][0])
    stop = first + len(verdicts.section(unit)["verdict"])
    for path in sorted(folder.removals.glob("*.arrow")):
        file = ArrayFile(path)
        # those found within the unit, and of those found across units its share
        for section in (file.section(unit), file.section(len(file) - 1)):
            documents = section["document"]
            rows = slice(*np.searchsorted(documents, np.array([first, stop], documents.dtype)))
            yield from zip(
                (documents[rows] - documents.dtype.type(first)).tolist(), section["place"][rows].tolist(), strict=True
            )
