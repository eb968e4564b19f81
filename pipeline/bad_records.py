"""The limit on bad records, asked after every unit: a wrong text_field shows in minutes, not at the end of a run."""

from __future__ import annotations

from pipeline.unit import UnitRecord

# sources and compressions differ in records a byte: as many times more records may be still to come as we reckon with
_DENSITY_DOUBT = 4


class BadRecordLimit:
    """Counts the records of finished units against `max_bad_record_fraction` of the whole input."""

    def __init__(self, *, max_bad_record_fraction: float, total_bytes: int) -> None:
        """`total_bytes` is the size of all units."""
        self._max_fraction = max_bad_record_fraction
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._records = 0
        self._bad = 0

    def add(self, record: UnitRecord) -> None:
        self._done_bytes += record.size_bytes
        self._records += record.tally.documents_in
        self._bad += record.tally.documents_bad

    def is_out_of_reach(self) -> bool:
        """Whether the run will fail even if every record to come is good; their number is estimated from the bytes."""
        left = (self._total_bytes - self._done_bytes) / max(1, self._done_bytes)
        return self._bad > self._max_fraction * self._records * (1 + _DENSITY_DOUBT * left)
