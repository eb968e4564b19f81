from __future__ import annotations

import bz2
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pipeline.document import BadRecord, Document, Record, SourceError
from pipeline.source_config import JsonArrayConfig
from pipeline.sources import json_array, jsonl


def read(path: Path, **fields: Any) -> list[Record]:
    config = JsonArrayConfig(type="json_array", name="corpus", files=(str(path),), **fields)
    pieces = json_array.find_pieces(config, unit_size_bytes=1)
    return [record for piece in pieces for record in json_array.read_piece(config, piece)]


def outcomes(records: list[Record]) -> list[str]:
    return [record.text if isinstance(record, Document) else f"BAD {record.reason}" for record in records]


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 1 << 20])
def test_elements_are_documents_wherever_the_chunks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int
) -> None:
    monkeypatch.setattr(json_array, "_READ_BYTES", read_bytes)
    texts = ['a "quoted" [one], {two}', "back\\slash\\", "naïve 東京", "", '\\\\"', "line\nend"]
    records = [{"text": text, "more": [{"a": [1, 2]}, {}]} for text in texts]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False))
    if read_bytes > 1:  # the bracket must be in the first chunk
        path.write_bytes(b"\xef\xbb\xbf" * (read_bytes > 7) + path.read_bytes())
    assert outcomes(read(path)) == texts


def test_a_location_is_the_offset_of_the_element(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n {"text": "one"},\n {"text": "two"}\n]\n')
    assert read(path) == [Document(f"{path}@3", "one"), Document(f"{path}@21", "two")]


def test_random_arrays_are_read_as_json_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    path = tmp_path / "a.json.bz2"
    for _ in range(200):
        texts = ["".join(draw.choices('ab"\\[]{},: \n', k=draw.randint(0, 12))) for _ in range(draw.randint(0, 5))]
        path.write_bytes(bz2.compress(json.dumps([{"text": text} for text in texts]).encode()))
        monkeypatch.setattr(json_array, "_READ_BYTES", draw.randint(2, 40))
        assert outcomes(read(path)) == texts


def test_single_bad_elements_are_bad_records(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(
        b'[{"text": "one"}, 5, {"text": null}, {"text" 1}, {"text": "\xff"}, , {"text": 7}, {"text": "two"}]'
    )
    assert outcomes(read(path)) == [
        "one",
        "BAD not_an_object",
        "BAD missing_field",
        "BAD malformed_json",
        "BAD invalid_utf8",
        "BAD malformed_json",
        "BAD not_text",
        "two",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"text": "one"}', r"it begins with '\{\"text\": \"one\"\}'"),
        (b"", "it begins with ''"),
        (b"[", "it has no end"),
        (b'[{"text": "one"}', "it has no end"),
        (b'[{"text": "one\\', "it has no end"),
        (b'[{"text": "one"}}', r"its last bracket is \}"),
        (b'[{"text": "one"}] []', "something follows its end"),
    ],
)
def test_structural_damage_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"a.json is not a whole JSON array \({reason}\); fetch it again"):
        read(path)


def test_an_empty_array_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b" [ ] \n")
    assert read(path) == []


def test_an_element_over_the_limit_is_one_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "MAX_RECORD_BYTES", 40)
    monkeypatch.setattr(jsonl, "MAX_RECORD_BYTES", 40)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "one"}, {"text": "x" * 100}, {"text": "two"}]))
    one, large, two = read(path)
    assert outcomes([one, two]) == ["one", "two"]
    assert isinstance(large, BadRecord)
    assert (large.reason, large.size_bytes) == ("too_large", 112)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    element = json.dumps({"text": "word " * 2000})
    path.write_text("[" + ",".join([element] * 3000) + "]")  # 30 MB
    config = JsonArrayConfig(type="json_array", name="corpus", files=(str(path),))
    (piece,) = json_array.find_pieces(config, unit_size_bytes=1)
    tracemalloc.start()
    try:
        assert sum(1 for _ in json_array.read_piece(config, piece)) == 3000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 << 20  # a few chunks of 1 MB
