"""The text field of a structured record, judged in one place for JSONL, Parquet and Hugging Face rows."""

from __future__ import annotations

from pipeline.document import MAX_RECORD_BYTES, BadRecord, Document, shorten


def document_of(
    text: object,
    *,
    identity: object,
    location: str,
    size_bytes: int,
    example: object,
) -> Document | BadRecord:
    """A document if `text` is text; its id is `identity`, or, where that is None, its location.

    Bytes are read as UTF-8. What of an id is not UTF-8 is written as `\\xff`: it spoils a name, not the text.
    `example` stands in the report if the record is bad.
    """
    if text is None:
        return BadRecord(location, "missing_field", size_bytes, shorten(example))
    if isinstance(text, bytes):
        if len(text) > MAX_RECORD_BYTES:
            return BadRecord(location, "too_large", size_bytes, shorten(text[:1000]))
        try:
            text = text.decode()
        except UnicodeDecodeError:
            return BadRecord(location, "invalid_utf8", size_bytes, shorten(text[:1000]))
    if not isinstance(text, str):
        return BadRecord(location, "not_text", size_bytes, shorten(example))
    if isinstance(identity, bytes):
        identity = identity.decode("utf-8", errors="backslashreplace")
    return Document(document_id=location if identity is None else str(identity), text=text)
