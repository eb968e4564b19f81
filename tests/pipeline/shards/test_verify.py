from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.shards.format import (
    SCHEMA,
    DatasetError,
    DatasetManifest,
    ShardRecord,
    SplitRecord,
    TokenizerRecord,
    digest_bytes,
    digest_file,
    read_manifest,
    write_manifest,
)
from pipeline.shards.verify import verify_dataset

TOKENIZER = b"{}"
EOS = 0


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """A dataset of one training shard with these rows; its manifest tells the truth but for `fields`."""

    def make(rows: list[list[int]], *, schema: pa.Schema = SCHEMA, dropped_but_untold: int = 0) -> Path:
        columns = {"input_ids": rows, "document_id": [str(index) for index in range(len(rows))]}
        path = tmp_path / "data-00000-000.arrow"
        with pa.ipc.new_stream(path, schema) as stream:
            stream.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))
        shard = ShardRecord(
            path=path.name,
            documents=len(rows),
            tokens=sum(map(len, rows)),
            size_bytes=path.stat().st_size,
            digest=digest_file(path),
        )
        (tmp_path / "tokenizer.json").write_bytes(TOKENIZER)
        manifest = DatasetManifest(
            name="test",
            tokenizer=TokenizerRecord(digest=digest_bytes(TOKENIZER), vocab_size=10, eos_token_id=EOS),
            splits={"train": SplitRecord(documents=shard.documents, tokens=shard.tokens, shards=(shard,))},
            documents_in=len(rows) + dropped_but_untold,
            text_bytes_kept=1,
            config_digest="",
        )
        write_manifest(tmp_path, manifest)
        return tmp_path

    return make


def test_a_whole_dataset_has_no_problems(make_dataset: Callable[..., Path]) -> None:
    assert verify_dataset(make_dataset([[1, 2, EOS], [9, EOS]]), threads=1) == []


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([[1, EOS], [2, 3]], "a row does not end in EOS (0), or holds it before its end"),
        ([[1, EOS, 2, EOS]], "a row does not end in EOS (0), or holds it before its end"),
        # the same number of EOS as rows, in the wrong places
        ([[1, EOS, 2], [EOS, 3]], "a row does not end in EOS (0), or holds it before its end"),
        ([[1, EOS], []], "a row does not end in EOS (0), or holds it before its end"),
        ([[10, EOS]], "id 10 is not below vocab_size=10"),
    ],
)
def test_a_bad_row_is_found(make_dataset: Callable[..., Path], rows: list[list[int]], problem: str) -> None:
    assert verify_dataset(make_dataset(rows), threads=1) == [f"data-00000-000.arrow: {problem}"]


def test_a_shard_of_another_schema_is_found(make_dataset: Callable[..., Path]) -> None:
    schema = pa.schema([pa.field("input_ids", pa.list_(pa.int32()))])
    (problem,) = verify_dataset(make_dataset([[1, EOS]], schema=schema), threads=1)
    assert problem.startswith("data-00000-000.arrow: another schema: input_ids: list<item: int32>")


def corruptions() -> Iterator[tuple[str, Callable[[Path], object], str]]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    yield "flip", flip, "contents changed (another digest than the manifest's)"
    yield "cut", lambda path: path.write_bytes(path.read_bytes()[:-8]), " bytes, wanted "
    yield "remove", lambda path: path.unlink(), "missing"


@pytest.mark.parametrize(("corrupt", "problem"), [(act, text) for _, act, text in corruptions()])
def test_a_damaged_shard_is_named(
    make_dataset: Callable[..., Path], corrupt: Callable[[Path], object], problem: str
) -> None:
    dataset = make_dataset([[1, 2, EOS]])
    corrupt(dataset / "data-00000-000.arrow")
    (found,) = verify_dataset(dataset, threads=1)
    assert found.startswith("data-00000-000.arrow: ")
    assert problem in found


def test_counts_of_the_manifest_are_compared_with_the_rows(make_dataset: Callable[..., Path]) -> None:
    dataset = make_dataset([[1, 2, EOS]])
    manifest = read_manifest(dataset)
    (shard,) = manifest.splits["train"].shards
    wrong = shard.model_copy(update={"tokens": 4})
    split = SplitRecord(documents=1, tokens=3, shards=(wrong,))
    write_manifest(dataset, manifest.model_copy(update={"splits": {"train": split}}))
    assert verify_dataset(dataset, threads=1) == [
        "manifest.json: train says 3 tokens, its shards say 4",
        "data-00000-000.arrow: 1 documents and 3 tokens, wanted 1 and 4",
    ]


def test_documents_that_are_neither_kept_nor_dropped_are_found(make_dataset: Callable[..., Path]) -> None:
    assert verify_dataset(make_dataset([[1, EOS]], dropped_but_untold=1), threads=1) == [
        "manifest.json: 2 documents in, but 1 kept and 0 dropped"
    ]


def test_another_tokenizer_is_found(make_dataset: Callable[..., Path]) -> None:
    dataset = make_dataset([[1, EOS]])
    (dataset / "tokenizer.json").write_bytes(b"{ }")
    assert verify_dataset(dataset, threads=1) == ["tokenizer.json: contents changed"]
    (dataset / "tokenizer.json").unlink()
    assert verify_dataset(dataset, threads=1) == ["tokenizer.json: missing"]


def test_a_shard_that_the_manifest_does_not_name_is_found(make_dataset: Callable[..., Path]) -> None:
    dataset = make_dataset([[1, EOS]])
    (dataset / "validation").mkdir()
    (dataset / "cache-0123456789abcdef.arrow").touch()  # what `datasets` writes when it shuffles
    for name in ("data-00000-001.arrow", "validation/data-00007-000.arrow"):
        (dataset / name).touch()
    assert verify_dataset(dataset, threads=1) == [
        "data-00000-001.arrow: not in the manifest; remove it",
        "validation/data-00007-000.arrow: not in the manifest; remove it",
    ]
    (dataset / ".work").mkdir()  # a run is adding to the dataset
    assert verify_dataset(dataset, threads=1) == []


def test_no_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"is not finished \(no manifest.json\); make it with"):
        verify_dataset(tmp_path, threads=1)
