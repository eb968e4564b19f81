"""The token stream against all ids in memory, and what it says of shards that are not what the manifest says."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from launch.data.shard_reader import TokenStream
from pipeline.shards import format as contract
from pipeline.shards.format import DatasetError

DOCUMENTS = [[1, 2, 3], [4], [], [5, 6], [7, 8, 9, 10]]
STREAM = [1, 2, 3, 0, 4, 0, 0, 5, 6, 0, 7, 8, 9, 10, 0]


@pytest.fixture
def dataset(tmp_path, make_dataset) -> Path:
    """Three shards of two, two and one documents, one document a record batch."""
    return make_dataset(tmp_path / "small", DOCUMENTS, validation=[[11]], documents_per_shard=2, documents_per_batch=1)


def test_stream_is_the_documents_with_their_ends(dataset):
    stream = TokenStream(dataset, "train")
    assert stream.total_tokens == len(STREAM)
    assert stream.read(0, len(STREAM)).tolist() == STREAM


def test_every_span_equals_the_ids_in_memory(dataset):
    stream = TokenStream(dataset, "train")
    for start in range(len(STREAM)):
        for stop in range(start + 1, len(STREAM) + 1):
            assert stream.read(start, stop).tolist() == STREAM[start:stop]


def test_random_spans_of_random_documents_equal_the_ids_in_memory(tmp_path, make_dataset, random_documents):
    documents = random_documents(300, seed=3)
    path = make_dataset(tmp_path / "random", documents, documents_per_shard=70, documents_per_batch=9)
    expected = np.concatenate([np.array([*document, 0], dtype=np.uint16) for document in documents])
    stream = TokenStream(path, "train")
    random = np.random.default_rng(0)
    for start, stop in np.sort(random.integers(0, len(expected) + 1, size=(500, 2)), axis=1):
        if start < stop:
            np.testing.assert_array_equal(stream.read(start, stop), expected[start:stop])


def write_batches(dataset, batches, *, options=None) -> pa.Table:
    """Put these record batches, lists of documents, in the place of the training shards; as Arrow reads them."""
    shard = dataset / "data-00000-000.arrow"
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_stream(sink, contract.SCHEMA, options=options) as writer:
        for rows in batches:
            writer.write_batch(pa.record_batch([rows, [str(len(row)) for row in rows]], schema=contract.SCHEMA))
    documents = [row for rows in batches for row in rows]
    counts = {"documents": len(documents), "tokens": sum(map(len, documents))}
    record = contract.ShardRecord(path=shard.name, size_bytes=shard.stat().st_size, digest="-", **counts)
    manifest = contract.read_manifest(dataset)
    splits = {"train": contract.split_record([record])}
    contract.write_manifest(dataset, manifest.model_copy(update={"splits": splits}))
    with pa.OSFile(str(shard)) as source:
        return pa.ipc.open_stream(source).read_all()


@pytest.mark.parametrize("seed", range(8))
def test_random_record_batches_some_of_them_empty_read_as_arrow_reads_them(dataset, seed):
    random = np.random.default_rng(seed)
    batches = [
        [random.integers(1, 1 << 16, size=length).tolist() for length in random.integers(1, 30, size=documents)]
        for documents in random.integers(0, 4, size=40)
    ]
    table = write_batches(dataset, batches)
    expected = table.column("input_ids").combine_chunks().flatten().to_numpy()
    stream = TokenStream(dataset, "train")
    for start, stop in np.sort(random.integers(0, len(expected) + 1, size=(300, 2)), axis=1).tolist():
        if start < stop:
            read = stream.read(start, stop)
            assert read.dtype == np.uint16
            np.testing.assert_array_equal(read, expected[start:stop])


def test_compressed_ids_are_refused_in_one_line(dataset):
    write_batches(dataset, [[[1, 2, 3] * 1000]], options=pa.ipc.IpcWriteOptions(compression="zstd"))
    with pytest.raises(DatasetError, match=r"^shard .*00000-000\.arrow holds its ids compressed, wanted them as they"):
        TokenStream(dataset, "train").read(0, 1)


def anonymous_bytes() -> int:
    """Of this process: what is neither a file's nor shared."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def test_a_touched_shard_leaves_no_memory_that_grows_with_its_record_batches(tmp_path, make_dataset):
    shards, batches = 200, 100
    path = make_dataset(
        tmp_path / "many", [[1, 2, 3]] * (shards * batches), documents_per_shard=batches, documents_per_batch=1
    )
    stream = TokenStream(path, "train")
    starts = [number * 4 * batches for number in range(shards)]
    for start in starts[:20]:
        stream.read(start, start + 4)
    before = anonymous_bytes()
    for start in starts[20:]:
        stream.read(start, start + 4)
    # 16 bytes a batch; an object of Arrow's for each took 100,000 bytes a shard
    assert (anonymous_bytes() - before) / (shards - 20) < 20_000


