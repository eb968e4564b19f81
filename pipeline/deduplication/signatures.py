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
from pipeline.deduplication.normalization import comparable_bytes, comparable_words
from pipeline.deduplication.paragraphs import paragraphs_of
from pipeline.document import Document

EXACT = "exact"
PARAGRAPH = "paragraph"
CONTAMINATED_DOCUMENTS = "contaminated"

# NumPy's calls cost little for so many at once; a longer document is a batch of its own
_BATCH_CHARACTERS = 1 << 19
_BATCH_DOCUMENTS = 1 << 12


@dataclass(frozen=True, slots=True)
class Contamination:
    """A document that shares an n-gram with a record of an evaluation."""

    document_id: str
    evaluation: str
    evaluation_record: str
    ngram: str


@dataclass(frozen=True, slots=True)
class UnitSignatures:
    """Of the documents of a unit: who is contaminated, and the hashes of the others.

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

    def sign(self, documents: Iterable[Document]) -> UnitSignatures:
        """Holds the hashes of all documents, but the texts of a batch only."""
        exact, paragraphs = _Digests(), _Digests()
        bands: list[Hashes] = []
        contaminated: list[int] = []
        contaminations: list[Contamination] = []
        count = 0
        for batch in _batches(documents):
            for number, document in enumerate(batch, start=count):
                if self._config.exact:
                    exact.add(document.text, document=number)
                if self._config.paragraphs:
                    for place, paragraph in paragraphs_of(document.text, self._config.paragraphs):
                        paragraphs.add(paragraph, document=number, place=place)
            if self._minhasher or self._search:
                words = [self._hash_words(document.text) for document in batch]
                if self._search:
                    for match in self._search.first_matches(words):
                        contaminated.append(count + match.document)
                        contaminations.append(self._contamination(batch[match.document], match))
                if self._minhasher:
                    bands.append(self._minhasher.band_hashes([*map(_or_text, words, batch)]))
            count += len(batch)

        clean = np.ones(count, np.bool_)
        clean[contaminated] = False
        arrays: dict[str, NDArray[Any]] = {CONTAMINATED_DOCUMENTS: np.array(contaminated, np.uint32)}
        if self._config.exact:
            arrays |= exact.sorted(EXACT, clean)
        if self._config.paragraphs:
            arrays |= paragraphs.sorted(PARAGRAPH, clean)
        if self._config.minhash:
            arrays |= _sorted_bands(bands, clean, bands_count=self._config.minhash.bands)
        return UnitSignatures(count, len(paragraphs), contaminations, arrays)

    def _contamination(self, document: Document, match: Match) -> Contamination:
        assert self._config.decontamination is not None
        words = [word for part in slices_of(document.text) for word in comparable_words(part)]
        ngram = b" ".join(words[match.word : match.word + self._config.decontamination.ngram_words]).decode()
        return Contamination(document.document_id, match.evaluation, match.evaluation_record, ngram)


class _Digests:
    """xxh3-128 of texts, and which document each is of."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._documents = array("I")
        self._places = array("I")

    def add(self, text: str, *, document: int, place: int = 0) -> None:
        self._digests += xxhash.xxh3_128_digest(comparable_bytes(text))
        self._documents.append(document)
        self._places.append(place)

    def __len__(self) -> int:
        return len(self._documents)

    def sorted(self, key: str, clean: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        halves = np.frombuffer(self._digests, ">u8").reshape(-1, 2).astype(np.uint64)
        documents = np.array(self._documents, np.uint32)
        places = np.array(self._places, np.uint32)
        rows = np.flatnonzero(clean[documents])
        order = rows[np.lexsort((halves[rows, 1], halves[rows, 0]))]  # stable
        arrays = {f"{key}.0": halves[order, 0], f"{key}.1": halves[order, 1], f"{key}.document": documents[order]}
        return arrays | ({f"{key}.place": places[order]} if key == PARAGRAPH else {})


def _sorted_bands(parts: Sequence[Hashes], clean: NDArray[np.bool_], *, bands_count: int) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    rows = np.flatnonzero(clean)
    for band in range(bands_count):
        hashes = np.concatenate([part[band] for part in parts] or [np.empty(0, np.uint64)])
        order = rows[np.argsort(hashes[rows], kind="stable")]
        arrays |= {f"{_band_key(band)}.0": hashes[order], f"{_band_key(band)}.document": order.astype(np.uint32)}
    return arrays


def _band_key(band: int) -> str:
    return f"band-{band:02d}"


def _or_text(words: Hashes, document: Document) -> Hashes:
    """A document of nothing but punctuation is one word, its text: it resembles only what equals it."""
    return words if len(words) else np.array([xxhash.xxh3_64_intdigest(comparable_bytes(document.text))], np.uint64)


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
