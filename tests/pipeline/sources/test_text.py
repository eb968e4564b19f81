from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.document import BadRecord, Document
from pipeline.source_config import TextConfig
from pipeline.sources import text


def read(folder: Path) -> list[Document | BadRecord]:
    config = TextConfig(type="text", name="corpus", files=(f"{folder}/**/*.txt",))
    pieces = text.find_pieces(config, unit_size_bytes=1)
    return [record for piece in pieces for record in text.read_piece(config, piece)]


def test_each_file_is_a_document_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_bytes(b"zwei\r\nZeilen")
    (tmp_path / "a.txt").write_text("one")
    assert read(tmp_path) == [
        Document(f"{tmp_path}/a.txt", "one"),
        Document(f"{tmp_path}/deep/b.txt", "zwei\r\nZeilen"),
    ]


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert read(tmp_path) == [Document(f"{tmp_path}/a.txt", "one")]


def test_invalid_utf8_says_where(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xe9 au lait")
    assert read(tmp_path) == [BadRecord(f"{tmp_path}/a.txt", "invalid_utf8", 12, "byte 3: abc\\xe9 au lait")]


def test_a_file_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_RECORD_BYTES", 3)
    (tmp_path / "a.txt").write_text("four")
    (bad,) = read(tmp_path)
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.size_bytes) == ("too_large", 4)
