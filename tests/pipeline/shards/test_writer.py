from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline.shards import writer
from pipeline.shards.format import SCHEMA, ShardRecord, digest_file
from pipeline.shards.writer import ShardWriter


def document(*ids: int) -> NDArray[np.uint16]:
    return np.array([*ids, 0], dtype=np.uint16)


def write(
    dataset: Path, documents: list[NDArray[np.uint16]], *, shard_size_bytes: int = 1 << 20
) -> tuple[ShardRecord, ...]:
    with ShardWriter(dataset, split="train", unit=7, shard_size_bytes=shard_size_bytes) as shards:
        for index, ids in enumerate(documents):
            shards.add(f"d{index}", ids)
        return shards.finish()


def rows(path: Path) -> list[tuple[list[int], str]]:
    with pa.ipc.open_stream(path.read_bytes()) as stream:
        assert stream.schema.equals(SCHEMA)
        table = stream.read_all()
    return list(zip(table["input_ids"].to_pylist(), table["document_id"].to_pylist(), strict=True))


def test_a_shard_is_an_arrow_stream_of_documents(tmp_path: Path) -> None:
    write(tmp_path, [document(1, 2), document(65535)])
    assert rows(tmp_path / "data-00007-000.arrow") == [([1, 2, 0], "d0"), ([65535, 0], "d1")]


def test_the_record_says_what_is_on_disk(tmp_path: Path) -> None:
    (record,) = write(tmp_path, [document(1, 2), document(3)])
    content = (tmp_path / record.path).read_bytes()
    assert record == ShardRecord(
        path="data-00007-000.arrow",
        documents=2,
        tokens=5,
        size_bytes=len(content),
        digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
    )


def test_a_new_part_begins_before_the_size_is_passed(tmp_path: Path) -> None:
    # a document of 3 ids is 6 bytes and its id 2: two fit into 16 bytes, three do not
    records = write(tmp_path, [document(1, 2)] * 5, shard_size_bytes=16)
    assert [record.documents for record in records] == [2, 2, 1]
    assert [record.path for record in records] == [f"data-00007-00{part}.arrow" for part in range(3)]


def test_a_document_larger_than_a_shard_stands_alone(tmp_path: Path) -> None:
    records = write(tmp_path, [document(1), document(*range(1, 100)), document(2)], shard_size_bytes=16)
    assert [record.tokens for record in records] == [2, 100, 2]


def test_a_batch_is_closed_by_the_document_that_fills_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BATCH_TOKENS", 5)
    write(tmp_path, [document(1, 2)] * 5)
    with pa.ipc.open_stream((tmp_path / "data-00007-000.arrow").read_bytes()) as stream:
        assert [batch.num_rows for batch in stream] == [2, 2, 1]


def test_no_documents_make_no_shard(tmp_path: Path) -> None:
    assert write(tmp_path, []) == ()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing_unfinished(tmp_path: Path) -> None:
    def write_half() -> None:
        with ShardWriter(tmp_path, split="train", unit=0, shard_size_bytes=1 << 20) as shards:
            shards.add("d", document(1))
            (unfinished,) = tmp_path.iterdir()
            assert re.fullmatch(r"\.data-00000-000\.arrow\.[0-9a-f]{8}\.partial", unfinished.name)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_the_disk_begins_with_what_is_written_before_the_shard_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, offset, size_bytes, __: begun.append((offset, size_bytes)))
    monkeypatch.setattr(writer, "BATCH_TOKENS", 5)
    (record,) = write(tmp_path, [document(1, 2)] * 5)
    assert [offset for offset, _ in begun] == [0, *itertools.accumulate(size for _, size in begun)][:-1]
    assert sum(size for _, size in begun) == record.size_bytes


def test_a_file_system_that_takes_no_advice_gets_the_shard_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    (record,) = write(tmp_path, [document(1, 2)])
    assert record.digest == digest_file(tmp_path / record.path)


def test_a_shard_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names_at_sync: list[str] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        names_at_sync.extend(path.name for path in tmp_path.iterdir())
        fsync(descriptor)

    monkeypatch.setattr(secrets, "token_hex", lambda size: "01234567")
    monkeypatch.setattr(os, "fsync", spy)
    write(tmp_path, [document(1)])
    # the folder is synced by who publishes the shards
    assert names_at_sync == [".data-00007-000.arrow.01234567.partial"]
    # but not so where the name was another shard's: a record of the unit must not outlive the new one
    write(tmp_path, [document(2)])
    partial, named = ".data-00007-000.arrow.01234567.partial", "data-00007-000.arrow"
    assert sorted(names_at_sync[1:]) == sorted([partial, named, named])


def test_an_error_of_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write(tmp_path, [document(1)])
    assert re.search(r"/\.data-00007-000\.arrow\.[0-9a-f]{8}\.partial$", caught.value.filename)


def test_writing_does_not_import_pandas(tmp_path: Path) -> None:
    # pyarrow does, where it is installed, for any array that it is asked to make of Python's: 0.2 s in every worker
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from pipeline.shards.writer import ShardWriter\n"
        f"writer = ShardWriter(Path({str(tmp_path)!r}), split='train', unit=0, shard_size_bytes=1000)\n"
        "writer.add('a', np.array([5, 0], np.uint16))\n"
        "writer.finish()\n"
        "assert 'pandas' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(root)})
