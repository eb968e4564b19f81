"""What deduplication decided about the documents of a unit: asked by the pass that encodes them, in the same order."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from pipeline.config import PipelineConfig
from pipeline.deduplication.array_file import Array, ArrayFile
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
        section = ArrayFile(folder.verdicts).section(unit)
        self._verdicts: bytes = section["verdict"].tobytes()
        self._removals = _Removals(folder, unit, section) if self._config.paragraphs else None
        self._next = 0

    def judge(self, document: Document) -> Document | DuplicateReason:
        """The document, without the paragraphs that others have, or the reason to drop it."""
        if self._next >= len(self._verdicts):
            raise self._out_of_step()
        number, verdict = self._next, self._verdicts[self._next]
        self._next += 1
        if verdict != KEPT:
            return REASONS[verdict]
        places = self._removals.of(number) if self._removals else None
        if not places:
            return document
        assert self._config.paragraphs is not None
        text = without(document.whole_text, places, self._config.paragraphs)
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


class _Removals:
    """Places of the paragraphs to be left out, by the number of their document in the unit."""

    def __init__(self, folder: Folder, unit: int, section: dict[str, Array]) -> None:
        first = int(section["first_document"][0])
        documents, places = [], []
        for path in folder.removals.glob("*.arrow"):
            file = ArrayFile(path)
            # those found within the unit, and of those found across units its share
            for found in (file.section(unit), file.section(len(file) - 1)):
                start, stop = _places(found["document"], first, first + len(section["verdict"]))
                documents.append(found["document"][start:stop] - found["document"].dtype.type(first))
                places.append(found["place"][start:stop])
        self._documents, self._places = np.concatenate(documents), np.concatenate(places)
        order = np.argsort(self._documents, kind="stable")
        self._documents, self._places = self._documents[order], self._places[order]

    def of(self, document: int) -> set[int]:
        start, stop = _places(self._documents, document, document + 1)
        return set(self._places[start:stop].tolist())


def _places(numbers: Array, *wanted: int) -> Array:
    """Where each of `wanted`, up to the number of all documents, would stand."""
    # of another type than theirs, numpy would first copy all the numbers
    return np.searchsorted(numbers, np.array(wanted, numbers.dtype))
