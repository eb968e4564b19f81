from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.derived import export as export_module
from pipeline.derived.export import export
from pipeline.document import PipelineError

Document = tuple[str, tuple[int, ...]]
Read = Callable[..., list[Document]]


def text_of(ids: tuple[int, ...]) -> str:
    """What the tests' tokenizer decodes ids to, without the EOS."""
    return "".join(f" w{id_}" for id_ in ids[:-1])


def rows_of(documents: list[Document], *, content: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, ids in documents:
        row: dict[str, object] = {"document_id": name}
        if content != "text":
            row["input_ids"] = list(ids)
        if content != "ids":
            row["text"] = text_of(ids)
        rows.append(row)
    return rows


@pytest.mark.parametrize("content", ["ids", "text", "both"])
def test_jsonl_has_a_line_a_document(dataset: Path, tmp_path: Path, content: str, read_documents: Read) -> None:
    export(dataset, tmp_path / "out", to="jsonl", content=content)  # type: ignore[arg-type]
    for split, files in (("train", 4), ("validation", 2)):
        paths = sorted((tmp_path / "out").glob(f"{split}-*.jsonl"))
        assert [path.name for path in paths] == [f"{split}-{number:05d}.jsonl" for number in range(files)]
        rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        assert rows == rows_of(read_documents(dataset, split), content=content)


@pytest.mark.parametrize("content", ["ids", "text", "both"])
def test_parquet_has_a_row_a_document(dataset: Path, tmp_path: Path, content: str, read_documents: Read) -> None:
    export(dataset, tmp_path / "out", to="parquet", content=content)  # type: ignore[arg-type]
    for split in ("train", "validation"):
        paths = sorted((tmp_path / "out").glob(f"{split}-*.parquet"))
        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
        assert rows == rows_of(read_documents(dataset, split), content=content)


def test_megatron_has_a_pair_for_each_split(dataset: Path, tmp_path: Path) -> None:
    export(dataset, tmp_path / "out", to="megatron")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock",
        "tokenizer.json",
        "train.bin",
        "train.idx",
        "validation.bin",
        "validation.idx",
    ]


def test_a_split_without_documents_makes_no_files(
    tmp_path: Path, make_dataset: Callable[..., Path], make_documents: Callable[..., list[Document]]
) -> None:
    dataset = make_dataset(tmp_path / "dataset", [make_documents(3, seed=1)])
    for to in ("jsonl", "parquet", "megatron"):
        export(dataset, tmp_path / to, to=to)  # type: ignore[arg-type]
        assert not list((tmp_path / to).glob("validation*"))


def test_special_tokens_inside_a_document_are_written_out(tmp_path: Path, tokenizer_file: Path) -> None:
    import numpy as np
    import pyarrow as pa
    from tokenizers import Tokenizer

    from pipeline.shards.reader import Rows

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    eos, inside = 0, tokenizer.token_to_id("<file_sep>")
    ids = [*tokenizer.encode("naïve 東京").ids, inside, *tokenizer.encode("🙂 end").ids, eos]
    rows = Rows(ids=np.array(ids, dtype=np.uint16), bounds=np.array([0, len(ids)]), names=pa.array(["a"]))
    assert export_module._decode(tokenizer, rows) == ["naïve 東京<file_sep>🙂 end"]


def test_decoding_in_pieces_gives_every_document(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_documents: Read
) -> None:
    monkeypatch.setattr(export_module, "_DECODE_TOKENS", 7)
    export(dataset, tmp_path / "out", to="jsonl", content="text")
    lines = [line for path in sorted((tmp_path / "out").glob("train*")) for line in path.read_text().splitlines()]
    assert [json.loads(line)["text"] for line in lines] == [text_of(ids) for _, ids in read_documents(dataset)]


@pytest.mark.parametrize(("to", "loader"), [("parquet", "parquet"), ("jsonl", "json")])
def test_load_dataset_opens_both_splits(dataset: Path, tmp_path: Path, to: str, loader: str) -> None:
    datasets = pytest.importorskip("datasets")
    export(dataset, tmp_path / "out", to=to, content="both")  # type: ignore[arg-type]
    loaded = datasets.load_dataset(loader, data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 40, "validation": 12}


def test_megatron_holds_no_text(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"--format megatron holds ids only, not --content text; leave it out, or"):
        export(dataset, tmp_path / "out", to="megatron", content="text")
