"""What sources hand on: a document, or a record that is not one, with the reason.

Contract: a source yields `Record`s and nothing else; whatever it reads is one of the three, so that documents
in = kept + dropped can be checked. Names of reasons are data: they stand in reports and manifests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

BadReason = Literal[
    "malformed_json",
    "malformed_row",
    "not_an_object",
    "missing_field",
    "not_text",
    "invalid_utf8",
    "undecodable",
    "too_large",
]
BAD_REASONS: tuple[BadReason, ...] = get_args(BadReason)

# a record is held in memory as a whole; one beyond this is a file in the wrong format, not a document
MAX_RECORD_BYTES = 256 << 20

# of a record in a report, and of a library's error in ours
EXAMPLE_CHARACTERS = 200
# of a text, more than enough to make one of
EXAMPLE_SOURCE_CHARACTERS = 1000


class PipelineError(ValueError):
    """A pipeline that cannot go on, and what its user can do: one line.

    The tree: `SourceError` for a corpus that is missing or damaged, `TokenizerError` for a tokenizer that cannot make
    this dataset, `WorkerError` for a worker process that died. `shards.format.DatasetError` stands apart: it belongs to
    whoever reads datasets.
    """


class SourceError(PipelineError):
    """A source with no files, or a file that is damaged as a whole. The message names the source or the file."""


class LongText:
    """A text of many megabytes, as strings that follow each other, none of them empty.

    Python holds a string in as many bytes a character as its widest needs: with one emoji, all of an English text takes
    four times its size. Of parts only one does.
    """

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts
        self.beginning = parts[0][:EXAMPLE_SOURCE_CHARACTERS]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def whole(self) -> str:
        """As one string, which is held instead of the parts from then on."""
        if len(self.parts) > 1:
            self.parts = ["".join(self.parts)]
        return self.parts[0]

    def take(self) -> Iterator[str]:
        """Part after part, each given up as the next is asked for: the text is empty afterwards."""
        self.parts.reverse()
        while self.parts:
            yield self.parts.pop()


def parts_of(text: str | LongText) -> list[str]:
    return text.parts if isinstance(text, LongText) else [text]


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus, and where it came from.

    `header` stands before the text when it is encoded: special tokens, each with the text that follows it. Filters,
    deduplication and the split by hash do not see it.
    """

    document_id: str
    text: str | LongText
    url: str | None = None
    header: tuple[tuple[str, str], ...] = ()

    @property
    def whole_text(self) -> str:
        """One string, also where it is held in parts: for who looks at all of it at once."""
        return self.text.whole() if isinstance(self.text, LongText) else self.text

    @property
    def beginning(self) -> str:
        """Some of the text, for an example of it; also of one whose parts have been taken."""
        return self.text.beginning if isinstance(self.text, LongText) else self.text[:EXAMPLE_SOURCE_CHARACTERS]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that holds no document: where it lies, its size in bytes, and the beginning of what was found."""

    location: str
    reason: BadReason
    size_bytes: int
    example: str


@dataclass(frozen=True, slots=True)
class UnwantedRecord:
    """A sound record that the source's config does not want, such as one of another language. Fields as BadRecord's."""

    location: str
    reason: str
    size_bytes: int
    example: str


Record = Document | BadRecord | UnwantedRecord


def shorten(content: object) -> str:
    """At most 200 characters of anything, for examples in reports; always text that UTF-8 can hold."""
    raw = content if isinstance(content, bytes) else str(content).encode(errors="backslashreplace")
    text = raw.decode(errors="backslashreplace")
    return text if len(text) <= EXAMPLE_CHARACTERS else f"{text[:EXAMPLE_CHARACTERS]}…"


def one_line(error: object) -> str:
    """The first 200 characters of what an error says, its line ends and indents made single spaces."""
    return " ".join(str(error).split())[:EXAMPLE_CHARACTERS]
