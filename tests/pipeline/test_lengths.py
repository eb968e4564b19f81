from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lengths import Bucket, Lengths, draw_lengths, measure_lengths
from pipeline.shards.format import DatasetManifest, SplitRecord, TokenizerRecord, split_record
from pipeline.shards.writer import ShardWriter


def write_lengths(dataset: Path, lengths: list[int]) -> SplitRecord:
    """Documents of these lengths, in two shards."""
    shards = []
    for unit in range(2):
        with ShardWriter(dataset, split="train", unit=unit, shard_size_bytes=1 << 30) as writer:
            for index in range(unit, len(lengths), 2):
                writer.add(f"d{index}", np.array([*[1] * (lengths[index] - 1), 0], dtype=np.uint16))
            shards += writer.finish()
    return split_record(shards)


def measure(tmp_path: Path, lengths: list[int]) -> Lengths:
    return measure_lengths(tmp_path, write_lengths(tmp_path, lengths))


def test_every_document_is_counted_in_powers_of_two(tmp_path: Path) -> None:
    buckets = measure(tmp_path, [2, 3, 3, 4, 7, 8, 1, 70]).powers_of_two()
    assert buckets == [
        Bucket(1, 2, 1),
        Bucket(2, 4, 3),
        Bucket(4, 8, 2),
        Bucket(8, 16, 1),
        Bucket(16, 32, 0),
        Bucket(32, 64, 0),
        Bucket(64, 128, 1),
    ]


def test_the_longest_is_named(tmp_path: Path) -> None:
    # in stream order: the even documents, then the odd ones
    measured = measure(tmp_path, [5, 90, 7, 90, 3])
    assert (measured.longest, measured.longest_tokens) == ("d1", 90)


@given(draw=st.randoms(use_true_random=False), count=st.integers(1, 99))
def test_the_median_is_within_an_eighth(draw: random.Random, count: int) -> None:
    lengths = [draw.randint(1, 10_000) for _ in range(count)]
    powers = np.unique(np.floor(2.0 ** (np.arange(33 * 8 + 1) / 8)).astype(np.int64))
    counts = np.histogram(lengths, powers)[0]
    median = Lengths(edges=powers, counts=counts, longest="", longest_tokens=0).median()
    true = sorted(lengths)[(count - 1) // 2]
    assert true <= median <= true * 9 / 8


def test_no_documents_have_no_buckets(tmp_path: Path) -> None:
    assert measure(tmp_path, []).powers_of_two() == []


@pytest.mark.parametrize("lengths", [[1], [3, 5, 9], [2**k for k in range(14)]])
def test_a_plot_is_a_png_of_the_lengths(tmp_path: Path, lengths: list[int]) -> None:
    record = write_lengths(tmp_path, lengths)
    manifest = DatasetManifest(
        name="test",
        tokenizer=TokenizerRecord(digest="", vocab_size=2, eos_token_id=0),
        splits={"train": record},
        documents_in=len(lengths),
        text_bytes_kept=1,
        config_digest="",
    )
    draw_lengths(measure_lengths(tmp_path, record), manifest, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(tmp_path.glob(".*"))
