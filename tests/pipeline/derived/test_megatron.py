"""`.bin` and `.idx` read back by a reader of our own, written from the description of the format alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.derived import megatron
from pipeline.derived.megatron import write_megatron
from pipeline.shards.format import read_manifest

Document = tuple[str, tuple[int, ...]]

HEADER_BYTES = 9 + 8 + 1 + 8 + 8


def read_index(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    version, sequences, document_indices = (
        int(np.frombuffer(content, "<u8", count=1, offset=offset)[0]) for offset in (9, 18, 26)
    )
    arrays = {}
    offset = HEADER_BYTES
    for name, dtype, count in (
        ("lengths", "<i4", sequences),
        ("pointers", "<i8", sequences),
        ("document_indices", "<i8", document_indices),
    ):
        arrays[name] = np.frombuffer(content, dtype, count=count, offset=offset)
        offset += arrays[name].nbytes
    assert offset == len(content)
    return {"magic": content[:9], "version": version, "dtype_code": content[17], **arrays}


def read_pair(prefix: Path) -> list[tuple[int, ...]]:
    index = read_index(prefix.with_suffix(".idx"))
    data = prefix.with_suffix(".bin").read_bytes()
    assert np.array_equal(index["document_indices"], np.arange(len(index["lengths"]) + 1))
    assert sum(index["lengths"]) * 2 == len(data)
    return [
        tuple(np.frombuffer(data, "<u2", count=length, offset=pointer).tolist())
        for length, pointer in zip(index["lengths"], index["pointers"], strict=True)
    ]


def test_the_index_byte_for_byte(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    dataset = make_dataset(tmp_path / "dataset", [[("a", (5, 6, 0)), ("b", (7, 0))], [("c", (8, 9, 10, 0))]])
    write_megatron(dataset, read_manifest(dataset).splits["train"], tmp_path / "out")
    assert (tmp_path / "out.bin").read_bytes().hex(" ", 2) == "0500 0600 0000 0700 0000 0800 0900 0a00 0000"
    assert (tmp_path / "out.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        b"\x01\x00\x00\x00\x00\x00\x00\x00"  # version
        b"\x08"  # uint16
        b"\x03\x00\x00\x00\x00\x00\x00\x00"  # sequences
        b"\x04\x00\x00\x00\x00\x00\x00\x00"  # document indices
        + np.array([3, 2, 4], "<i4").tobytes()
        + np.array([0, 6, 10], "<i8").tobytes()
        + np.array([0, 1, 2, 3], "<i8").tobytes()
    )


@settings(max_examples=12, deadline=None)
@given(shards=st.lists(st.integers(1, 6), min_size=1, max_size=4), index_sequences=st.integers(1, 9))
def test_the_documents_come_back(
    shards: list[int],
    index_sequences: int,
    make_dataset: Callable[..., Path],
    make_documents: Callable[..., list[Document]],
) -> None:
    groups = [make_documents(size, seed=index) for index, size in enumerate(shards)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron, "_INDEX_SEQUENCES", index_sequences)
        dataset = make_dataset(Path(folder) / "dataset", groups)
        write_megatron(dataset, read_manifest(dataset).splits["train"], Path(folder) / "out")
        assert read_pair(Path(folder) / "out") == [ids for group in groups for _, ids in group]
