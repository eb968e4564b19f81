from __future__ import annotations

import gzip
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.document import BadRecord, Document, Record, SourceError
from pipeline.source_config import CsvConfig
from pipeline.sources import csv


def read(path: Path, **fields: Any) -> list[Record]:
    config = CsvConfig(type="csv", name="corpus", files=(str(path),), **fields)
    return [r for piece in csv.find_pieces(config, unit_size_bytes=1) for r in csv.read_piece(config, piece)]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_quotes_doubled_quotes_and_line_ends_in_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'\xef\xbb\xbfid,text\r\n1,"a, ""b""\r\nc"\r\n\r\n2,plain\n')
    # the header has 3 + 9 bytes, the first row 19, the blank line 2
    assert read(path) == [Document(f"{path}@12", 'a, "b"\r\nc'), Document(f"{path}@31", "plain")]
    assert [record.document_id for record in read(path, id_field="id") if isinstance(record, Document)] == ["1", "2"]


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_tsv_is_told_by_its_suffix(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"text\tlang\na, b\ten\nc\tfr\n")
    records = read(path, keep_if=({"field": "lang", "one_of": ["en"]},))
    assert [getattr(record, "text", None) for record in records] == ["a, b", None]


def test_a_delimiter_and_column_names_may_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"1;one\n2;two\n")
    records = read(path, delimiter=";", column_names=("id", "text"), id_field="id")
    assert records == [Document("1", "one"), Document("2", "two")]


def test_single_bad_rows_are_bad_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'text,n\none,1\ntwo\n"a"b,2\n,3\n\xff,4\nlast,5\n')
    records = read(path)
    assert [record.text if isinstance(record, Document) else record.reason for record in records] == [
        "one",
        "malformed_row",
        "malformed_row",
        "missing_field",
        "invalid_utf8",
        "last",
    ]
    assert isinstance(records[1], BadRecord)
    assert (records[1].location, records[1].size_bytes) == (f"{path}@13", 4)
    assert records[1].example == "1 fields, wanted 2: two"


def test_a_malformed_row_that_is_not_utf8_can_be_reported(tmp_path: Path) -> None:
    (bad,) = read(write(tmp_path / "a.csv", b'text\n"a"\xff\n'))
    assert isinstance(bad, BadRecord)
    assert bad.reason == "malformed_row"
    assert bad.example.endswith(': "a"\\xff\n')


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.sampled_from([b'"', b",", b"\n", b"\r", b"\xff", b"\xed\xa0\x80", b"a"])))
def test_whatever_bytes_a_row_has_its_record_can_be_stored(tmp_path: Path, rows: list[bytes]) -> None:
    try:
        records = read(write(tmp_path / "a.csv", b"text,id\n" + b"".join(rows)), id_field="id")
    except SourceError:  # quotes without an end
        return
    for record in records:
        "".join(str(value) for value in astuple(record)).encode()


def test_two_columns_of_a_name_that_is_read_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text,x,x\none,1,2\n")
    assert read(path) == [Document(f"{path}@9", "one")]
    with pytest.raises(SourceError, match=r"source 'corpus': .*a.csv has two columns named 'x'; rename one"):
        read(path, id_field="x")
    with pytest.raises(ValidationError, match=r"column_names has 'x' twice; give each column a name of its own"):
        read(path, column_names=("text", "x", "x"))


def test_quotes_without_an_end_are_structural_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", b'text\none\n"two\nthree\n' + b"x\n" * 100)
    with pytest.raises(SourceError, match=r"a.csv ends within quotes that open at or after byte 9; close them"):
        read(path)
    monkeypatch.setattr(csv, "_MAX_FIELD_CHARACTERS", 50)
    with pytest.raises(SourceError, match=r"a.csv has quotes without an end, at or after byte 9; close them"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", r"source 'corpus': .*a.csv has no column 'text'; it has a, b"),
        (b"a,\xff\n1,2\n", r"a.csv has no column 'text'; it has a, \\xff$"),
        (b"", r"a.csv has no header row; name its columns"),
        (b'"a\n', r"a.csv has no header row \(unexpected end of data\)"),
    ],
)
def test_a_header_without_the_column_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(write(tmp_path / "a.csv", content))


def test_a_header_alone_holds_no_records(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", b"text")) == []
