from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import PipelineConfig
from pipeline.document import BadRecord, Document, Record, SourceError, UnwantedRecord
from pipeline.plan import units_of
from pipeline.source_config import HuggingFaceStreamConfig
from pipeline.sources import huggingface_stream

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("offline_datasets")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of 300 rows each."""
    path = tmp_path / "repository"
    path.mkdir()
    for part in range(2):
        rows = [{"text": f"text {part}-{row}", "meta": {"id": row, "part": part}} for row in range(300)]
        (path / f"train-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(path: Path, **fields: Any) -> HuggingFaceStreamConfig:
    return HuggingFaceStreamConfig(type="huggingface_stream", name="corpus", path=str(path), **fields)


def read(config: HuggingFaceStreamConfig) -> list[Record]:
    pieces = huggingface_stream.find_pieces(config, unit_size_bytes=1000)
    return [record for piece in pieces for record in huggingface_stream.read_piece(config, piece)]


def test_every_file_is_a_piece_and_every_row_is_read_in_order(folder: Path) -> None:
    records = read(config_of(folder))
    assert records == [
        Document(f"{folder}/train:{part}:{row}", f"text {part}-{row}") for part in range(2) for row in range(300)
    ]


def test_files_of_unknown_size_share_no_unit(folder: Path, make_config: Callable[..., PipelineConfig]) -> None:
    source = {"type": "huggingface_stream", "name": "corpus", "path": str(folder)}
    pieces = list(huggingface_stream.find_pieces(config_of(folder), unit_size_bytes=8 << 20)) * 512
    units = units_of({"corpus": pieces}, make_config(sources=[source]))
    assert {len(unit.pieces) for unit in units} == {1}


def test_nothing_is_stored_in_the_cache(folder: Path, tmp_path: Path) -> None:
    read(config_of(folder))
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_fields_of_structs_and_conditions(folder: Path) -> None:
    records = read(config_of(folder, id_field="meta.id", keep_if=({"field": "meta.part", "one_of": [1]},)))
    assert [isinstance(record, UnwantedRecord) for record in records] == [True] * 300 + [False] * 300
    assert records[300] == Document("0", "text 1-0")


def test_rows_that_are_not_utf8_are_single_bad_records(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "train.parquet")
    good, bad, fine = read(config_of(tmp_path))
    assert isinstance(bad, BadRecord)
    assert bad.reason == "invalid_utf8"
    assert [record.text for record in (good, fine) if isinstance(record, Document)] == ["good", "fine"]


def test_a_file_that_changes_after_it_was_listed_is_refused(folder: Path) -> None:
    config = config_of(folder)
    piece, _ = huggingface_stream.find_pieces(config, unit_size_bytes=1000)
    os.utime(folder / "train-1.jsonl", (1, 1))
    huggingface_stream._open.cache_clear()  # as a worker that starts later
    with pytest.raises(
        SourceError, match=r"repository has changed since the run listed it; restore it, or name its revision and"
    ):
        list(huggingface_stream.read_piece(config, piece))


def test_a_damaged_file_is_one_line_and_the_others_are_read(folder: Path) -> None:
    (folder / "train-1.jsonl").unlink()
    (folder / "train-1.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": "a", "meta": {"id": 1, "part": 1}}\n' * 999)[:-9]
    )
    config = config_of(folder)
    first, second = huggingface_stream.find_pieces(config, unit_size_bytes=1000)
    assert len(list(huggingface_stream.read_piece(config, first))) == 300
    with pytest.raises(
        SourceError, match=r"^source 'corpus': file 1 of .*repository failed at or after row 0: [^\n]+$"
    ):
        list(huggingface_stream.read_piece(config, second))


def test_a_missing_column_is_an_error_that_names_those_there(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"source 'corpus': .* has no column 'body'; it has text, meta"):
        read(config_of(folder, text_field="body"))


@pytest.mark.parametrize("fields", [{"split": "dev"}, {"config_name": "none"}])
def test_a_split_or_a_config_that_is_not_there_is_one_line(folder: Path, fields: dict[str, str]) -> None:
    with pytest.raises(SourceError, match=r"^source 'corpus': streaming '.*', split '.*' failed: ValueError: [^\n]+$"):
        read(config_of(folder, **fields))
