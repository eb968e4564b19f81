from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.document import BadRecord, Document, Record, SourceError, UnwantedRecord
from pipeline.source_config import HuggingFaceConfig
from pipeline.sources import huggingface

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("offline_datasets")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    rows = {"text": [f"document {n}" for n in range(9)] + [None], "id": [f"id-{n}" for n in range(10)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def config_of(path: Path | str, **fields: Any) -> HuggingFaceConfig:
    return HuggingFaceConfig(type="huggingface", name="corpus", path=str(path), **fields)


def read(config: HuggingFaceConfig, *, unit_size_bytes: int) -> list[Record]:
    pieces = huggingface.find_pieces(config, unit_size_bytes=unit_size_bytes)
    return [record for piece in pieces for record in huggingface.read_piece(config, piece)]


def test_load_from_disk_reads_every_row_once_and_in_order(saved: Path) -> None:
    records = read(config_of(saved, loader="load_from_disk", id_field="id"), unit_size_bytes=60)
    assert records[:9] == [Document(f"id-{n}", f"document {n}") for n in range(9)]
    assert isinstance(records[9], BadRecord)
    assert (records[9].reason, records[9].location) == ("missing_field", f"{saved}/train:9")


def test_rows_are_cut_by_their_mean_size(saved: Path) -> None:
    pieces = list(huggingface.find_pieces(config_of(saved, loader="load_from_disk"), unit_size_bytes=60))
    assert len(pieces) > 1
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    assert pieces[-1].stop == 10


def test_the_version_of_an_input_is_its_fingerprint(saved: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["other"] * 10, "id": ["x"] * 10}).save_to_disk(tmp_path / "other")
    versions = {
        next(huggingface.find_pieces(config_of(path, loader="load_from_disk"), unit_size_bytes=60)).version
        for path in (saved, tmp_path / "other")
    }
    assert len(versions) == 2


def test_a_dataset_that_is_replaced_after_it_was_listed_is_refused(saved: Path) -> None:
    config = config_of(saved, loader="load_from_disk")
    piece, *_ = huggingface.find_pieces(config, unit_size_bytes=1 << 20)
    shutil.rmtree(saved)
    datasets.Dataset.from_dict({"text": ["other"] * 10, "id": ["x"] * 10}).save_to_disk(saved)
    huggingface._load.cache_clear()  # as in a worker, which opens it anew
    with pytest.raises(
        SourceError,
        match=r"^source 'corpus': .*saved has changed since the run listed it; restore it, or name its revision and",
    ):
        list(huggingface.read_piece(config, piece))


def test_load_dataset_reads_a_folder_as_it_reads_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    datasets.Dataset.from_dict({"text": ["one", "two"]}).to_parquet(folder / "train.parquet")
    records = read(config_of(folder), unit_size_bytes=1 << 20)
    assert [record.text for record in records if isinstance(record, Document)] == ["one", "two"]


def test_a_split_of_several_is_chosen(tmp_path: Path) -> None:
    splits = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")})
    splits.save_to_disk(tmp_path / "saved")
    config = config_of(tmp_path / "saved", loader="load_from_disk", split="test")
    assert [record.text for record in read(config, unit_size_bytes=9) if isinstance(record, Document)] == ["test"]
    with pytest.raises(SourceError, match=r"has no split 'dev'; it has train, test"):
        read(config_of(tmp_path / "saved", loader="load_from_disk", split="dev"), unit_size_bytes=9)


def test_a_missing_column_is_an_error_that_names_those_there(saved: Path) -> None:
    with pytest.raises(SourceError, match=r"source 'corpus': .* has no column 'body'; it has text, id"):
        read(config_of(saved, loader="load_from_disk", text_field="body"), unit_size_bytes=9)


@pytest.mark.parametrize("loader", ["load_from_disk", "load_dataset"])
def test_a_dataset_that_cannot_be_had_is_one_line(tmp_path: Path, loader: str) -> None:
    with pytest.raises(SourceError, match=rf"^source 'corpus': datasets.{loader} of '.*none' failed: [^\n]+$"):
        read(config_of(tmp_path / "none", loader=loader), unit_size_bytes=9)


def test_rows_that_are_not_utf8_are_single_bad_records(tmp_path: Path) -> None:
    # string columns that hold bytes which are not UTF-8, as careless writers make them
    texts = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    names = pa.array([b"a", b"b", b"c\xff"], pa.binary()).view(pa.string())
    datasets.Dataset(pa.table({"text": texts, "id": names})).save_to_disk(tmp_path / "saved")
    first, bad, last = read(config_of(tmp_path / "saved", loader="load_from_disk", id_field="id"), unit_size_bytes=999)
    assert [first, last] == [Document("a", "good"), Document("c\\xff", "fine")]
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.size_bytes, bad.example) == ("invalid_utf8", 2, "\\xff\\xfe")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train.parquet", b"PAR1", "ArrowInvalid: .+"),
        ("train.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000, mtime=0)[:-9], "EOFError: .+"),
        # the loader wraps what went wrong in a DatasetGenerationError, which is no ValueError
        ("train.jsonl", b'{"text": "a"}\n{"text"\n', "ArrowInvalid: JSON parse error.+"),
    ],
)
def test_a_damaged_file_behind_load_dataset_is_one_line(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(
        SourceError, match=rf"^source 'corpus': datasets.load_dataset of '.*' failed: {reason}$"
    ) as error:
        read(config_of(folder), unit_size_bytes=9)
    assert "\n" not in str(error.value)


def test_damaged_rows_behind_load_from_disk_are_one_line(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": [f"document {n}" for n in range(900)]}).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    content = bytearray(arrow.read_bytes())
    content[1000:3000] = b"\xfe" * 2000  # the offsets of the strings
    arrow.write_bytes(content)
    with pytest.raises(SourceError, match=r"saved/train: rows from \d+ are damaged \(ArrowInvalid: [^\n]+\); fetch it"):
        read(config_of(tmp_path / "saved", loader="load_from_disk"), unit_size_bytes=1 << 20)


def test_fields_of_structs_conditions_and_templates(tmp_path: Path) -> None:
    rows = {"text": ["one", "two"], "meta": [{"language": "en", "id": 1}, {"language": "fr", "id": 2}]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    config = config_of(
        tmp_path / "saved",
        loader="load_from_disk",
        template="{meta.id}: {text}",
        id_field="meta.id",
        keep_if=({"field": "meta.language", "one_of": ["en"]},),
    )
    first, second = read(config, unit_size_bytes=1 << 20)
    assert first == Document("1", "1: one")
    assert isinstance(second, UnwantedRecord)
    assert (second.reason, second.example) == ("unwanted_meta.language", "fr")


@pytest.mark.parametrize("damage", ["half an Arrow file", "an empty state.json"])
def test_a_damaged_folder_of_save_to_disk_is_one_line(saved: Path, damage: str) -> None:
    (arrow,) = saved.glob("*.arrow")
    if damage == "half an Arrow file":
        arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 2])
    else:
        (saved / "state.json").write_text("{}")
    with pytest.raises(SourceError, match=r"^source 'corpus': datasets.load_from_disk of '.*' failed: \w+: [^\n]+$"):
        read(config_of(saved, loader="load_from_disk"), unit_size_bytes=9)
