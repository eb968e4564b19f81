"""Finds equal hashes among all units, one key and one part of the hashes' range at a time, in bounded memory.

The hashes of each unit are sorted, so a part of the range is a slice of every unit, and nothing is read twice. Within
a unit only the first of equal hashes goes on to be compared with those of other units; so a hash that every document
has costs a row a unit. What is found does not depend on the number of parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.deduplication.array_file import ArrayFile, ArrayFileWriter, sections_of
from pipeline.deduplication.clusters import number_dtype
from pipeline.deduplication.folder import Folder, UnitRows
from pipeline.deduplication.ngrams import Hashes
from pipeline.deduplication.signatures import PARAGRAPH
from pipeline.deduplication.verdicts import KEPT

# a worker holds about so many rows of 20 to 28 bytes, and as much again to sort them
PARTITION_ROWS = 1 << 21


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the range of one key's hashes."""

    key: str
    number: int
    parts: int

    def __str__(self) -> str:
        return f"{self.key} {self.number} of {self.parts}"


def parts_of(key: str, *, rows: int) -> list[Part]:
    """A power of two of them."""
    parts = 1
    while rows > parts * PARTITION_ROWS:
        parts *= 2
    return [Part(key, number, parts) for number in range(parts)]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows with equal hashes stand together, the first in the order of the dataset before the others."""

    hashes: tuple[Hashes, ...]
    documents: NDArray[np.unsignedinteger]
    places: NDArray[np.uint32]

    def __getitem__(self, rows: NDArray[Any]) -> _Rows:
        return _Rows(tuple(some[rows] for some in self.hashes), self.documents[rows], self.places[rows])

    def is_first(self) -> NDArray[np.bool_]:
        """Of each row, whether it is the first of those with its hash."""
        first = np.zeros(len(self.documents), np.bool_)
        first[:1] = True
        for some in self.hashes:
            first[1:] |= some[1:] != some[:-1]
        return first


class Matcher:
    """Matches the parts of all keys. `units` in the order of the plan."""

    def __init__(self, folder: Folder, units: Sequence[UnitRows]) -> None:
        self._folder = folder
        self._units = units
        self._firsts = first_documents(units)
        self._dtype = number_dtype(self._firsts[-1])

    def link_documents(self, part: Part) -> None:
        """Write pairs of documents with one hash: `first` is the first that has it in its unit, or the first of all."""
        with ArrayFileWriter(self._folder.links_of(part.key, part.number, part.parts)) as writer:
            for rows in self._rows_and_those_across(part):
                first = rows.is_first()
                firsts = np.flatnonzero(first)
                sizes = np.diff(np.append(firsts, len(first)))
                later = ~first
                writer.append(first=np.repeat(rows.documents[firsts], sizes)[later], later=rows.documents[later])

    def find_removals(self, part: Part) -> None:
        """Write the paragraphs that stand in an earlier kept document, or in an earlier place. There must be verdicts.

        A section a unit for those found within it, and one for all found across units; each in the order of documents.
        """
        with ArrayFileWriter(self._folder.removals_of(part.number, part.parts)) as writer:
            for rows in self._rows_and_those_across(part, verdicts=ArrayFile(self._folder.verdicts)):
                again = rows[~rows.is_first()]
                order = np.lexsort((again.places, again.documents))
                writer.append(document=again.documents[order], place=again.places[order])

    def _rows_and_those_across(self, part: Part, *, verdicts: ArrayFile | None = None) -> Iterator[_Rows]:
        """The rows of each unit, then the first ones of all units; given verdicts, of kept documents only."""
        across: list[_Rows] = []
        for index, unit in enumerate(self._units):
            rows = self._slice(index, unit, part)
            if verdicts is not None:
                is_kept = verdicts.section(index)["verdict"] == KEPT
                rows = rows[is_kept[rows.documents - self._dtype.type(self._firsts[index])]]
            yield rows
            across.append(rows[rows.is_first()])
        yield _merged(across)

    def _slice(self, index: int, unit: UnitRows, part: Part) -> _Rows:
        """The part's rows of a unit."""
        slices = [
            _part_of_section(section, part, first=self._firsts[index], dtype=self._dtype)
            for section in sections_of(self._folder.signature(unit.index))
        ]
        return slices[0] if len(slices) == 1 else _merged(slices)


def _part_of_section(
    arrays: dict[str, NDArray[Any]], part: Part, *, first: int, dtype: np.dtype[np.unsignedinteger]
) -> _Rows:
    leading = arrays[f"{part.key}.0"]
    width = (1 << 64) // part.parts
    start = int(np.searchsorted(leading, np.uint64(part.number * width)))
    is_last = part.number + 1 == part.parts
    stop = len(leading) if is_last else int(np.searchsorted(leading, np.uint64((part.number + 1) * width)))
    documents = arrays[f"{part.key}.document"][start:stop].astype(dtype)
    documents += dtype.type(first)
    return _Rows(
        hashes=tuple(arrays[name][start:stop] for name in (f"{part.key}.0", f"{part.key}.1") if name in arrays),
        documents=documents,
        # of documents there is no place, and all rows are alike in it
        places=arrays[f"{PARAGRAPH}.place"][start:stop] if part.key == PARAGRAPH else np.zeros(stop - start, np.uint32),
    )


def _merged(sorted_rows: Sequence[_Rows]) -> _Rows:
    """Stable: among equal hashes, rows stay in the order in which they are given."""
    together = _Rows(
        tuple(np.concatenate(columns) for columns in zip(*(rows.hashes for rows in sorted_rows), strict=True)),
        np.concatenate([rows.documents for rows in sorted_rows]),
        np.concatenate([rows.places for rows in sorted_rows]),
    )
    return together[np.lexsort(together.hashes[::-1])]


def first_documents(units: Sequence[UnitRows]) -> list[int]:
    """The number of the first document of each unit among all, and the number of all."""
    firsts = [0]
    for unit in units:
        firsts.append(firsts[-1] + unit.documents)
    return firsts
