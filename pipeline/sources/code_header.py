"""What stands before a file of source code, where its source asks for special tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pipeline.document import Document, Record
from pipeline.source_config import SourceCode, SourceConfig

REPOSITORY_TOKEN, FILE_TOKEN = "<repo_name>", "<file_sep>"


def tokens_of_headers(sources: Iterable[SourceConfig]) -> tuple[str, ...]:
    """The special tokens that a tokenizer must have for these sources."""
    wanted = any(isinstance(source, SourceCode) and source.special_tokens for source in sources)
    return (REPOSITORY_TOKEN, FILE_TOKEN) if wanted else ()


def with_header(record: Record, config: SourceCode) -> Record:
    """A document with the header that the config asks for; any other record as it is."""
    if not config.special_tokens or not isinstance(record, Document):
        return record
    repository = config.repository or Path(config.root).resolve().name
    return replace(record, header=((REPOSITORY_TOKEN, repository), (FILE_TOKEN, f"{record.document_id}\n")))
