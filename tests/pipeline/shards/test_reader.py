from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.shards import writer
from pipeline.shards.format import DatasetError, ShardRecord, digest_file
from pipeline.shards.reader import check_size, read_rows, rows_of
from pipeline.shards.writer import ShardWriter

DOCUMENTS = [("a", [1, 2, 0]), ("b", [0]), ("c", [65535, 7, 8, 0]), ("d", [3, 0])]


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardRecord:
    """Of two record batches."""
    monkeypatch.setattr(writer, "BATCH_TOKENS", 5)
    with ShardWriter(tmp_path, split="train", unit=0, shard_size_bytes=1 << 20, source="web") as shards:
        for name, ids in DOCUMENTS:
            shards.add(name, np.array(ids, dtype=np.uint16))
        (record,) = shards.finish()
    assert record.source == "web"
    return record


def test_documents_come_batch_by_batch(tmp_path: Path, shard: ShardRecord) -> None:
    batches = list(read_rows(tmp_path, shard))
    assert [len(rows) for rows in batches] == [3, 1]
    found = [rows.document(row) for rows in batches for row in range(len(rows))]
    assert [(name, ids.tolist()) for name, ids in found] == DOCUMENTS
    assert batches[0].lengths.tolist() == [3, 1, 4]
    assert batches[0].ids.base is not None, "ids are views of the map"


def test_a_slice_of_a_batch_is_read_from_its_own_begin() -> None:
    batch = pa.RecordBatch.from_pydict(
        {"input_ids": pa.array([[1, 0], [2, 3, 0], [4, 0]], pa.list_(pa.uint16())), "document_id": ["a", "b", "c"]}
    )
    rows = rows_of(batch.slice(1))
    assert [(name, ids.tolist()) for name, ids in map(rows.document, range(2))] == [("b", [2, 3, 0]), ("c", [4, 0])]
    assert rows.bounds.tolist() == [0, 3, 5]


def test_a_missing_shard_is_named(tmp_path: Path, shard: ShardRecord) -> None:
    (tmp_path / shard.path).unlink()
    expected = rf"{tmp_path}/data-00000-000.arrow cannot be read \(missing\); `smollm2 pipeline verify {tmp_path}`"
    with pytest.raises(DatasetError, match=expected):
        check_size(tmp_path, shard)
    with pytest.raises(DatasetError, match=expected):
        list(read_rows(tmp_path, shard))


def test_a_shard_that_is_cut_is_not_mapped(tmp_path: Path, shard: ShardRecord) -> None:
    os.truncate(tmp_path / shard.path, 50)
    with pytest.raises(DatasetError, match=rf"\(50 bytes, wanted {shard.size_bytes}\)"):
        list(read_rows(tmp_path, shard))


def test_a_shard_of_something_else_is_refused(tmp_path: Path, shard: ShardRecord) -> None:
    path = tmp_path / shard.path
    path.write_bytes(b"\xff" * shard.size_bytes)
    with pytest.raises(DatasetError, match=r"data-00000-000.arrow cannot be read \([^\n]+\); "):
        list(read_rows(tmp_path, shard))
    table = pa.table({"input_ids": [[1]]})
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    other = shard.model_copy(update={"size_bytes": path.stat().st_size, "digest": digest_file(path)})
    with pytest.raises(DatasetError, match=r"cannot be read \(another schema\)"):
        list(read_rows(tmp_path, other))


def test_other_sums_than_the_records_are_refused_at_the_end(tmp_path: Path, shard: ShardRecord) -> None:
    with pytest.raises(DatasetError, match=r"\(4 documents and 10 tokens\)"):
        list(read_rows(tmp_path, shard.model_copy(update={"tokens": 11})))
