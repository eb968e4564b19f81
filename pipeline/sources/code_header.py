"""What stands before a file of source code, where its source asks for special tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.document import Document, Record
from pipeline.source_config import SourceCode


def with_header(record: Record, config: SourceCode) -> Record:
    """A document with the header that the config asks for; any other record as it is."""
    if not config.special_tokens or not isinstance(record, Document):
        return record
    repository = config.repository or Path(config.root).resolve().name
    return replace(record, header=(("<repo_name>", repository), ("<file_sep>", f"{record.document_id}\n")))
