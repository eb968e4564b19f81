from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.document import BadRecord, Document, Record, SourceError
from pipeline.source_config import JsonlConfig
from pipeline.sources import jsonl


def config_of(*files: Path, **fields: Any) -> JsonlConfig:
    return JsonlConfig(type="jsonl", name="corpus", files=tuple(map(str, files)), **fields)


def read(config: JsonlConfig, *, unit_size_bytes: int = 1 << 20) -> list[Record]:
    pieces = jsonl.find_pieces(config, unit_size_bytes=unit_size_bytes)
    return [record for piece in pieces for record in jsonl.read_piece(config, piece)]


def texts(records: Sequence[Record]) -> list[str]:
    return [record.text if isinstance(record, Document) else f"BAD {record.reason}" for record in records]


def lines(*values: str) -> bytes:
    return b"".join(json.dumps({"text": value}).encode() + b"\n" for value in values)


def test_every_line_is_a_document_named_by_its_offset(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "one"}\n{"text": "two"}')
    # the first line has 16 bytes
    assert read(config_of(file)) == [Document(f"{file}@0", "one"), Document(f"{file}@16", "two")]


def test_id_field_names_documents(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "one", "id": 7}\n{"text": "two"}\n')
    records = read(config_of(file, id_field="id"))
    assert [record.document_id for record in records if isinstance(record, Document)] == ["7", f"{file}@25"]


@pytest.mark.parametrize("unit_size_bytes", [1, 2, 7, 16, 17, 100])
def test_byte_ranges_give_every_line_once_and_in_order(tmp_path: Path, unit_size_bytes: int) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines("one", "", "three", "four" * 5) + b"\n\n" + lines("six"))
    assert texts(read(config_of(file), unit_size_bytes=unit_size_bytes)) == ["one", "", "three", "four" * 5, "six"]


def test_gzip_of_two_members_is_one_text(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(lines("one")) + gzip.compress(lines("two")))
    assert texts(read(config_of(file), unit_size_bytes=1)) == ["one", "two"]


def test_zstandard_of_two_frames_is_one_text(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(zstandard.compress(lines("one")) + zstandard.compress(lines("two")))
    assert texts(read(config_of(file), unit_size_bytes=1)) == ["one", "two"]


def test_zstandard_larger_than_its_buffers(tmp_path: Path) -> None:
    import random

    draw = random.Random(0)
    many = ["".join(draw.choices("abcdefghij ", k=1000)) for _ in range(5000)]
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(zstandard.compress(lines(*many)))
    assert texts(read(config_of(file))) == many


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("cut_bytes", [1, 30])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, suffix: str, cut_bytes: int) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    content = lines(*(f"number {number}" for number in range(500)))
    file.write_bytes((gzip.compress(content) if suffix == ".gz" else zstandard.compress(content))[:-cut_bytes])
    with pytest.raises(SourceError, match=rf"a.jsonl\{suffix} is damaged or truncated \(.+\); fetch it again"):
        read(config_of(file))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_of_no_bytes_is_a_failed_download(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    file.touch()
    with pytest.raises(SourceError, match=rf"a.jsonl\{suffix} is damaged or truncated \(it has no bytes\); fetch it"):
        read(config_of(file))
    file.write_bytes(gzip.compress(b"") if suffix == ".gz" else zstandard.compress(b""))
    assert read(config_of(file)) == []


def test_a_file_that_is_not_gzip_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(lines("one"))
    with pytest.raises(SourceError, match=r"a.jsonl.gz is damaged or truncated"):
        read(config_of(file))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "one"', "malformed_json"),
        (b'{"text": "\\ud800"}', "malformed_json"),  # half a surrogate pair is no character
        (b'["text"]', "not_an_object"),
        (b'{"body": "one"}', "missing_field"),
        (b'{"text": null}', "missing_field"),
        (b'{"text": 5}', "not_text"),
        (b'{"text": "\xff"}', "invalid_utf8"),
    ],
)
def test_a_bad_line_is_one_bad_record_with_its_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines("one") + line + b"\n" + lines("three"))
    first, bad, third = read(config_of(file))
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.location, bad.size_bytes) == (reason, f"{file}@16", len(line) + 1)
    assert texts([first, third]) == ["one", "three"]


def test_an_example_shows_the_beginning_of_the_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "\xff' + b"x" * 1000 + b"\n")
    (bad,) = read(config_of(file))
    assert isinstance(bad, BadRecord)
    assert bad.example == '{"text": "\\xff' + "x" * 186 + "…"  # 200 characters


def test_a_line_over_the_limit_is_skipped_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_RECORD_BYTES", 20)
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines("one", "x" * 100, "three"))
    assert texts(read(config_of(file))) == ["one", "BAD too_large", "three"]


def test_a_line_of_100_mb_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines("one") + b'{"text": "' + b"x" * 100_000_000 + b'"}\n' + lines("three"))
    first, large, third = read(config_of(file), unit_size_bytes=30 << 20)
    assert texts([first, third]) == ["one", "three"]
    assert isinstance(large, Document)
    assert len(large.text) == 100_000_000


def test_a_byte_order_mark_is_not_part_of_the_record(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + lines("one"))
    assert texts(read(config_of(file))) == ["one"]


def test_files_are_read_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(name))
    assert texts(read(config_of(tmp_path / "c*.jsonl", tmp_path / "*.jsonl"))) == ["a", "b", "c"]


def test_a_glob_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source 'corpus': no file matches .*/none/\*\.jsonl"):
        read(config_of(tmp_path / "none" / "*.jsonl"))
