"""What became of every record: kept, or dropped under a reason's name. Tallies add up in the order of the units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.document import BAD_REASONS, shorten
from pipeline.histograms import TOKENS_PER_BYTE_BINS, Histograms, length_bound
from pipeline.shards.format import EncodingRecord

# of a source, for each reason
MAX_EXAMPLES = 100


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
    """Records read, kept and dropped; bytes are those of the UTF-8 text, or of the record where there is no text.

    Tokens count the EOS of every document.
    """

    documents_in: int = 0
    documents_kept: int = 0
    text_bytes_kept: int = 0
    tokens_kept: int = 0
    dropped: dict[str, Dropped] = Field(default_factory=dict)
    histograms: Histograms = Field(default_factory=Histograms)

    def keep(self, *, tokens: Sequence[int], text_bytes: Sequence[int]) -> None:
        """Count kept documents, given the tokens and the bytes of text of each."""
        self.documents_kept += len(tokens)
        self.text_bytes_kept += sum(text_bytes)
        self.tokens_kept += sum(tokens)
        self.histograms.add(tokens=tokens, text_bytes=text_bytes)

    def drop(self, reason: str, *, size_bytes: int, location: str, example: str) -> None:
        dropped = self.dropped.setdefault(reason, Dropped())
        dropped.documents += 1
        dropped.text_bytes += size_bytes
        if len(dropped.examples) < MAX_EXAMPLES:
            # an id is the corpus's own text, of any length
            dropped.examples.append(Example(location=shorten(location), content=shorten(example)))

    def add(self, other: Tally) -> None:
        """Count what another counted, with the first examples of each reason; reasons stay in alphabetical order."""
        self.documents_in += other.documents_in
        self.documents_kept += other.documents_kept
        self.text_bytes_kept += other.text_bytes_kept
        self.tokens_kept += other.tokens_kept
        self.histograms += other.histograms
        if new := other.dropped.keys() - self.dropped.keys():
            self.dropped = dict(sorted({**self.dropped, **{reason: Dropped() for reason in new}}.items()))
        for reason, dropped in other.dropped.items():
            into = self.dropped[reason]
            into.documents += dropped.documents
            into.text_bytes += dropped.text_bytes
            into.examples += dropped.examples[: MAX_EXAMPLES - len(into.examples)]

    def with_examples(self, max_examples: int) -> Tally:
        """The same counts with at most so many examples for each reason, the first."""
        dropped = {
            reason: entry.model_copy(update={"examples": entry.examples[:max_examples]})
            for reason, entry in self.dropped.items()
        }
        return self.model_copy(update={"dropped": dropped})

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
        total.add(tally)
    return total


def examples_per_unit(units: int) -> int:
    """How many examples of each reason a unit records, so that the records of a source's `units` stay small together
    and its examples come from all over it."""
    return math.ceil(MAX_EXAMPLES / units)


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
    worker_seconds_by_source: Mapping[str, float],
    encoding: Sequence[EncodingRecord] = (),
) -> dict[str, Any]:
    """The contents of `report.json`; examples stand with their sources. Bin k of a histogram begins at bound k.

    `seconds` is the last attempt's; `worker_seconds` are summed over all units.
    """
    total = add_up(tallies_by_source.values())
    return {
        "name": name,
        **total.model_dump(exclude={"dropped": {"__all__": {"examples"}}}),
        "tokens": tokens_by_split,
        "seconds": round(seconds, 3),
        "worker_seconds": round(sum(worker_seconds_by_source.values()), 3),
        "encoding": [record.model_dump() for record in encoding],
        "histogram_bounds": {
            "length": [length_bound(k) for k in range(len(total.histograms.documents_by_length) + 1)],
            "tokens_per_byte": [k / TOKENS_PER_BYTE_BINS for k in range(TOKENS_PER_BYTE_BINS + 1)],
        },
        "sources": {
            source: {**tally.model_dump(), "worker_seconds": round(worker_seconds_by_source[source], 3)}
            for source, tally in tallies_by_source.items()
        },
    }
