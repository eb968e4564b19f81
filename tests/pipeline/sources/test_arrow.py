from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.document import BadRecord, Document, Record, SourceError
from pipeline.source_config import ArrowConfig
from pipeline.sources import arrow
from pipeline.sources.piece import Piece

TABLE = pa.table({"text": [f"text {n}" for n in range(700)], "meta": [{"id": n} for n in range(700)]})

both = pytest.mark.parametrize("kind", ["file", "stream"])


def config_of(path: Path, **fields: Any) -> ArrowConfig:
    return ArrowConfig(type="arrow", name="corpus", files=(str(path),), **fields)


def pieces_of(config: ArrowConfig) -> list[Piece]:
    return list(arrow.find_pieces(config, unit_size_bytes=1))


def read(config: ArrowConfig) -> list[Record]:
    return [record for piece in pieces_of(config) for record in arrow.read_piece(config, piece)]


def write(path: Path, table: pa.Table, kind: str, *, batch_rows: int = 300) -> Path:
    new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with new(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return path


@both
def test_every_row_is_read_once_and_in_order(tmp_path: Path, kind: str) -> None:
    config = config_of(write(tmp_path / "a.arrow", TABLE, kind), id_field="meta.id")
    assert read(config) == [Document(str(n), f"text {n}") for n in range(700)]
    assert [(piece.start, piece.stop) for piece in pieces_of(config)][:2] == (
        [(0, 1), (1, 2)] if kind == "file" else [(0, (tmp_path / "a.arrow").stat().st_size)]
    )


@both
def test_rows_are_named_by_where_they_lie(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.arrow", TABLE, kind)
    documents = [record.document_id for record in read(config_of(path)) if isinstance(record, Document)]
    assert documents[:2] + documents[-1:] == (
        [f"{path}:0:0", f"{path}:0:1", f"{path}:2:99"] if kind == "file" else [f"{path}:0", f"{path}:1", f"{path}:699"]
    )
    assert len(set(documents)) == 700


def test_a_range_of_batches_gives_the_records_of_each(tmp_path: Path) -> None:
    config = config_of(write(tmp_path / "a.arrow", TABLE, "file"))
    _, second, third = pieces_of(config)
    together = list(arrow.read_piece(config, replace(second, stop=third.stop)))
    assert together == [record for piece in (second, third) for record in arrow.read_piece(config, piece)]
    assert len(together) == 400


def test_a_range_of_batches_is_read_in_the_memory_of_one(tmp_path: Path) -> None:
    table = pa.table({"text": ["x" * 1000] * 8000})
    config = config_of(write(tmp_path / "a.arrow", table, "file", batch_rows=1000))
    first, *_, last = pieces_of(config)

    def peak_bytes(piece: Piece) -> int:
        tracemalloc.start()
        try:
            assert sum(1 for _ in arrow.read_piece(config, piece)) == 1000 * (piece.stop - piece.start)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    one_bytes = peak_bytes(first)
    assert one_bytes > 1_000_000
    assert peak_bytes(replace(first, stop=last.stop)) < 1.2 * one_bytes


@both
@pytest.mark.parametrize("cut_bytes", [1, 8, 500])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, kind: str, cut_bytes: int) -> None:
    path = write(tmp_path / "a.arrow", TABLE, kind)
    path.write_bytes(path.read_bytes()[:-cut_bytes])
    with pytest.raises(
        SourceError, match=r"a.arrow is not a whole Arrow file or stream \([^\n]+\); fetch it again, or name its type$"
    ):
        read(config_of(path))


@both
def test_damage_within_is_an_error_that_names_the_file(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.arrow", TABLE, kind)
    content = bytearray(path.read_bytes())
    content[1000 : len(content) // 2] = b"\xfe" * (len(content) // 2 - 1000)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"a.arrow is not a whole Arrow file or stream"):
        read(config_of(path))


@both
@pytest.mark.parametrize("text", [pa.string(), pa.binary(), pa.large_binary()])
def test_damaged_offsets_are_an_error_not_the_end_of_the_process(tmp_path: Path, kind: str, text: pa.DataType) -> None:
    path = write(tmp_path / "a.arrow", pa.table({"text": pa.array(["x" * 9] * 300, text)}), kind)
    width = 8 if text == pa.large_binary() else 4
    before = b"".join((9 * n).to_bytes(width, "little") for n in range(100, 110))
    after = b"".join((1 << 30).to_bytes(width, "little") for n in range(100, 110))
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))
    with pytest.raises(SourceError, match=r"a.arrow is not a whole Arrow file or stream \(Offset invariant failure"):
        read(config_of(path))


def test_what_is_no_arrow_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(b'{"text": "one"}\n')
    with pytest.raises(SourceError, match=r"a stream without its end-of-stream marker"):
        read(config_of(tmp_path / "a.arrow"))


@both
def test_a_missing_column_or_field_is_named(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.arrow", TABLE, kind)
    with pytest.raises(SourceError, match=r"source 'corpus': .*a.arrow has no column 'body'; it has text, meta"):
        read(config_of(path, text_field="body"))
    with pytest.raises(
        SourceError, match=r"a.arrow has no field 'meta.url'; what lies above 'url' is struct<id: int64>"
    ):
        read(config_of(path, id_field="meta.url"))


def test_bad_rows_are_single_bad_records(tmp_path: Path) -> None:
    text = pa.array([b"good", b"\xff", None], pa.binary()).view(pa.string())
    records = read(config_of(write(tmp_path / "a.arrow", pa.table({"text": text}), "file")))
    assert [record.reason for record in records if isinstance(record, BadRecord)] == ["invalid_utf8", "missing_field"]