def test_what_was_read_stays_when_the_stream_and_its_file_are_gone(dataset):
    stream = TokenStream(dataset, "train")
    ids = stream.read(0, 4)
    (dataset / "data-00000-000.arrow").unlink()
    del stream
    gc.collect()
    assert ids.tolist() == STREAM[:4]


def test_a_span_inside_one_record_batch_is_a_view_of_the_map(dataset):
    stream = TokenStream(dataset, "train")
    first, second = stream.read(0, 3), stream.read(1, 4)
    assert first.dtype == np.uint16
    assert np.shares_memory(first, second)
    assert not first.flags.writeable


def test_validation_is_a_stream_of_its_own(dataset):
    assert TokenStream(dataset, "validation").read(0, 2).tolist() == [11, 0]


def test_a_missing_split_is_an_empty_stream(dataset):
    manifest = contract.read_manifest(dataset)
    contract.write_manifest(dataset, manifest.model_copy(update={"splits": {"train": manifest.splits["train"]}}))
    assert TokenStream(dataset, "validation").total_tokens == 0


def test_digest_and_tokenizer_are_the_manifests(dataset):
    stream = TokenStream(dataset, "train")
    manifest = contract.read_manifest(dataset)
    assert stream.tokenizer == manifest.tokenizer


def test_opening_touches_no_shard(dataset):
    for shard in dataset.glob("*.arrow"):
        shard.unlink()
    assert TokenStream(dataset, "train").total_tokens == len(STREAM)


def test_only_the_shard_that_is_read_is_touched(dataset):
    (dataset / "data-00002-000.arrow").unlink()
    stream = TokenStream(dataset, "train")
    assert stream.read(0, 10).tolist() == STREAM[:10]
    with pytest.raises(DatasetError, match=r"shard .*data-00002-000\.arrow is missing"):
        stream.read(9, 11)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_shards_hold_no_file_descriptor(dataset):
    stream = TokenStream(dataset, "train")
    before = open_files()
    ids = stream.read(0, len(STREAM))
    assert open_files() == before
    assert ids.tolist() == STREAM


def test_unfinished_dataset_says_what_to_run(dataset):
    (dataset / contract.MANIFEST_FILE).unlink()
    with pytest.raises(DatasetError, match=r"is not finished \(no manifest.json\); make it with"):
        TokenStream(dataset, "train")


def test_truncated_shard_is_named_with_both_sizes(dataset):
    shard = dataset / "data-00001-000.arrow"
    size = shard.stat().st_size
    os.truncate(shard, size - 8)
    with pytest.raises(
        DatasetError, match=rf"data-00001-000\.arrow has {size - 8:,} bytes, the manifest says {size:,}"
    ):
        TokenStream(dataset, "train").read(5, 8)


def test_check_shards_finds_a_truncated_shard_without_reading(dataset):
    stream = TokenStream(dataset, "train")
    stream.check_shards()
    os.truncate(dataset / "data-00002-000.arrow", 8)
    with pytest.raises(DatasetError, match=r"data-00002-000\.arrow has 8 bytes"):
        stream.check_shards()


