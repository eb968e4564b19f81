from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.derived import shuffle as shuffling
from pipeline.derived.shuffle import bucket_size_for, shuffle
from pipeline.shards.format import ShardRecord, Split, SplitRecord, read_manifest, split_record
from pipeline.shards.verify import verify_dataset

Document = tuple[str, tuple[int, ...]]
Read = Callable[..., list[Document]]


def in_order_of_numbers(documents: list[Document], *, seed: int, split: Split) -> list[Document]:
    """The reference; the key of Philox is (seed, 2 for the training split or 3 for the other)."""
    key = np.array([seed, {"train": 2, "validation": 3}[split]], dtype=np.uint64)
    numbers = np.random.Philox(key=key).random_raw(len(documents)).tolist()
    return [documents[index] for index in sorted(range(len(documents)), key=numbers.__getitem__)]


@settings(max_examples=15, deadline=None)
@given(
    shards=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    seed=st.integers(0, 2**64 - 1),
    bucket_size_bytes=st.sampled_from((1, 50, 200, 500, 1 << 20)),
)
def test_the_order_is_that_of_the_reference_whatever_the_buckets(
    shards: list[int],
    seed: int,
    bucket_size_bytes: int,
    make_dataset: Callable[..., Path],
    make_documents: Callable[..., list[Document]],
    read_documents: Read,
) -> None:
    groups = [make_documents(size, seed=index) for index, size in enumerate(shards)]
    held = [make_documents(5, seed=99)]
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "dataset", groups, held)
        output = Path(folder) / "shuffled"
        shuffle(dataset, output, seed=seed, bucket_size_bytes=bucket_size_bytes)
        train = [document for group in groups for document in group]
        assert read_documents(output) == in_order_of_numbers(train, seed=seed, split="train")
        assert read_documents(output, "validation") == in_order_of_numbers(held[0], seed=seed, split="validation")
        assert verify_dataset(output, threads=1) == []


def test_the_bytes_do_not_depend_on_the_buckets(dataset: Path, tmp_path: Path) -> None:
    made = []
    for folder, bucket_size_bytes in (("one", 1 << 20), ("many", 100)):
        (tmp_path / folder).mkdir()
        output = tmp_path / folder / "shuffled"
        shuffle(dataset, output, seed=5, bucket_size_bytes=bucket_size_bytes, shard_size_bytes=300)
        assert not (output / ".buckets").exists()
        files = [path for path in output.rglob("*") if path.is_file() and path.name != ".lock"]
        made.append({path.relative_to(output): path.read_bytes() for path in files})
    assert made[0] == made[1]
    assert len(read_manifest(tmp_path / "one" / "shuffled").splits["train"].shards) > 1


def split_of(size_bytes: int) -> SplitRecord:
    shard = ShardRecord(path="data-00000-000.arrow", documents=1, tokens=1, size_bytes=size_bytes, digest="sha256:0")
    return split_record([shard])


@pytest.mark.parametrize(
    ("size_bytes", "asked_mib", "mib"),
    [
        (1 << 30, 128, 128),
        (256 << 30, 128, 128),
        (1 << 40, 128, 512),
        (1 << 40, 1024, 1024),
        (4 << 40, 128, 2048),
        (6 << 40, 1, 2048),
    ],
)
def test_buckets_grow_with_the_dataset_up_to_2_gib(
    size_bytes: int, asked_mib: int, mib: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert bucket_size_for(split_of(size_bytes), asked_bytes=asked_mib << 20) == mib << 20
    assert len(caplog.messages) == (mib > asked_mib)
    for message in caplog.messages:
        assert message == (
            f"shuffle: buckets of {mib << 20:,} bytes, not {asked_mib << 20:,}, of which there would be more than "
            "2,048; it takes memory for about two"
        )


def pieces_in(path: Path) -> int:
    pieces = 0
    with pa.memory_map(str(path)) as file:
        while file.tell() < file.size():
            with pa.ipc.open_stream(file) as stream:
                pieces += sum(1 for _ in stream)
    return pieces


def test_one_of_few_buckets_gets_one_piece_of_all_that_is_laid_together(
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    make_documents: Callable[..., list[Document]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = make_dataset(tmp_path / "dataset", [make_documents(40, seed=seed) for seed in range(12)])
    lay, read = shuffling._Buckets.lay, shuffling._read_streams
    laid, pieces = [], []

    def counting_lay(buckets: Any, held: Any, draw: Any) -> None:
        laid.append(len(held))
        lay(buckets, held, draw)

    def counting_read(path: Path) -> pa.RecordBatch:
        pieces.append(pieces_in(path))
        return read(path)

    monkeypatch.setattr(shuffling, "_MOST_BUCKETS", 2)
    monkeypatch.setattr(shuffling._Buckets, "lay", counting_lay)
    monkeypatch.setattr(shuffling, "_read_streams", counting_read)
    shuffle(dataset, tmp_path / "out", seed=1, bucket_size_bytes=1)
    assert laid == [2] * 6
    assert pieces == [6, 6]


def test_another_seed_is_another_order(dataset: Path, tmp_path: Path, read_documents: Read) -> None:
    for seed in (1, 2):
        shuffle(dataset, tmp_path / str(seed), seed=seed)
    first, second = read_documents(tmp_path / "1"), read_documents(tmp_path / "2")
    assert first != second
    assert sorted(first) == sorted(second) == sorted(read_documents(dataset))


def test_a_shuffle_keeps_what_is_known_of_the_documents(dataset: Path, tmp_path: Path) -> None:
    whole, shuffled = read_manifest(dataset), shuffle(dataset, tmp_path / "out", seed=1)
    for field in ("documents_in", "text_bytes_kept", "dropped", "encoding", "sources", "documents", "tokens"):
        assert getattr(shuffled, field) == getattr(whole, field), field
    # the shards hold documents of both sources
    assert shuffled.splits["train"].shards[0].source is None


def test_a_dataset_of_one_source_has_shards_of_it(
    tmp_path: Path, make_dataset: Callable[..., Path], make_documents: Callable[..., list[Document]]
) -> None:
    dataset = make_dataset(tmp_path / "dataset", [make_documents(5, seed=1)], sources=("web",))
    assert shuffle(dataset, tmp_path / "out", seed=1).splits["train"].shards[0].source == "web"


def test_memory_is_bounded_by_the_buckets(
    tmp_path: Path, make_dataset: Callable[..., Path], make_documents: Callable[..., list[Document]]
) -> None:
    # 5.6 MB of ids in 4 shards
    groups = [[(f"{n}:{m}", (*[n + 1] * 6999, 0)) for m in range(100)] for n in range(4)]
    dataset = make_dataset(tmp_path / "dataset", groups)
    peaks = {}
    for bucket_size_bytes in (1 << 18, 1 << 30):
        pool = pa.default_memory_pool()
        watched = pa.proxy_memory_pool(pool)
        pa.set_memory_pool(watched)
        try:
            shuffle(dataset, tmp_path / str(bucket_size_bytes), seed=1, bucket_size_bytes=bucket_size_bytes)
        finally:
            pa.set_memory_pool(pool)
        peaks[bucket_size_bytes] = watched.max_memory()
    # in one bucket: all of it, at least once; in 22 buckets: a few times the largest piece that is laid, one batch
    assert peaks[1 << 30] > 5_600_000
    assert peaks[1 << 18] < peaks[1 << 30] / 2
