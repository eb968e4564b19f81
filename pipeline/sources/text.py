"""Text files: each file is one document. The source tree reads its files the same way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.config import TextConfig
from pipeline.document import MAX_RECORD_BYTES, BadRecord, Document, shorten
from pipeline.sources.piece import Piece, find_files, readable, whole_file


def find_pieces(config: TextConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Each file is a piece."""
    return map(whole_file, find_files(config.files, source=config.name))


def read_piece(config: TextConfig, piece: Piece) -> Iterator[Document | BadRecord]:
    yield read_document(Path(piece.path), size_bytes=piece.size_bytes, document_id=readable(Path(piece.path)))


def read_document(path: Path, *, size_bytes: int, document_id: str) -> Document | BadRecord:
    """A whole file as a document, without its byte order mark."""
    if size_bytes > MAX_RECORD_BYTES:
        return BadRecord(document_id, "too_large", size_bytes, readable(path))
    content = path.read_bytes()
    try:
        return Document(document_id=document_id, text=content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        around = content[max(0, error.start - 20) : error.start + 20]
        return BadRecord(document_id, "invalid_utf8", len(content), f"byte {error.start}: {shorten(around)}")
