"""Text and Markdown files, plain or compressed: each file is one document. Trees and checkouts are read so too."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.document import MAX_RECORD_BYTES, BadRecord, Document, Record, shorten
from pipeline.source_config import TextConfig
from pipeline.sources.compression import open_piece
from pipeline.sources.piece import Piece, whole_file
from pipeline.sources.storage import find_files, readable


def find_pieces(config: TextConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Each file is a piece."""
    return map(whole_file, find_files(config.files, source=config.name))


def read_piece(config: TextConfig, piece: Piece) -> Iterator[Record]:
    """Raises SourceError, naming the file, if it is compressed and damaged or truncated."""
    yield read_document(piece, document_id=readable(piece.path))


def read_document(piece: Piece, *, document_id: str) -> Document | BadRecord:
    """A whole file as a document, without its byte order mark."""
    with open_piece(piece) as file:
        content = file.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        return BadRecord(document_id, "too_large", piece.size_bytes, shorten(content[:1000]))
    try:
        return Document(document_id=document_id, text=content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        around = content[max(0, error.start - 20) : error.start + 20]
        return BadRecord(document_id, "invalid_utf8", len(content), f"byte {error.start}: {shorten(around)}")
