"""One unit of work: read its records, filter, encode, write its shards, and leave a record that it is done.

The record `UNITS/00003.json` is written after the unit's shards are on disk for good. A unit without a record is done
again from its start and writes the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.batches import batches
from pipeline.config import PipelineConfig
from pipeline.deduplication.verdicts import UnitVerdicts, unit_verdicts
from pipeline.document import Document, LongText, parts_of, shorten
from pipeline.filters import chain
from pipeline.filters.view import DocumentView
from pipeline.plan import Unit
from pipeline.report import Tally
from pipeline.shards.format import (
    SPLITS,
    EncodingRecord,
    ShardRecord,
    Split,
    split_directory,
    write_durably,
    write_for_now,
)
from pipeline.shards.writer import ShardWriter, shard_path
from pipeline.source_config import SourceConfig
from pipeline.sources.catalog import reader_of
from pipeline.tokenizer.document_ids import encode_documents
from pipeline.tokenizer.encode import BATCH_CHARACTERS, Encoder, EngineDifferenceError
from pipeline.tokenizer.engine import EngineName

PROGRESS_INTERVAL_S = 0.5

# beside the folder of the units' records, once a fast engine was caught in a difference; holds which
DISTRUST_FILE = "engine_difference.txt"


class UnitRecord(BaseModel):
    """What a finished unit made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int
    source: str
    size_bytes: int
    shards: dict[Split, tuple[ShardRecord, ...]]
    tally: Tally
    seconds: float
    encoding: EncodingRecord | None = None

    @property
    def is_doubtful(self) -> bool:
        """Whether a fast engine made its ids: once one is caught in a difference, so is what it made unnoticed."""
        return self.encoding is not None and not self.encoding.engine.startswith("tokenizers ")

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shards in self.shards.values() for shard in shards)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a unit is: bytes of its input read, of `Unit.size_bytes`, and tokens made, both since its start."""

    unit: int
    input_bytes: int
    tokens: int


@dataclass(frozen=True, slots=True)
class KeptDocument:
    """A document that passed the filters, with its split."""

    document: Document
    split: Split
    text_bytes: int


def split_of(text: str | LongText, *, validation_fraction: float) -> Split:
    """By a hash of the text, so that equal texts are never on both sides."""
    if validation_fraction == 0:
        return "train"
    digest = hashlib.blake2b(digest_size=8)
    for part in parts_of(text):
        digest.update(part.encode())
    draw = int.from_bytes(digest.digest(), "big") / 2.0**64
    return "validation" if draw < validation_fraction else "train"


def utf8_bytes(text: str | LongText) -> int:
    """The size of a text in UTF-8."""
    if isinstance(text, LongText):
        return sum(map(utf8_bytes, text.parts))
    return len(text) if text.isascii() else len(text.encode())


class UnitReader:
    """The kept documents of a unit, counting every record as it goes by; in the tally are those that it drops.

    Without verdicts, duplicates are among the kept.
    """

    def __init__(self, config: PipelineConfig, unit: Unit, *, verdicts: UnitVerdicts | None = None) -> None:
        self.tally = Tally()
        self.records_read = 0  # not in the tally, whose assignments pydantic makes slow
        self.input_bytes = 0
        self._config = config
        self._unit = unit
        self._verdicts = verdicts
        self._source: SourceConfig = next(source for source in config.sources if source.name == unit.source)

    def __iter__(self) -> Iterator[KeptDocument]:
        reader = reader_of(self._source)
        done_bytes = 0
        for piece in self._unit.pieces:
            read_bytes = 0
            for record in reader.read_piece(self._source, piece):
                self.records_read += 1
                if not isinstance(record, Document):
                    read_bytes += record.size_bytes
                    self.tally.drop(
                        record.reason, size_bytes=record.size_bytes, location=record.location, example=record.example
                    )
                    continue
                text_bytes = utf8_bytes(record.text)
                # an estimate: a compressed file holds more text than bytes
                read_bytes += text_bytes
                self.input_bytes = done_bytes + min(read_bytes, piece.size_bytes)
                kept = self._judge(record, text_bytes=text_bytes)
                if kept is not None:
                    # handed on without a name here, so that whoever takes a large text says how long it lives
                    handed_on = [kept]
                    del record, kept
                    yield handed_on.pop()
            done_bytes += piece.size_bytes
            self.input_bytes = done_bytes
        if self._verdicts is not None:
            self._verdicts.end()

    def _judge(self, document: Document, *, text_bytes: int) -> KeptDocument | None:
        """The document as filters and deduplication leave it, or None once it is dropped."""
        view = DocumentView(document.text, url=document.url or "")
        reason = chain.rejection(view, self._config.filters)
        if reason is not None:
            self.drop(document, reason, text_bytes=text_bytes)
            return None
        if view.is_changed:
            document = replace(document, text=view.text)
            text_bytes = utf8_bytes(document.text)
        if self._verdicts is not None:
            judged = self._verdicts.judge(document)
            if isinstance(judged, str):
                self.drop(document, judged, text_bytes=text_bytes)
                return None
            if judged is not document:
                document, text_bytes = judged, utf8_bytes(judged.text)
        split = split_of(document.text, validation_fraction=self._config.validation_fraction)
        return KeptDocument(document=document, split=split, text_bytes=text_bytes)

    def drop(self, document: Document, reason: str, *, text_bytes: int) -> None:
        self.tally.drop(
            reason, size_bytes=text_bytes, location=document.document_id, example=shorten(document.beginning)
        )


class UnitTask:
    """A worker's task: it loads the engine once and does unit after unit."""

    def __init__(self, config: PipelineConfig, encoder: Encoder, units_directory: Path, engine: EngineName) -> None:
        chain.prepare(config.filters)  # Ray's processes may have the lists of an earlier run
        self._config = config
        self._units_directory = units_directory
        self._encoder = encoder
        self._encoder.use(engine)

    def __call__(self, unit: Unit, tell: Callable[[Progress], None]) -> UnitRecord:
        return process_unit(self._config, unit, self._encoder, units_directory=self._units_directory, tell=tell)


