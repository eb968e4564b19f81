"""The sums over all units of a run, made in one pass over their records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.document import PipelineError
from pipeline.report import Tally, add_up_encoding
from pipeline.shards.format import SPLITS, EncodingRecord, ShardRecord, Split
from pipeline.unit import UnitRecord


@dataclass(slots=True)
class Totals:
    """By source, in the order of their first units; shards in the order of the units."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    tokens: Counter[str] = field(default_factory=Counter)
    worker_seconds: dict[str, float] = field(default_factory=dict)
    shards: dict[Split, list[ShardRecord]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    encoding: tuple[EncodingRecord, ...] = ()


def add_up_units(records: Iterable[UnitRecord]) -> Totals:
    """`records` in the order of their units. Raises PipelineError if the sums of a unit do not agree."""
    totals = Totals()
    for record in records:
        _check_balance(record)
        totals.tallies.setdefault(record.source, Tally()).add(record.tally)
        totals.tokens[record.source] += record.tokens
        totals.worker_seconds[record.source] = totals.worker_seconds.get(record.source, 0.0) + record.seconds
        for split, shards in record.shards.items():
            totals.shards[split].extend(shards)
        totals.encoding = add_up_encoding([*totals.encoding, record.encoding])
    return totals


def _check_balance(record: UnitRecord) -> None:
    tally = record.tally
    written = sum(shard.documents for shards in record.shards.values() for shard in shards)
    if not tally.is_balanced() or written != tally.documents_kept:
        raise PipelineError(
            f"unit {record.index} does not add up: {tally.documents_in} documents in, {tally.documents_kept} kept, "
            f"{tally.documents_dropped} dropped, {written} written; "
            f"remove .work/units/{record.index:05d}.json in the output folder and run again"
        )
