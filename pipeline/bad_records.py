"""The limit on bad records, asked after every unit: a wrong text_field shows in minutes, not at the end of a run.

The limit is a share of all records of the run, of which those to come are not known. So it is asked whether it can
still be kept with as many as there may be, reckoned for each source alone, as sources differ in records a byte by a
hundred and more: four times as many a byte as in the units of that source that are done, and where none is done, one
in eight bytes, `{"a":""}`. A run that would pass is stopped only if a source's later files beat that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pipeline.report import Tally

_DENSITY_DOUBT = 4
_MIN_RECORD_BYTES = 8


class ReadUnit(Protocol):
    """A unit that has been read: its source, its size, and what became of its records."""

    @property
    def source(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def tally(self) -> Tally: ...


class BadRecordLimit:
    """Counts the records of finished units against `max_bad_record_fraction` of the whole input."""

    def __init__(self, *, max_bad_record_fraction: float, bytes_by_source: Mapping[str, int]) -> None:
        """`bytes_by_source` are the sizes of all units of each source."""
        self._max_fraction = max_bad_record_fraction
        self._total_bytes = dict(bytes_by_source)
        self._done_bytes = dict.fromkeys(bytes_by_source, 0)
        self._records = dict.fromkeys(bytes_by_source, 0)
        self._bad = 0

    def add(self, record: ReadUnit) -> None:
        self._done_bytes[record.source] += record.size_bytes
        self._records[record.source] += record.tally.documents_in
        self._bad += record.tally.documents_bad

    def is_out_of_reach(self) -> bool:
        """Whether the run will fail even if every record to come is good, and there are as many as may be."""
        most = sum(self._records.values()) + sum(map(self._most_to_come, self._total_bytes))
        return self._bad > self._max_fraction * most

    def _most_to_come(self, source: str) -> float:
        left_bytes = self._total_bytes[source] - self._done_bytes[source]
        if not self._records[source]:
            return left_bytes / _MIN_RECORD_BYTES
        return _DENSITY_DOUBT * self._records[source] * left_bytes / max(1, self._done_bytes[source])
