"""The n-grams of the evaluation sets, and the search for them in documents (GPT-3, arXiv:2005.14165, §C)."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.deduplication.array_file import ArrayFile, write_arrays
from pipeline.deduplication.config import DecontaminationConfig
from pipeline.deduplication.folder import Folder, damaged
from pipeline.deduplication.ngrams import Hashes, WordHasher, ngram_hashes, pieces_of
from pipeline.document import BadRecord, Document, PipelineError
from pipeline.shards.format import write_durably
from pipeline.source_config import SourceConfig
from pipeline.sources.catalog import reader_of

log = logging.getLogger(__name__)

_PIECE_BYTES = 128 << 20
_MIN_TABLE_BITS, _MAX_TABLE_BITS = 12, 26


@dataclass(frozen=True, slots=True)
class EvaluationNgrams:
    """Distinct n-grams in the order of their hashes, each with the first record that holds it.

    `items` are the records that have an n-gram: the evaluation's name and the record's place.
    """

    hashes: Hashes
    item_of: NDArray[np.uint32]
    items: list[tuple[str, str]]


def read_evaluations(config: DecontaminationConfig) -> EvaluationNgrams:
    """Raises PipelineError for a record that cannot be read, and for an evaluation that has no n-gram to look for."""
    items: list[tuple[str, str]] = []
    found: list[tuple[int, Hashes]] = []
    hasher = WordHasher()
    for evaluation in config.evaluations:
        records = ngrams = 0
        before = len(items)
        for document in _documents(evaluation):
            words = hasher(document.whole_text)
            hashes, _ = ngram_hashes(words, np.array([len(words)]), ngram_words=config.ngram_words)
            records += 1
            if len(hashes):
                found.append((len(items), hashes))
                items.append((evaluation.name, document.document_id))
                ngrams += len(hashes)
        if not ngrams:
            raise PipelineError(
                f"evaluation {evaluation.name!r}: none of its {records:,} records has {config.ngram_words} words, so "
                "none could be found; choose a template that joins more of its fields, or a smaller ngram_words"
            )
        log.info(
            "decontamination: %s has %s n-grams; %s of its %s records are shorter than %d words and cannot be found",
            evaluation.name,
            f"{ngrams:,}",
            f"{records - (len(items) - before):,}",
            f"{records:,}",
            config.ngram_words,
        )
    hashes = np.concatenate([some for _, some in found])
    item_of = np.concatenate([np.full(len(some), item, np.uint32) for item, some in found])
    distinct, first = np.unique(hashes, return_index=True)
    return EvaluationNgrams(distinct, item_of[first], items)


def _documents(evaluation: SourceConfig) -> list[Document]:
    reader = reader_of(evaluation)
    documents: list[Document] = []
    for piece in reader.find_pieces(evaluation, unit_size_bytes=_PIECE_BYTES):
        for record in reader.read_piece(evaluation, piece):
            if isinstance(record, BadRecord):
                raise PipelineError(
                    f"evaluation {evaluation.name!r}: {record.location} is bad ({record.reason}); mend or remove it: "
                    "what cannot be read cannot be looked for"
                )
            if isinstance(record, Document):
                documents.append(record)
    return documents


def keep_evaluations(ngrams: EvaluationNgrams, folder: Folder) -> None:
    """Write them for the workers. Raises PipelineError if an earlier attempt of the run has looked for others."""
    if folder.evaluation_items.is_file():
        stored = load_evaluations(folder.evaluations, folder.evaluation_items)
        if stored.items != ngrams.items or not np.array_equal(stored.hashes, ngrams.hashes):
            dataset = folder.directory.parent.parent
            raise PipelineError(
                f"the evaluation files have changed since the run in {dataset} began; "
                f"restore them, or remove {dataset} to start over"
            )
        return
    write_arrays(folder.evaluations, hashes=ngrams.hashes, item_of=ngrams.item_of)
    write_durably(folder.evaluation_items, json.dumps(ngrams.items).encode())


def load_evaluations(arrays: Path, items: Path) -> EvaluationNgrams:
    """What `keep_evaluations` wrote. Raises PipelineError if it is damaged."""
    section = ArrayFile(arrays).section()
    try:
        pairs = [(name, place) for name, place in json.loads(items.read_bytes())]
    except ValueError:
        raise damaged(items) from None
    return EvaluationNgrams(section["hashes"], section["item_of"], pairs)


@dataclass(frozen=True, slots=True)
class Match:
    """A document of a batch, by its index, and the place among its words where an n-gram of an evaluation begins."""

    document: int
    word: int
    evaluation: str
    evaluation_record: str


class ContaminationSearch:
    """Finds documents that share an n-gram with an evaluation."""

    def __init__(self, ngrams: EvaluationNgrams, *, ngram_words: int) -> None:
        self._ngrams = ngrams
        self._ngram_words = ngram_words
        bits = min(_MAX_TABLE_BITS, max(_MIN_TABLE_BITS, (32 * len(ngrams.hashes)).bit_length()))
        self._shift = np.uint64(64 - bits)
        # one look into this table spares the binary search for nearly all
        self._may_be = np.zeros(1 << bits, np.bool_)
        self._may_be[ngrams.hashes >> self._shift] = True

    def first_matches(self, words: Sequence[Hashes]) -> list[Match]:
        """The first match of each document that has one; `words` are the word hashes of each."""
        if len(words) > 1:
            return self._of_batch(words)
        for offset, piece in pieces_of(words[0], ngram_words=self._ngram_words):
            for match in self._of_batch([piece]):
                return [dataclasses.replace(match, word=offset + match.word)]
        return []

    def _of_batch(self, words: Sequence[Hashes]) -> list[Match]:
        counts = np.array([len(some) for some in words])
        hashes, starts = ngram_hashes(np.concatenate(words), counts, ngram_words=self._ngram_words)
        ends = np.cumsum(counts)
        matches: dict[int, Match] = {}
        for index, item in self._known(hashes):
            document = int(np.searchsorted(ends, starts[index], side="right"))
            if document not in matches:
                word = int(starts[index] - ends[document] + counts[document])
                matches[document] = Match(document, word, *self._ngrams.items[item])
        return list(matches.values())

    def _known(self, hashes: Hashes) -> Iterator[tuple[int, int]]:
        """Index of each hash that is an evaluation's, ascending, and the record that it is of."""
        candidates = np.flatnonzero(self._may_be[hashes >> self._shift])
        places = np.searchsorted(self._ngrams.hashes, hashes[candidates])
        places = np.minimum(places, len(self._ngrams.hashes) - 1)
        found = self._ngrams.hashes[places] == hashes[candidates]
        yield from zip(candidates[found].tolist(), self._ngrams.item_of[places[found]].tolist(), strict=True)