def test_bytes_that_are_not_arrow_are_one_line(dataset):
    shard = dataset / "data-00000-000.arrow"
    shard.write_bytes(b"\x01" * shard.stat().st_size)
    with pytest.raises(DatasetError, match=r"data-00000-000\.arrow is not readable as Arrow") as caught:
        TokenStream(dataset, "train").read(0, 1)
    assert "\n" not in str(caught.value)


def test_another_number_of_rows_is_named(dataset):
    shard = dataset / "data-00000-000.arrow"
    size = shard.stat().st_size
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_stream(sink, contract.SCHEMA) as writer:
        writer.write_batch(pa.record_batch([[[1, 2, 3, 0]], ["a"]], schema=contract.SCHEMA))
    shard.write_bytes(shard.read_bytes().ljust(size, b"\0"))
    with pytest.raises(DatasetError, match="holds 1 documents and 4 tokens, the manifest says 2 and 6"):
        TokenStream(dataset, "train").read(0, 1)


def test_as_many_ids_in_another_number_of_documents_are_named(dataset):
    manifest = contract.read_manifest(dataset)
    train = manifest.splits["train"]
    record = train.shards[0].model_copy(update={"documents": 3})
    changed = train.model_copy(update={"shards": (record, *train.shards[1:])})
    contract.write_manifest(dataset, manifest.model_copy(update={"splits": {"train": changed}}))
    with pytest.raises(DatasetError, match="holds 2 documents and 6 tokens, the manifest says 3 and 6"):
        TokenStream(dataset, "train").read(0, 1)


def test_another_type_of_ids_is_named(dataset):
    shard = dataset / "data-00000-000.arrow"
    manifest = contract.read_manifest(dataset)
    rows = pa.record_batch([pa.array([[1, 2, 3, 0], [4, 0]], pa.list_(pa.int64())), ["a", "b"]], ["input_ids", "id"])
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    train = manifest.splits["train"]
    record = train.shards[0].model_copy(update={"size_bytes": shard.stat().st_size})
    changed = train.model_copy(update={"shards": (record, *train.shards[1:])})
    contract.write_manifest(dataset, manifest.model_copy(update={"splits": {"train": changed}}))
    with pytest.raises(DatasetError, match=r"data-00000-000\.arrow holds int64 ids, wanted uint16"):
        TokenStream(dataset, "train").read(0, 1)


def test_sums_that_differ_from_the_shards_are_named(dataset):
    manifest = contract.read_manifest(dataset)
    train = manifest.splits["train"].model_copy(update={"tokens": 99})
    contract.write_manifest(dataset, manifest.model_copy(update={"splits": {"train": train}}))
    with pytest.raises(DatasetError, match="shards hold 15 tokens, its manifest says 99"):
        TokenStream(dataset, "train")


def test_a_dataset_that_is_replaced_while_it_is_read_is_refused(dataset, make_dataset):
    stream = TokenStream(dataset, "train")
    assert stream.read(0, 4).tolist() == STREAM[:4]
    # as large as before, and whole in itself
    shutil.rmtree(dataset)
    make_dataset(dataset, [[9, *document[1:]] if document else [] for document in DOCUMENTS], documents_per_shard=2)
    assert stream.read(0, 4).tolist() == STREAM[:4], "what is mapped stays"
    with pytest.raises(DatasetError, match=r"was replaced while it is read: data-00001-000.arrow is not what it"):
        stream.read(5, 8)


def test_a_dataset_that_is_taken_away_while_it_is_read_is_refused(dataset):
    stream = TokenStream(dataset, "train")
    (dataset / contract.MANIFEST_FILE).unlink()
    with pytest.raises(DatasetError, match=r"is not finished \(no manifest.json\)"):
        stream.read(5, 8)


def test_a_dataset_that_grows_while_it_is_read_is_read_on(dataset):
    stream = TokenStream(dataset, "train")
    manifest = contract.read_manifest(dataset)
    train = manifest.splits["train"]
    more = train.shards[0].model_copy(update={"path": "data-00003-000.arrow"})
    grown = contract.split_record([*train.shards, more])
    contract.write_manifest(dataset, manifest.model_copy(update={"splits": {"train": grown}, "version": 2}))
    assert stream.read(0, len(STREAM)).tolist() == STREAM
