from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.derived.merge import merge
from pipeline.document import PipelineError
from pipeline.shards.format import DatasetError, DroppedRecord, SourceRecord, read_manifest
from pipeline.shards.verify import verify_dataset

MakeDataset = Callable[..., Path]
MakeDocuments = Callable[..., list[tuple[str, tuple[int, ...]]]]
Read = Callable[..., list[tuple[str, tuple[int, ...]]]]


@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4))
def test_the_documents_are_those_of_all_in_their_order(
    sizes: list[list[int]], make_dataset: MakeDataset, make_documents: MakeDocuments, read_documents: Read
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        datasets, train, validation = [], [], []
        for number, shards in enumerate(sizes):
            documents = [make_documents(size, seed=100 * number + shard) for shard, size in enumerate(shards)]
            # one dataset in two has a validation split
            held = [make_documents(2, seed=100 * number + 50)] if number % 2 else []
            datasets.append(make_dataset(Path(folder) / str(number), documents, held))
            train += [document for shard in documents for document in shard]
            validation += [document for shard in held for document in shard]
        merge(Path(folder) / "all", datasets)
        assert read_documents(Path(folder) / "all") == train
        assert read_documents(Path(folder) / "all", "validation") == validation
        assert verify_dataset(Path(folder) / "all", threads=1) == []


def test_shards_are_the_same_files(dataset: Path, tmp_path: Path) -> None:
    result = merge(tmp_path / "all", [dataset])
    assert (result.linked_shards, result.copied_shards) == (6, 0)
    assert (tmp_path / "all" / "data-00003-000.arrow").samefile(dataset / "data-00003-000.arrow")


def test_of_shards_that_are_links_the_files_are_linked(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for shard in list(dataset.rglob("*.arrow")):
        blob = shard.rename(tmp_path / "blobs" / f"{shard.parent.name}-{shard.name}")
        shard.symlink_to(os.path.relpath(blob, shard.parent))  # as in a cache of the Hugging Face hub
    output = tmp_path / "elsewhere" / "all"
    output.parent.mkdir()
    assert merge(output, [dataset]).linked_shards == 6
    assert verify_dataset(output, threads=1) == []
    assert not any(shard.is_symlink() for shard in output.rglob("*.arrow"))


def test_copies_are_files_of_their_own(dataset: Path, tmp_path: Path) -> None:
    result = merge(tmp_path / "all", [dataset], placement="copy")
    assert (result.linked_shards, result.copied_shards) == (0, 6)
    copy = tmp_path / "all" / "data-00003-000.arrow"
    assert not copy.samefile(dataset / "data-00003-000.arrow")
    assert verify_dataset(tmp_path / "all", threads=1) == []


def test_where_no_link_can_be_made_shards_are_copied(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert merge(tmp_path / "all", [dataset]).copied_shards == 6
    assert verify_dataset(tmp_path / "all", threads=1) == []


def test_the_manifest_adds_up(
    dataset: Path, tmp_path: Path, make_dataset: MakeDataset, make_documents: MakeDocuments
) -> None:
    other = make_dataset(tmp_path / "other", [make_documents(5, seed=7)], sources=("code",))
    first, second = read_manifest(dataset), read_manifest(other)
    manifest = merge(tmp_path / "all", [dataset, other]).manifest
    assert manifest == read_manifest(tmp_path / "all")
    assert manifest.name == "all"
    assert manifest.documents == 40 + 12 + 5
    assert manifest.documents_in == (52 + 3) + (5 + 3)
    assert manifest.dropped == {"too_short": DroppedRecord(documents=6, text_bytes=10)}
    assert manifest.text_bytes_kept == 4 * (first.tokens + second.tokens)
    code, more = first.sources["code"], second.sources["code"]
    assert manifest.sources == {
        "web": first.sources["web"],
        "code": SourceRecord(
            documents=code.documents + 5, tokens=code.tokens + more.tokens, text_bytes=code.text_bytes + more.text_bytes
        ),
    }
    assert manifest.origin is not None
    assert manifest.origin.datasets == (first.digest(), second.digest())
    assert [record.pieces for record in manifest.encoding] == [57]


def test_a_dataset_of_unknown_sources_leaves_those_of_all_unknown(dataset: Path, tmp_path: Path) -> None:
    merge(tmp_path / "old", [dataset])
    path = tmp_path / "old" / "manifest.json"
    manifest = read_manifest(tmp_path / "old").model_copy(update={"sources": {}})
    path.write_text(manifest.model_dump_json())
    assert merge(tmp_path / "all", [dataset, tmp_path / "old"]).manifest.sources == {}


def test_load_from_disk_opens_it(dataset: Path, tmp_path: Path, read_documents: Read) -> None:
    datasets = pytest.importorskip("datasets")
    merge(tmp_path / "all", [dataset])
    loaded = datasets.load_from_disk(str(tmp_path / "all"))
    assert [(row["document_id"], tuple(row["input_ids"])) for row in loaded] == read_documents(dataset)
    assert len(datasets.load_from_disk(str(tmp_path / "all" / "validation"))) == 12


def test_another_tokenizer_is_refused(
    dataset: Path, tmp_path: Path, make_dataset: MakeDataset, make_documents: MakeDocuments
) -> None:
    other = make_dataset(tmp_path / "other", [make_documents(5, seed=7)], vocab_size=51)
    expected = (
        r"other was made with another tokenizer \(sha256:\w{12}…\) than .*dataset \(sha256:\w{12}…\); "
        r"make it again with tokenizer.path=.*dataset/tokenizer.json$"
    )
    with pytest.raises(PipelineError, match=expected):
        merge(tmp_path / "all", [dataset, other])
    assert not (tmp_path / "all").exists()


def test_a_dataset_given_twice_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"dataset is given twice; to see its documents more often, give it more"):
        merge(tmp_path / "all", [dataset, dataset / ".." / "dataset"])


def test_a_copy_finds_damage_that_a_size_does_not_show(dataset: Path, tmp_path: Path) -> None:
    shard = dataset / "data-00001-000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=r"data-00001-000.arrow is damaged \(another digest than its manifest's\)"):
        merge(tmp_path / "all", [dataset], placement="copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]
