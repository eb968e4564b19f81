"""Web archives (ISO 28500), plain or compressed. Needs the extra `web`.

Documents are the main text of `response` records that are HTML, found by trafilatura, and the bodies of `conversion`
records that are plain text (WET). Responses of another type or without a text are counted as dropped, and those whose
content encoding cannot be undone, or that name no WARC-Target-URI, as bad; records of other kinds (requests, metadata)
hold no document and are passed over. A document is named by its WARC-Record-ID.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.document import (
    MAX_RECORD_BYTES,
    BadRecord,
    Document,
    Record,
    SourceError,
    UnwantedRecord,
    one_line,
    shorten,
)
from pipeline.source_config import WarcConfig
from pipeline.sources.compression import DamagedError, open_piece
from pipeline.sources.content_encoding import UndecodableError, decoded, is_markup
from pipeline.sources.piece import Piece, whole_file
from pipeline.sources.storage import find_files, readable

_HTML = ("text/html", "application/xhtml+xml")
_READ_BYTES = 1 << 16


def find_pieces(config: WarcConfig, *, unit_size_bytes: int) -> Iterator[Piece]:
    """Each file is a piece. Raises SourceError if the extra `web` is not installed."""
    try:
        import brotli  # noqa: F401
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
            reason = one_line(error)
            raise SourceError(
                f"{name} is not a whole web archive ({reason}); fetch it again, or name its type"
            ) from None


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

    # the members are decompressed before: warcio takes a truncated gzip member for an end, and the end of a file behind
    # a record's own header, where that of HTTP should be, for the end of the archive
    archive = ArchiveIterator(_LoudFile(file), no_record_parse=True)
    load_http_headers = archive.loader.load_http_headers
    for record in archive:
        identity = record.rec_headers.get_header("WARC-Record-ID") or "a record without WARC-Record-ID"
        if archive.err_count or not record.rec_headers.get_header("Content-Length"):
            raise _CutOffError(f"{identity} is not where the one before it ends, or has no length")
        url = record.rec_headers.get_header("WARC-Target-URI") or ""
        if record.rec_type == "response":
            with contextlib.suppress(EOFError):  # what is missing is seen when the record has been read
                record.http_headers = load_http_headers("response", url, record.raw_stream, record.length)
        outcome = _record_of(record, identity, url, location=f"{name}:{identity}")
        _read_to_end(record.raw_stream, identity)
        if outcome is not None:
            yield outcome


def _record_of(record: Any, identity: str, url: str, *, location: str) -> Record | None:
    """None for a record of a kind that holds no document."""
    if record.rec_type not in ("response", "conversion"):
        return None
    stored_bytes = record.raw_stream.limit
    if record.rec_type == "response" and not url:
        return BadRecord(location, "missing_field", stored_bytes, "WARC-Target-URI")
    kind = (record.http_headers or record.rec_headers).get_header("Content-Type", "").split(";")[0].strip().lower()
    if kind not in (("text/plain",) if record.rec_type == "conversion" else _HTML):
        return UnwantedRecord(location, "not_html", stored_bytes, shorten(f"{kind}: {url}"))
    content = bytearray()
    size_bytes = 0
    try:
        for part in _body(record):
            size_bytes += len(part)
            content += part[: MAX_RECORD_BYTES + 1 - len(content)]
    except UndecodableError as error:
        return BadRecord(location, "undecodable", stored_bytes, shorten(f"{error}: {url}"))
    if size_bytes > MAX_RECORD_BYTES:
        return BadRecord(location, "too_large", size_bytes, shorten(url))
    if record.rec_type == "conversion":
        return _plain(bytes(content), identity, location, url)
    text = _main_text(bytes(content), url)
    if text is None:
        return UnwantedRecord(location, "no_main_text", size_bytes, shorten(url))
    return Document(document_id=identity, text=text, url=url)


def _body(record: Any) -> Iterator[bytes]:
    """A record's content, as it was before HTTP's codings; warcio's own reading of them takes damage for an end."""
    from warcio.bufferedreaders import BufferedReader, ChunkedDataException, ChunkedDataReader

    first = record.raw_stream.read(_READ_BYTES)
    stream, encoding = BufferedReader(record.raw_stream, starting_data=first), ""
    if record.http_headers:
        encoding = record.http_headers.get_header("Content-Encoding", "")
        coding = record.http_headers.get_header("Transfer-Encoding", "").strip().lower()
        if coding == "chunked" and not is_markup(first):  # else stored without the chunks that the header tells of
            stream = ChunkedDataReader(stream, raise_exceptions=True)
    try:
        yield from decoded(iter(lambda: stream.read(_READ_BYTES), b""), encoding=encoding)
    except ChunkedDataException as error:
        raise UndecodableError(f"chunked: {shorten(error.args[0])}") from None


def _read_to_end(stream: Any, identity: str) -> None:
    while stream.read(_READ_BYTES):
        pass
    if stream.limit > 0:  # what the record's length promises, and the file does not hold
        raise _CutOffError(f"{identity} lacks {stream.limit} of its bytes")


def _plain(content: bytes, identity: str, location: str, url: str) -> Document | BadRecord:
    try:
        return Document(document_id=identity, text=content.decode(), url=url)
    except UnicodeDecodeError:
        return BadRecord(location, "invalid_utf8", len(content), shorten(content[:1000]))


def _main_text(content: bytes, url: str) -> str | None:
    import trafilatura

    text: str | None = trafilatura.extract(content, url=url or None)
    return text or None
