"""Web archives (ISO 28500), plain or compressed. Needs the extra `web`.

Documents are the main text of `response` records that are HTML, found by trafilatura, and the bodies of `conversion`
records that are plain text (WET). Responses of another type or without a text are counted as dropped; records of other
kinds (requests, metadata) hold no document and are passed over. A document is named by its WARC-Record-ID.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.document import MAX_RECORD_BYTES, BadRecord, Document, Record, SourceError, UnwantedRecord, shorten
from pipeline.source_config import WarcConfig
from pipeline.sources.compression import DamagedError, open_piece
from pipeline.sources.piece import Piece, whole_file
from pipeline.sources.storage import find_files, readable

_HTML = ("text/html", "application/xhtml+xml")


def find_pieces(config: WarcConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Each file is a piece. Raises SourceError if the extra `web` is not installed."""
    try:
        import trafilatura  # noqa: F401
        import warcio  # noqa: F401
    except ImportError as error:
        raise SourceError(
            f"source {config.name!r}: type warc needs {error.name}; "
            "install the extra `web`: pip install 'smollm2-pretraining[web]'"
        ) from None
    return map(whole_file, find_files(config.files, source=config.name))


def read_piece(config: WarcConfig, piece: Piece) -> Iterator[Record]:
    """Raises SourceError, naming the file, if it is cut off or is no web archive."""
    from warcio.exceptions import ArchiveLoadFailed

    name = readable(piece.path)
    with open_piece(piece) as file:
        try:
            yield from _records(file, name)
        except (ArchiveLoadFailed, _CutOffError) as error:
            reason = " ".join(str(error).split())[:160]
            raise SourceError(f"{name} is not a whole web archive ({reason}); fetch it again") from None


class _CutOffError(ValueError):
    pass


class _LoudFile:
    """A file whose EOFError is another: warcio takes an EOFError for the end of the archive."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size_bytes: int) -> bytes:
        try:
            return self._file.read(size_bytes)
        except EOFError as error:
            raise DamagedError(str(error)) from None


def _records(file: BinaryIO, name: str) -> Iterator[Record]:
    from warcio.archiveiterator import ArchiveIterator

    # the members are decompressed before: warcio takes a truncated gzip member for an end
    archive = ArchiveIterator(_LoudFile(file))
    for record in archive:
        identity = record.rec_headers.get_header("WARC-Record-ID") or "a record without WARC-Record-ID"
        url = record.rec_headers.get_header("WARC-Target-URI") or ""
        if archive.err_count or record.rec_headers.get_header("Content-Length") is None:
            raise _CutOffError(f"{identity} is not where the one before it ends, or has no length")
        size_bytes, content = _body(record, identity)
        location = f"{name}:{identity}"
        kind = (record.http_headers or record.rec_headers).get_header("Content-Type", "").split(";")[0].strip().lower()
        if record.rec_type not in ("response", "conversion"):
            continue
        if size_bytes > MAX_RECORD_BYTES:
            yield BadRecord(location, "too_large", size_bytes, shorten(url))
        elif record.rec_type == "conversion" and kind == "text/plain":
            yield _plain(content, identity, location)
        elif record.rec_type == "response" and kind in _HTML:
            text = _main_text(content, url)
            if text is None:
                yield UnwantedRecord(location, "no_main_text", size_bytes, shorten(url))
            else:
                yield Document(document_id=identity, text=text)
        else:
            yield UnwantedRecord(location, "not_html", size_bytes, shorten(f"{kind}: {url}"))


def _body(record: Any, identity: str) -> tuple[int, bytes]:
    """Size and bytes of a record's content, at most MAX_RECORD_BYTES + 1 of them; read to its end in any case."""
    stream = record.content_stream()
    content = bytearray()
    size_bytes = 0
    while part := stream.read(1 << 16):
        size_bytes += len(part)
        content += part[: MAX_RECORD_BYTES + 1 - len(content)]
    while record.raw_stream.read(1 << 16):  # what HTTP's chunks leave
        pass
    if record.raw_stream.limit > 0:  # what the record's length promises, and the file does not hold
        raise _CutOffError(f"{identity} lacks {record.raw_stream.limit} of its bytes")
    return size_bytes, bytes(content)


def _plain(content: bytes, identity: str, location: str) -> Document | BadRecord:
    try:
        return Document(document_id=identity, text=content.decode())
    except UnicodeDecodeError:
        return BadRecord(location, "invalid_utf8", len(content), shorten(content[:1000]))


def _main_text(content: bytes, url: str) -> str | None:
    import trafilatura

    text: str | None = trafilatura.extract(content, url=url or None)
    return text or None
