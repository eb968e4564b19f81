"""The peers of `loader.py`: each writes the same ids in its own format, and reads random packed samples of them.

A contender is made of the ids and a folder, and gives its readers by name: a function of sample numbers, and how many
of them it is given in a call. It imports its package itself: one that is not installed is left out.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from megatron_dataset import open_gpt_dataset

SEQUENCE = 2048
BATCH = 64
Reader = tuple[Callable[[np.ndarray], object], int]


def datasets_rows(file: Path) -> dict[str, Reader]:
    """`datasets` over a packed dataset, one row of 2,049 ids a sample, with the numpy format."""
    import datasets

    rows = datasets.Dataset.from_file(str(file)).select_columns("input_ids").with_format("numpy")
    return {
        "datasets, by index": (lambda at: rows[int(at[0])]["input_ids"], 1),
        f"datasets, {BATCH} indices": (lambda at: rows[at]["input_ids"], BATCH),
    }


def megatron(ids: np.ndarray, folder: Path) -> dict[str, Reader]:
    """Megatron's GPTDataset over the documents: its own samples, and the numpy query below them."""
    importlib.import_module("megatron.core")  # one that is missing is noticed before gigabytes are written
    prefix, lengths = folder / "megatron", np.diff(np.flatnonzero(ids == 0), prepend=-1)
    ids.tofile(prefix.with_suffix(".bin"))
    starts = np.cumsum(lengths) - lengths
    with prefix.with_suffix(".idx").open("wb") as file:
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, len(lengths), len(lengths) + 1))
        for part in (lengths.astype("<i4"), (2 * starts).astype("<i8"), np.arange(len(lengths) + 1, dtype="<i8")):
            file.write(part.tobytes())
    dataset = open_gpt_dataset(prefix, int(lengths.sum() - 1) // SEQUENCE, sequence_length=SEQUENCE)
    query = dataset._query_document_sample_shuffle_indices
    return {
        "Megatron GPTDataset, by index": (lambda at: dataset[int(at[0])], 1),
        "Megatron, its numpy query": (lambda at: query(int(at[0])), 1),
    }


def mosaicml_streaming(ids: np.ndarray, folder: Path) -> dict[str, Reader]:
    """A StreamingDataset of rows as arrays, all of it local."""
    from streaming import MDSWriter, StreamingDataset

    target = folder / "mosaicml"
    with MDSWriter(out=str(target), columns={"tokens": f"ndarray:uint16:{SEQUENCE + 1}"}) as writer:
        for row in _rows(ids):
            writer.write({"tokens": row})
    dataset = StreamingDataset(local=str(target), batch_size=1)
    return {"mosaicml-streaming, by index": (lambda at: dataset[int(at[0])]["tokens"], 1)}


def litdata(ids: np.ndarray, folder: Path) -> dict[str, Reader]:
    """A StreamingDataset of tokens, all of it local: by index, and its own shuffled iteration."""
    import torch
    from litdata import StreamingDataset, TokensLoader
    from litdata.streaming.cache import Cache

    target = folder / "litdata"
    cache = Cache(str(target), chunk_size=(SEQUENCE + 1) * 8192, item_loader=TokensLoader(SEQUENCE + 1))
    for number, row in enumerate(_rows(ids)):
        cache[number] = torch.from_numpy(row)
    cache.done()
    cache.merge()
    readers: dict[str, Reader] = {}
    by_index = StreamingDataset(str(target), item_loader=TokensLoader(SEQUENCE + 1))
    readers["litdata, by index"] = (lambda at: by_index[int(at[0])], 1)
    shuffled = StreamingDataset(str(target), item_loader=TokensLoader(SEQUENCE + 1), shuffle=True)
    iterators: list[Any] = []

    def following(at: np.ndarray) -> object:
        if not iterators:
            iterators.append(iter(shuffled))
        try:
            return next(iterators[0])
        except StopIteration:
            iterators[0] = iter(shuffled)
            return next(iterators[0])

    readers["litdata, its shuffled iteration"] = (following, 1)
    return readers


def _rows(ids: np.ndarray) -> np.ndarray:
    return ids[: len(ids) // (SEQUENCE + 1) * (SEQUENCE + 1)].reshape(-1, SEQUENCE + 1)


CONTENDERS: dict[str, Callable[[np.ndarray, Path], dict[str, Reader]]] = {
    "megatron-core": megatron,
    "mosaicml-streaming": mosaicml_streaming,
    "litdata": litdata,
}
