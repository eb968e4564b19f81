"""What became of every record: kept, or dropped under a reason's name. Tallies add up in the order of the units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.document import BAD_REASONS
from pipeline.shards.format import EncodingRecord

MAX_EXAMPLES = 3


class _Counts(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Example(_Counts):
    """One dropped record: where it lies and how it begins."""

    location: str
    content: str


class Dropped(_Counts):
    """Records dropped for one reason, and the first few of them."""

    documents: int = 0
    text_bytes: int = 0
    examples: list[Example] = Field(default_factory=list)


class Tally(_Counts):
    """Records read, kept and dropped; bytes are those of the UTF-8 text, or of the record where there is no text."""

    documents_in: int = 0
    documents_kept: int = 0
    text_bytes_kept: int = 0
    dropped: dict[str, Dropped] = Field(default_factory=dict)

    def drop(self, reason: str, *, size_bytes: int, location: str, example: str) -> None:
        dropped = self.dropped.setdefault(reason, Dropped())
        dropped.documents += 1
        dropped.text_bytes += size_bytes
        if len(dropped.examples) < MAX_EXAMPLES:
            dropped.examples.append(Example(location=location, content=example))

    @property
    def documents_dropped(self) -> int:
        return sum(dropped.documents for dropped in self.dropped.values())

    @property
    def documents_bad(self) -> int:
        """Records that are broken, as against documents that a filter did not want."""
        return sum(dropped.documents for reason, dropped in self.dropped.items() if reason in BAD_REASONS)

    def is_balanced(self) -> bool:
        """Whether documents in = kept + dropped."""
        return self.documents_in == self.documents_kept + self.documents_dropped


def add_up(tallies: Iterable[Tally]) -> Tally:
    """The sum, with the first examples of each reason; reasons in alphabetical order."""
    total = Tally()
    for tally in tallies:
        total.documents_in += tally.documents_in
        total.documents_kept += tally.documents_kept
        total.text_bytes_kept += tally.text_bytes_kept
        for reason, dropped in tally.dropped.items():
            into = total.dropped.setdefault(reason, Dropped())
            into.documents += dropped.documents
            into.text_bytes += dropped.text_bytes
            into.examples = [*into.examples, *dropped.examples][:MAX_EXAMPLES]
    total.dropped = dict(sorted(total.dropped.items()))
    return total


def add_up_encoding(records: Iterable[EncodingRecord | None]) -> tuple[EncodingRecord, ...]:
    """The sums for each engine, those of units done again after a difference apart; engines in alphabetical order."""
    sums: dict[tuple[str, bool], EncodingRecord] = {}
    for record in records:
        if record is None:
            continue
        key = (record.engine, record.difference is not None)
        before = sums.get(key)
        sums[key] = (
            record
            if before is None
            else EncodingRecord(
                engine=record.engine,
                pieces=before.pieces + record.pieces,
                pieces_checked=before.pieces_checked + record.pieces_checked,
                pieces_by_reference=before.pieces_by_reference + record.pieces_by_reference,
                difference=before.difference,
            )
        )
    return tuple(sums[key] for key in sorted(sums))


def report_tree(
    name: str,
    tallies_by_source: dict[str, Tally],
    *,
    tokens_by_split: dict[str, int],
    seconds: float,
    worker_seconds: float,
    encoding: Sequence[EncodingRecord] = (),
) -> dict[str, Any]:
    """The contents of `report.json`. `seconds` is the last attempt's; `worker_seconds` is summed over all units."""
    return {
        "name": name,
        **add_up(tallies_by_source.values()).model_dump(),
        "tokens": tokens_by_split,
        "seconds": round(seconds, 3),
        "worker_seconds": round(worker_seconds, 3),
        "encoding": [record.model_dump() for record in encoding],
        "sources": {source: tally.model_dump() for source, tally in tallies_by_source.items()},
    }
