from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.derived.new_dataset import NewDataset
from pipeline.document import PipelineError
from pipeline.shards.format import read_manifest
from pipeline.shards.reader import read_rows
from pipeline.shards.verify import verify_dataset

Document = tuple[str, tuple[int, ...]]


def test_shards_are_numbered_as_they_come_and_are_of_one_source(
    dataset: Path, tmp_path: Path, read_documents: Callable[..., list[Document]]
) -> None:
    whole = read_manifest(dataset)
    first, second, third, _ = whole.splits["train"].shards
    (rows,) = read_rows(dataset, first)
    (more,) = read_rows(dataset, second)
    output = tmp_path / "out"
    output.mkdir()
    with NewDataset(output) as new:
        new.add("train", rows, [4, 2], source="web")
        new.add("train", rows, [1], source="web")
        new.add("train", more, [], source="code")
        new.add("train", more, [0], source="code")
        new.place("train", dataset, third)
        new.add("train", rows, [0], source=None)
        manifest = new.finish(
            whole.model_copy(update={"documents_in": 5 + 10, "dropped": {}}), (dataset / "tokenizer.json").read_bytes()
        )
    shards = manifest.splits["train"].shards
    assert [(shard.path, shard.documents, shard.source) for shard in shards] == [
        ("data-00000-000.arrow", 3, "web"),
        ("data-00001-000.arrow", 1, "code"),
        ("data-00002-000.arrow", 10, "web"),
        ("data-00003-000.arrow", 1, None),
    ]
    documents = read_documents(dataset)
    expected = [documents[4], documents[2], documents[1], documents[10], *documents[20:30], documents[0]]
    assert read_documents(output) == expected
    assert verify_dataset(output, threads=1) == []


def test_no_training_documents_are_an_error(dataset: Path, tmp_path: Path) -> None:
    whole = read_manifest(dataset)
    (tmp_path / "out").mkdir()
    with NewDataset(tmp_path / "out") as new:
        new.place("validation", dataset, whole.splits["validation"].shards[0])
        with pytest.raises(PipelineError, match=r"dataset would hold no documents to train on; take more of the"):
            new.finish(whole, b"")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_error_leaves_no_open_shard(dataset: Path, tmp_path: Path) -> None:
    (rows,) = read_rows(dataset, read_manifest(dataset).splits["train"].shards[0])
    (tmp_path / "out").mkdir()

    def fail() -> None:
        with NewDataset(tmp_path / "out") as new:
            new.add("train", rows, [0], source=None)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["validation"]
