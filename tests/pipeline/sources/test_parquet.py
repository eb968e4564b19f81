from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.document import BadRecord, Document, Record, SourceError
from pipeline.source_config import ParquetConfig
from pipeline.sources import parquet


def config_of(*files: Path, **fields: Any) -> ParquetConfig:
    return ParquetConfig(type="parquet", name="corpus", files=tuple(map(str, files)), **fields)


def read(config: ParquetConfig) -> list[Record]:
    pieces = parquet.find_pieces(config, unit_size_bytes=1 << 20)
    return [record for piece in pieces for record in parquet.read_piece(config, piece)]


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_each_row_group_is_a_piece(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"text": ["a", "b", "c"]}, row_group_size=2)
    pieces = list(parquet.find_pieces(config_of(file), unit_size_bytes=1))
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 1), (1, 2)]
    assert [record.text for record in read(config_of(file)) if isinstance(record, Document)] == ["a", "b", "c"]


def test_a_range_of_row_groups_gives_the_records_of_each(tmp_path: Path) -> None:
    texts = [f"text {n}" if n % 9 else None for n in range(1000)]
    file = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=300)  # more than a batch, and no multiple
    config = config_of(file)
    _, second, third, fourth = parquet.find_pieces(config, unit_size_bytes=1)
    together = list(parquet.read_piece(config, replace(second, stop=fourth.stop)))
    assert together == [record for piece in (second, third, fourth) for record in parquet.read_piece(config, piece)]
    assert [record.document_id for record in together[298:303] if isinstance(record, Document)] == [
        f"{file}:1:298",
        f"{file}:1:299",
        f"{file}:2:0",
        f"{file}:2:1",
        f"{file}:2:2",
    ]


def test_the_size_of_a_piece_is_that_of_its_text(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.parquet",
        {"text": ["x" * 1000], "other": ["y" * 50_000]},
        use_dictionary=False,
        write_statistics=False,
    )
    (piece,) = parquet.find_pieces(config_of(file), unit_size_bytes=1)
    assert 1000 < piece.size_bytes < 1200  # the text, its length and the page's header


def test_documents_are_named_by_row_group_and_row_or_by_id(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"text": ["a", "b"], "id": ["x", None]}, row_group_size=1)
    assert [record.document_id for record in read(config_of(file)) if isinstance(record, Document)] == [
        f"{file}:0:0",
        f"{file}:1:0",
    ]
    named = [record.document_id for record in read(config_of(file, id_field="id")) if isinstance(record, Document)]
    assert named == ["x", f"{file}:1:0"]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_text_may_be_strings_bytes_or_a_dictionary(tmp_path: Path, kind: pa.DataType) -> None:
    column = (
        pa.array(["naïve", None], pa.string()).cast(kind) if kind != pa.binary() else pa.array(["naïve".encode(), None])
    )
    first, second = read(config_of(write(tmp_path / "a.parquet", {"text": column})))
    assert isinstance(first, Document)
    assert first.text == "naïve"
    assert isinstance(second, BadRecord)
    assert second.reason == "missing_field"


def test_fields_of_structs_are_read_and_filtered_by(tmp_path: Path) -> None:
    meta = [{"score": 4.5, "id": "a"}, {"score": 2.0, "id": "b"}, None, {"score": None, "id": "d"}]
    file = write(tmp_path / "a.parquet", {"doc": [{"text": f"t{n}"} for n in range(4)], "meta": meta})
    config = config_of(
        file, text_field="doc.text", id_field="meta.id", keep_if=({"field": "meta.score", "min_value": 3},)
    )
    assert [record if isinstance(record, Document) else record.reason for record in read(config)] == [
        Document("a", "t0"),
        "unwanted_meta.score",
        "missing_meta.score",
        "missing_meta.score",
    ]


def test_a_file_of_another_schema_among_others_is_named_before_any_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": ["one"]})
    write(tmp_path / "b.parquet", {"text": [{"body": "two"}], "content": ["two"]})
    write(tmp_path / "c.parquet", {"content": ["three"]})
    with pytest.raises(SourceError, match=r"c.parquet has no column 'text'; it has content"):
        read(config_of(tmp_path / "*.parquet"))
    _, bad = read(config_of(tmp_path / "[ab].parquet"))
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.example) == ("not_text", "struct<body: string>")


def test_invalid_utf8_is_one_bad_record(tmp_path: Path) -> None:
    # a string column that holds bytes which are not UTF-8, as careless writers make them
    column = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    records = read(config_of(write(tmp_path / "a.parquet", {"text": column})))
    assert [record.text if isinstance(record, Document) else record.reason for record in records] == [
        "good",
        "invalid_utf8",
        "fine",
    ]


def test_an_id_that_is_not_utf8_spoils_no_document(tmp_path: Path) -> None:
    names = pa.array([b"a", b"b\xff", None], pa.binary()).view(pa.string())
    file = write(tmp_path / "a.parquet", {"text": ["one", "two", "three"], "id": names})
    assert read(config_of(file, id_field="id")) == [
        Document("a", "one"),
        Document("b\\xff", "two"),
        Document(f"{file}:0:2", "three"),
    ]


def test_numbers_are_not_text(tmp_path: Path) -> None:
    (bad,) = read(config_of(write(tmp_path / "a.parquet", {"text": [5]})))
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.example) == ("not_text", "5")


def test_a_missing_column_is_an_error_that_names_those_there(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"body": ["a"], "url": ["b"]})
    with pytest.raises(SourceError, match=r"source 'corpus': .*a.parquet has no column 'text'; it has body, url"):
        read(config_of(file))


def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"text": ["a" * 1000] * 100})
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"a.parquet is not a whole Parquet file \(.+\); fetch it again"):
        read(config_of(file))


def test_a_damaged_page_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"text": [f"number {n}" * 20 for n in range(1000)]}, compression="zstd")
    content = bytearray(file.read_bytes())
    content[40:4000] = bytes(3960)
    file.write_bytes(content)
    with pytest.raises(SourceError, match=r"a.parquet is not a whole Parquet file"):
        read(config_of(file))
