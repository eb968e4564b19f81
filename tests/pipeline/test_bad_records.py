from __future__ import annotations

import pytest

from pipeline.bad_records import BadRecordLimit
from pipeline.report import Dropped, Tally
from pipeline.unit import UnitRecord


def record(*, size_bytes: int, records: int, bad: int, short: int = 0) -> UnitRecord:
    dropped = {"missing_field": Dropped(documents=bad), "too_short": Dropped(documents=short)}
    tally = Tally(documents_in=records, documents_kept=records - bad - short, dropped=dropped)
    return UnitRecord(index=0, source="corpus", size_bytes=size_bytes, shards={}, tally=tally, seconds=0)


@pytest.mark.parametrize(
    ("bad", "out_of_reach"),
    [
        # a tenth is done with 100 records: at most 100 + 4 × 900 = 3700 in all, of which 1% may be bad
        (37, False),
        (38, True),
    ],
)
def test_what_is_still_to_come_may_hold_four_times_the_records_a_byte(bad: int, out_of_reach: bool) -> None:
    limit = BadRecordLimit(max_bad_record_fraction=0.01, total_bytes=1000)
    limit.add(record(size_bytes=100, records=100, bad=bad))
    assert limit.is_out_of_reach() is out_of_reach


@pytest.mark.parametrize(("bad", "out_of_reach"), [(2, False), (3, True)])
def test_at_the_end_the_limit_is_the_share_of_all_records(bad: int, out_of_reach: bool) -> None:
    limit = BadRecordLimit(max_bad_record_fraction=0.01, total_bytes=200)
    limit.add(record(size_bytes=100, records=100, bad=bad))
    limit.add(record(size_bytes=100, records=100, bad=0))
    assert limit.is_out_of_reach() is out_of_reach


def test_without_a_tolerance_the_first_bad_record_decides() -> None:
    limit = BadRecordLimit(max_bad_record_fraction=0, total_bytes=1000)
    limit.add(record(size_bytes=1, records=100, bad=0))
    assert not limit.is_out_of_reach()
    limit.add(record(size_bytes=1, records=100, bad=1))
    assert limit.is_out_of_reach()


def test_documents_that_a_filter_dropped_are_not_bad() -> None:
    limit = BadRecordLimit(max_bad_record_fraction=0, total_bytes=1000)
    limit.add(record(size_bytes=0, records=100, bad=0, short=100))
    assert not limit.is_out_of_reach()
