"""A dataset in the formats of other tools: Parquet, JSON lines, Megatron-LM.

    OUT/train-00000.parquet …, validation-00000.parquet …    one file a shard; so with .jsonl
    OUT/train.bin, train.idx, validation.bin, …              Megatron
    OUT/tokenizer.json                                       what made the ids

Parquet and JSON lines open with `datasets.load_dataset("parquet" or "json", data_dir=OUT)`. Each row has `document_id`
and, by choice, `input_ids` (EOS included), `text` (decoded, without it), or both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipeline.derived.megatron import write_megatron
from pipeline.derived.new_dataset import read_tokenizer_of
from pipeline.derived.new_directory import new_directory
from pipeline.document import PipelineError
from pipeline.shards.format import (
    TOKENIZER_FILE,
    DatasetManifest,
    ShardRecord,
    read_manifest,
    write_durably,
)
from pipeline.shards.reader import Rows, read_rows

Format = Literal["parquet", "jsonl", "megatron"]
Content = Literal["ids", "text", "both"]

# decoded together: each id is a Python integer for a while
_DECODE_TOKENS = 1 << 18


def export(dataset: Path, output: Path, *, to: Format, content: Content = "ids") -> DatasetManifest:
    """Make the folder `output`; returns the manifest of what it holds.

    Raises PipelineError if `output` exists or the format cannot hold the content; DatasetError for a damaged dataset.
    """
    if to == "megatron" and content != "ids":
        raise PipelineError(f"--format megatron holds ids only, not --content {content}; leave it out, or take parquet")
    manifest = read_manifest(dataset)
    with new_directory(output) as directory:
        tokenizer_content = read_tokenizer_of(dataset, manifest)
        write_durably(directory / TOKENIZER_FILE, tokenizer_content)
        table_of = _table_maker(content, tokenizer_content)
        for name, record in manifest.splits.items():
            if to == "megatron":
                if record.documents:
                    write_megatron(dataset, record, directory / name)
                continue
            for number, shard in enumerate(record.shards):
                tables = _tables(dataset, shard, table_of)
                path = directory / f"{name}-{number:05d}.{to}"
                (_write_parquet if to == "parquet" else _write_jsonl)(path, tables)
    return manifest


def _table_maker(content: Content, tokenizer_content: bytes) -> Callable[[Rows], pa.Table]:
    tokenizer = Tokenizer.from_buffer(tokenizer_content) if content != "ids" else None

    def make(rows: Rows) -> pa.Table:
        columns: dict[str, pa.Array] = {"document_id": rows.names}
        if content != "text":
            columns["input_ids"] = pa.ListArray.from_arrays(pa.array(rows.bounds, pa.int32()), pa.array(rows.ids))
        if tokenizer is not None:
            columns["text"] = pa.array(_decode(tokenizer, rows), pa.string())
        return pa.table(columns)

    return make


def _decode(tokenizer: Tokenizer, rows: Rows) -> list[str]:
    """The text of each document. A special token in it is written out; the EOS at its end is not."""
    texts: list[str] = []
    waiting: list[list[int]] = []
    tokens = 0
    for row in range(len(rows)):
        waiting.append(rows.ids[rows.bounds[row] : rows.bounds[row + 1] - 1].tolist())
        tokens += len(waiting[-1])
        if tokens >= _DECODE_TOKENS:
            texts += tokenizer.decode_batch(waiting, skip_special_tokens=False)
            waiting, tokens = [], 0
    return texts + list(tokenizer.decode_batch(waiting, skip_special_tokens=False))


def _tables(dataset: Path, shard: ShardRecord, table_of: Callable[[Rows], pa.Table]) -> Iterator[pa.Table]:
    for rows in read_rows(dataset, shard):
        yield table_of(rows)


def _write_parquet(path: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with path.open("wb") as file:
        with pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())


def _write_jsonl(path: Path, tables: Iterator[pa.Table]) -> None:
    with path.open("wb") as file:
        for table in tables:
            for batch in table.to_batches(max_chunksize=1024):
                for row in batch.to_pylist():
                    file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        file.flush()
        os.fsync(file.fileno())