def process_unit(
    config: PipelineConfig,
    unit: Unit,
    encoder: Encoder,
    *,
    units_directory: Path,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> UnitRecord:
    """Make the unit's shards below `config.output_dir`, then its record.

    Where the fast engine is caught in a difference, the unit is done again by the reference, and so are all units that
    any worker begins from then on. Raises SourceError, TokenizerError, and OSError with the name of the file that could
    not be written.
    """
    started = time.perf_counter()
    distrust = units_directory.with_name(DISTRUST_FILE)
    if distrust.is_file():
        encoder.use("tokenizers")
    encoder.begin_unit()
    try:
        tally, shards = _make_shards(config, unit, encoder, tell)
    except EngineDifferenceError as difference:
        write_durably(distrust, str(difference).encode())
        encoder.begin_unit(after=difference)
        tally, shards = _make_shards(config, unit, encoder, tell)
    record = UnitRecord(
        index=unit.index,
        source=unit.source,
        size_bytes=unit.size_bytes,
        shards=shards,
        tally=tally.with_examples(unit.max_examples),
        seconds=time.perf_counter() - started,
        encoding=encoder.unit_record(),
    )
    # not for good: what a power cut takes of it, or of the names of the shards, is found missing and made again
    write_for_now(unit_record_path(units_directory, unit.index), record.model_dump_json().encode())
    return record


def _make_shards(
    config: PipelineConfig, unit: Unit, encoder: Encoder, tell: Callable[[Progress], None]
) -> tuple[Tally, dict[Split, tuple[ShardRecord, ...]]]:
    told = time.perf_counter()
    tokens = 0
    reader = UnitReader(config, unit, verdicts=unit_verdicts(config, unit.index))
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                ShardWriter(
                    config.output_dir,
                    split=split,
                    unit=unit.index,
                    shard_size_bytes=config.shard_size_bytes,
                    source=unit.source,
                )
            )
            for split in SPLITS
        }
        for batch in batches(reader, size=lambda kept: len(kept.document.text), min_size=BATCH_CHARACTERS):
            lengths, sizes = [], []
            rows = encode_documents(encoder, [kept.document for kept in batch])
            # a text goes before its ids are written, and those go when they are
            batch.reverse()
            rows.reverse()
            while batch:
                kept, ids = batch.pop(), rows.pop()
                if len(ids) == 1 or not kept.text_bytes:
                    # only an EOS, or a header and an EOS: there is no token for any byte of the text
                    reader.drop(kept.document, "no_tokens", text_bytes=kept.text_bytes)
                    continue
                lengths.append(len(ids))
                sizes.append(kept.text_bytes)
                split, document_id = kept.split, kept.document.document_id
                del kept
                writers[split].add(document_id, ids)
                del ids
            reader.tally.keep(tokens=lengths, text_bytes=sizes)
            tokens += sum(lengths)
            if time.perf_counter() - told >= PROGRESS_INTERVAL_S:
                told = time.perf_counter()
                tell(Progress(unit=unit.index, input_bytes=reader.input_bytes, tokens=tokens))
        shards = {split: writer.finish() for split, writer in writers.items()}
    _remove_other_shards(config, unit, shards)
    reader.tally.documents_in = reader.records_read
    return reader.tally, shards


def _remove_other_shards(config: PipelineConfig, unit: Unit, shards: dict[Split, tuple[ShardRecord, ...]]) -> None:
    """Those of an earlier attempt that made more of them: by another engine, or another library.

    Only now, and only those: another attempt, thought dead, may be at this unit as well and write the same files.
    """
    for split, records in shards.items():
        directory = split_directory(config.output_dir, split)
        names = (shard_path(directory, unit=unit.index, number=number) for number in itertools.count(len(records)))
        # asked for by name: the folder holds the shards of all units, and a listing for each unit would be quadratic
        others = [*itertools.takewhile(Path.exists, names)]
        # from the last: so there is none behind a gap, however this is interrupted
        for path in reversed(others):
            path.unlink(missing_ok=True)


def unit_record_path(units_directory: Path, index: int) -> Path:
    return units_directory / f"{index:05d}.json"
