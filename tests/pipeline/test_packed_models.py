from __future__ import annotations

import tracemalloc

from pipeline.packed_models import PackedModels
from pipeline.report import Tally
from pipeline.shards.format import ShardRecord
from pipeline.unit import UnitRecord

REASONS = [f"reason_{number}" for number in range(10)]


def record(index: int) -> UnitRecord:
    """As of a unit of a filtered crawl: documents of many lengths, dropped for ten reasons."""
    tally = Tally()
    tally.keep(tokens=[300 + 7 * length for length in range(2000)], text_bytes=[4000] * 2000)
    for number, reason in enumerate(REASONS):
        tally.drop(reason, size_bytes=9, location=f"part-{index}.jsonl@{number}", example=f"{index}{number} text " * 20)
    shard = ShardRecord(
        path=f"data-{index:05d}-000.arrow",
        documents=2000,
        tokens=1 + index,
        size_bytes=2 + index,
        digest=f"sha256:{index:064x}",
        source="web",
    )
    shards = {"train": (shard,), "validation": ()}
    return UnitRecord.model_validate(
        {"index": index, "source": "web", "size_bytes": 1, "shards": shards, "tally": tally, "seconds": 0.1 + index}
    )


def test_what_comes_out_is_what_was_put_in() -> None:
    packed = PackedModels(UnitRecord)
    for index in (7, 3):
        packed.add(index, record(index))
    assert (list(packed), list(packed.values()), len(packed)) == ([7, 3], [record(7), record(3)], 2)
    assert 3 in packed
    assert 4 not in packed


def test_a_packed_record_takes_a_twentieth_of_one_as_objects() -> None:
    packed = PackedModels(UnitRecord)
    tracemalloc.start()
    objects = [record(index) for index in range(100)]
    objects_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for index, one in enumerate(objects):
        packed.add(index, one)
    packed_bytes = tracemalloc.get_traced_memory()[0] - objects_bytes
    tracemalloc.stop()
    assert len(packed) * 500 < packed_bytes < objects_bytes / 20
