from __future__ import annotations

import pytest

from pipeline.document import PipelineError
from pipeline.report import Tally
from pipeline.shards.format import EncodingRecord, ShardRecord
from pipeline.totals import add_up_units
from pipeline.unit import UnitRecord


def record(index: int, source: str, *, kept: int, written: int | None = None) -> UnitRecord:
    tally = Tally(documents_in=kept + 1)
    tally.keep(tokens=[5] * kept, text_bytes=[10] * kept)
    tally.drop("too_short" if source == "web" else "code_generated", size_bytes=2, location=str(index), example="…")
    shard = ShardRecord(
        path=f"data-{index:05d}-000.arrow",
        documents=kept if written is None else written,
        tokens=5 * kept,
        size_bytes=1,
        digest="sha256:0",
    )
    encoding = EncodingRecord(engine="tokenizers 1", pieces=kept)
    return UnitRecord.model_validate(
        {
            "index": index,
            "source": source,
            "size_bytes": 1,
            "shards": {"train": (shard,), "validation": ()},
            "tally": tally,
            "seconds": 1.5,
            "encoding": encoding,
        }
    )


def test_sums_stand_by_source_and_shards_in_the_order_of_the_units() -> None:
    units = (record(0, "web", kept=1), record(1, "code", kept=2), record(2, "web", kept=4))
    totals = add_up_units(unit for unit in units)
    assert {source: tally.documents_kept for source, tally in totals.tallies.items()} == {"web": 5, "code": 2}
    assert totals.tokens == {"web": 25, "code": 10}
    assert totals.worker_seconds == {"web": 3.0, "code": 1.5}
    assert [shard.path[5:10] for shard in totals.shards["train"]] == ["00000", "00001", "00002"]
    assert totals.encoding == (EncodingRecord(engine="tokenizers 1", pieces=7),)


def test_examples_of_a_source_are_those_of_its_first_units() -> None:
    totals = add_up_units(record(index, "web", kept=1) for index in range(120))
    dropped = totals.tallies["web"].dropped["too_short"]
    assert dropped.documents == 120
    assert [example.location for example in dropped.examples] == [str(index) for index in range(100)]


def test_a_unit_that_does_not_add_up_is_named() -> None:
    with pytest.raises(
        PipelineError, match=r"^unit 1 does not add up: 3 documents in, 2 kept, 1 dropped, 7 written; r"
    ):
        add_up_units([record(0, "web", kept=1), record(1, "web", kept=2, written=7)])
