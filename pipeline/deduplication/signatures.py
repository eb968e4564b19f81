"""The hashes by which the documents of one unit are compared with all others."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.deduplication.config import DeduplicationConfig
from pipeline.deduplication.evaluations import ContaminationSearch, Match
from pipeline.deduplication.minhash import MinHasher
from pipeline.deduplication.ngrams import Hashes, WordHasher, slices_of
from pipeline.deduplication.normalization import comparable_bytes, comparable_digests, comparable_words
from pipeline.deduplication.paragraphs import paragraphs_of
from pipeline.document import Document

EXACT = "exact"
PARAGRAPH = "paragraph"
CONTAMINATED_DOCUMENTS = "contaminated"

# hashes are held for so many documents or paragraphs, then written: 300 bytes a document
SECTION_DOCUMENTS = 1 << 18
SECTION_PARAGRAPHS = 1 << 20

# NumPy's calls cost little for so many at once; a longer document is a batch of its own
_BATCH_CHARACTERS = 1 << 19
_BATCH_DOCUMENTS = 1 << 12

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Contamination:
    """A document that shares an n-gram with a record of an evaluation."""

    document_id: str
    evaluation: str
    evaluation_record: str
    ngram: str


@dataclass(frozen=True, slots=True)
class SignatureSection:
    """Of consecutive documents of a unit: who is contaminated, and the hashes of the others.

    `arrays` holds `contaminated`, the numbers of those documents, and for each key `KEY.0`, of hashes of 128 bits
    `KEY.1` too, in ascending order and among equals that of the documents, with `KEY.document` beside them; for
    paragraphs also `KEY.place`, where in the document they stand.
    """

    documents: int
    paragraphs: int
    contaminations: list[Contamination]
    arrays: dict[str, NDArray[Any]]


def document_keys(config: DeduplicationConfig) -> list[str]:
    """The keys that link documents."""
    bands = config.minhash.bands if config.minhash else 0
    return ([EXACT] if config.exact else []) + [_band_key(band) for band in range(bands)]


class UnitSigner:
    """Signs units, one after another, and keeps the words that it has met."""

    def __init__(self, config: DeduplicationConfig, *, search: ContaminationSearch | None) -> None:
        self._config = config
        self._search = search
        self._hash_words = WordHasher()
        self._minhasher = MinHasher(config.minhash) if config.minhash else None

    def sign(self, documents: Iterable[Document]) -> Iterator[SignatureSection]:
        """The documents of a unit; at least one section. Holds the hashes of a section and the texts of a batch, those
        twice where paragraphs are compared."""
        section = _OpenSection(first=0)
        for batch in _batches(documents):
            if len(section) >= SECTION_DOCUMENTS or len(section.paragraphs) >= SECTION_PARAGRAPHS:
                yield section.close(self._config)
                section = _OpenSection(first=section.first + len(section))
            self._sign_batch(batch, section)
        yield section.close(self._config)

    def _sign_batch(self, batch: Sequence[Document], section: _OpenSection) -> None:
        first = section.first + len(section)
        if self._config.exact:
            section.exact.extend(
                documents=range(first, first + len(batch)), texts=(document.whole_text for document in batch)
            )
        if self._config.paragraphs:
            rows = [
                (number, place, paragraph)
                for number, document in enumerate(batch, first)
                for place, paragraph in paragraphs_of(document.whole_text, self._config.paragraphs)
            ]
            section.paragraphs.extend(
                documents=(number for number, _, _ in rows),
                texts=(text for _, _, text in rows),
                places=(place for _, place, _ in rows),
            )
        if self._minhasher or self._search:
            words = [self._hash_words(document.whole_text) for document in batch]
            if self._search:
                for match in self._search.first_matches(words):
                    section.contaminated.append(first + match.document)
                    section.contaminations.append(self._contamination(batch[match.document], match))
            if self._minhasher:
                section.bands.append(self._minhasher.band_hashes([*map(_or_text, words, batch)]))
        section.documents += len(batch)

    def _contamination(self, document: Document, match: Match) -> Contamination:
        assert self._config.decontamination is not None
        words = [word for part in slices_of(document.whole_text) for word in comparable_words(part)]
        ngram = b" ".join(words[match.word : match.word + self._config.decontamination.ngram_words]).decode()
        return Contamination(document.document_id, match.evaluation, match.evaluation_record, ngram)


class _Digests:
    """xxh3-128 of texts, and which document each is of; of paragraphs also the place in it."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._documents = array("I")
        self._places = array("I")

    def extend(self, *, documents: Iterable[int], texts: Iterable[str], places: Iterable[int] = ()) -> None:
        """As many documents as texts, and of paragraphs as many places."""
        self._documents.extend(documents)
        self._places.extend(places)
        self._digests += b"".join(comparable_digests(texts))
        assert len(self._digests) == _DIGEST_BYTES * len(self._documents)

    def __len__(self) -> int:
        return len(self._documents)

    def sorted(self, key: str, *, without: NDArray[np.uint32]) -> dict[str, NDArray[Any]]:
        halves = np.frombuffer(self._digests, ">u8").reshape(-1, 2).astype(np.uint64)
        documents = np.array(self._documents, np.uint32)
        rows = np.flatnonzero(np.isin(documents, without, invert=True))
        order = rows[np.lexsort((halves[rows, 1], halves[rows, 0]))]  # stable
        arrays = {f"{key}.0": halves[order, 0], f"{key}.1": halves[order, 1], f"{key}.document": documents[order]}
        return arrays | ({f"{key}.place": np.array(self._places, np.uint32)[order]} if key == PARAGRAPH else {})


class _OpenSection:
    """A section that still grows; documents are numbered within the unit."""

    def __init__(self, *, first: int) -> None:
        self.first = first
        self.documents = 0
        self.exact, self.paragraphs = _Digests(), _Digests()
        self.bands: list[Hashes] = []
        self.contaminated: list[int] = []
        self.contaminations: list[Contamination] = []

    def __len__(self) -> int:
        return self.documents

    def close(self, config: DeduplicationConfig) -> SignatureSection:
        contaminated = np.array(self.contaminated, np.uint32)
        arrays: dict[str, NDArray[Any]] = {CONTAMINATED_DOCUMENTS: contaminated}
        if config.exact:
            arrays |= self.exact.sorted(EXACT, without=contaminated)
        if config.paragraphs:
            arrays |= self.paragraphs.sorted(PARAGRAPH, without=contaminated)
        if config.minhash:
            clean = np.setdiff1d(np.arange(self.first, self.first + self.documents, dtype=np.uint32), contaminated)
            for band in range(config.minhash.bands):
                hashes = np.concatenate([part[band] for part in self.bands] or [np.empty(0, np.uint64)])
                hashes = hashes[clean - np.uint32(self.first)]
                order = np.argsort(hashes, kind="stable")
                arrays |= {f"{_band_key(band)}.0": hashes[order], f"{_band_key(band)}.document": clean[order]}
        return SignatureSection(self.documents, len(self.paragraphs), self.contaminations, arrays)


def _band_key(band: int) -> str:
    return f"band-{band:02d}"


def _or_text(words: Hashes, document: Document) -> Hashes:
    """A document of nothing but punctuation is one word, its text: it resembles only what equals it."""
    return (
        words if len(words) else np.array([xxhash.xxh3_64_intdigest(comparable_bytes(document.whole_text))], np.uint64)
    )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        if batch and (characters + len(document.text) > _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += len(document.text)
    if batch:
        yield batch
