"""The passes before the encoding pass: sign every unit, match what was signed, decide, find paragraphs to leave out.

Each pass is done by worker processes and leaves files that are whole or absent, so a run that is killed repeats at
most the items that were being done. What is decided depends on the config and the input only.

Memory of the parent: 5 bytes a document (9 beyond 2^32 documents), and up to 16 more for each that is dropped.
Disk, until the dataset is finished: 20 bytes a document for exact, 12 a band, 24 a paragraph.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.bad_records import BadRecordLimit
from pipeline.config import PipelineConfig
from pipeline.deduplication.array_file import ArrayFileWriter, sections_of
from pipeline.deduplication.clusters import Clusters, Numbers
from pipeline.deduplication.duplicate_report import contaminated_lines, write_report
from pipeline.deduplication.evaluations import (
    ContaminationSearch,
    keep_evaluations,
    load_evaluations,
    read_evaluations,
)
from pipeline.deduplication.folder import Folder, SignedUnit, UnitRows
from pipeline.deduplication.matching import Matcher, Part, first_documents, parts_of
from pipeline.deduplication.signatures import CONTAMINATED_DOCUMENTS, EXACT, PARAGRAPH, UnitSigner, document_keys
from pipeline.deduplication.verdicts import CONTAMINATED, EXACT_DUPLICATE, KEPT, NEAR_DUPLICATE
from pipeline.document import BAD_REASONS, PipelineError
from pipeline.executors import Finished, Task, execute, executor_settings
from pipeline.filters import chain
from pipeline.first_bad import first_bad
from pipeline.packed_models import PackedModels
from pipeline.plan import Plan, Unit
from pipeline.report import add_up
from pipeline.shards.format import WORK_DIRECTORY, write_durably
from pipeline.unit import UnitReader

log = logging.getLogger(__name__)

LINE_INTERVAL_S = 10.0

Tell = Callable[[Any], None]


def deduplicate(config: PipelineConfig, plan: Plan) -> None:
    """Decide about every document, by a config that asks for it; `UnitVerdicts` tells what.

    Does nothing where an earlier attempt has done it.

    Writes DATASET/deduplication.json, and DATASET/contaminated.jsonl if evaluations are given. Raises PipelineError
    and OSError; what is done by then is kept.
    """
    folder = Folder(config.output_dir)
    folder.make()
    if config.deduplication.decontamination:
        keep_evaluations(read_evaluations(config.deduplication.decontamination), folder)
    if folder.done.is_file():
        return
    units = _sign(config, plan, folder)
    if not folder.verdicts.is_file():
        parts = _link_parts(config, units)
        left = [part for part in parts if not folder.links_of(part.key, part.number, part.parts).is_file()]
        list(_do("keys matched", functools.partial(LinkTask, folder, units), left, config))
        _decide(parts, units, folder)
    shutil.rmtree(folder.links)
    if config.deduplication.paragraphs:
        parts = parts_of(PARAGRAPH, rows=sum(unit.paragraphs for unit in units))
        left = [part for part in parts if not folder.removals_of(part.number, part.parts).is_file()]
        list(_do("parts of the paragraphs matched", functools.partial(RemovalTask, folder, units), left, config))
    write_report(config, units, folder)
    write_durably(folder.done, b"")


def _do(what: str, make_task: Callable[[], Task], items: Sequence[Any], config: PipelineConfig) -> Iterator[Any]:
    """The results of all items, in the order of completion."""
    done = 0
    started = told = time.monotonic()
    for message in execute(executor_settings(config), make_task, items):
        if isinstance(message, Finished):
            done += 1
            yield message.result
        if time.monotonic() - told >= LINE_INTERVAL_S:
            told = time.monotonic()
            log.info("deduplication: %d of %d %s", done, len(items), what)
    if items:
        log.info("deduplication: %d %s in %.1f s", done, what, time.monotonic() - started)


def _sign(config: PipelineConfig, plan: Plan, folder: Folder) -> list[UnitRows]:
    """All units, signed now or before, in the order of the plan.

    Raises PipelineError as soon as there are more bad records than the whole input may have.
    """
    signed = PackedModels(SignedUnit)
    for unit in plan.units:
        if (found := _signed_before(folder, unit)) is not None:
            signed.add(unit.index, found)
    left = [unit for unit in plan.units if unit.index not in signed]
    if signed and left:
        log.info("deduplication: going on: %d of %d units were signed before", len(signed), len(plan.units))
    limit = BadRecordLimit(
        max_bad_record_fraction=config.max_bad_record_fraction, bytes_by_source=plan.size_bytes_by_source
    )
    rows = {}
    before = [*signed]
    for done in itertools.chain(
        (signed[index] for index in before), _do("units signed", functools.partial(SignTask, config), left, config)
    ):
        rows[done.index] = done.rows
        signed.add(done.index, done)
        limit.add(done)
        if limit.is_out_of_reach():
            raise _too_many_are_bad(config, [signed[index] for index in sorted(signed)])
    return [rows[unit.index] for unit in plan.units]


def _signed_before(folder: Folder, unit: Unit) -> SignedUnit | None:
    """None as well if what was signed is not whole: to sign a unit again gives the same."""
    if not folder.signed(unit.index).is_file():
        return None
    try:
        contaminated_lines(folder, unit.index)
        return folder.read_signed(unit.index)
    except PipelineError as error:
        log.warning("%s; unit %d is signed again", str(error).partition(";")[0], unit.index)
        return None


def _too_many_are_bad(config: PipelineConfig, signed: list[SignedUnit]) -> PipelineError:
    total = add_up(unit.tally for unit in signed)
    tallies = ((unit.source, unit.tally) for unit in signed)
    reasons = {reason: dropped for reason, dropped in total.dropped.items() if reason in BAD_REASONS}
    worst = max(reasons, key=lambda reason: reasons[reason].documents)
    return PipelineError(
        f"{total.documents_bad:,} of {total.documents_in:,} records read so far are bad, more than "
        f"max_bad_record_fraction={config.max_bad_record_fraction:g} of all can be; the first {worst}: "
        f"{first_bad(config, tallies, worst)}; raise the limit and run again, or mend the source, remove "
        f"{config.output_dir / WORK_DIRECTORY} and run again"
    )


class SignTask:
    """A worker's task: sign a unit."""

    def __init__(self, config: PipelineConfig) -> None:
        chain.prepare(config.filters)  # Ray's processes may have the lists of an earlier run
        self._config = config
        self._folder = Folder(config.output_dir)
        search = None
        if decontamination := config.deduplication.decontamination:
            ngrams = load_evaluations(self._folder.evaluations, self._folder.evaluation_items)
            search = ContaminationSearch(ngrams, ngram_words=decontamination.ngram_words)
        self._signer = UnitSigner(config.deduplication, search=search)

    def __call__(self, unit: Unit, tell: Tell) -> SignedUnit:
        reader = UnitReader(self._config, unit)
        documents = paragraphs = 0
        lines: list[str] = []
        with ArrayFileWriter(self._folder.signature(unit.index)) as writer:
            for section in self._signer.sign(kept.document for kept in reader):
                writer.append(**section.arrays)
                documents += section.documents
                paragraphs += section.paragraphs
                lines += [
                    json.dumps(dataclasses.asdict(found), ensure_ascii=False) + "\n" for found in section.contaminations
                ]
        reader.tally.documents_in = reader.records_read
        write_durably(self._folder.contaminated(unit.index), "".join(lines).encode())
        signed = SignedUnit(
            index=unit.index,
            source=unit.source,
            size_bytes=unit.size_bytes,
            documents=documents,
            paragraphs=paragraphs,
            tally=reader.tally.with_examples(unit.max_examples),
        )
        write_durably(self._folder.signed(unit.index), signed.model_dump_json().encode())
        return signed


def _link_parts(config: PipelineConfig, units: Sequence[UnitRows]) -> list[Part]:
    documents = sum(unit.documents for unit in units)
    return [part for key in document_keys(config.deduplication) for part in parts_of(key, rows=documents)]


class LinkTask:
    """A worker's task: find the documents that have a hash in common."""

    def __init__(self, folder: Folder, units: Sequence[UnitRows]) -> None:
        self._matcher = Matcher(folder, units)

    def __call__(self, part: Part, tell: Tell) -> None:
        self._matcher.link_documents(part)


class RemovalTask:
    """A worker's task: find the paragraphs that stand somewhere before."""

    def __init__(self, folder: Folder, units: Sequence[UnitRows]) -> None:
        self._matcher = Matcher(folder, units)

    def __call__(self, part: Part, tell: Tell) -> None:
        self._matcher.find_removals(part)


def _decide(parts: Sequence[Part], units: Sequence[UnitRows], folder: Folder) -> None:
    """The first document of a cluster stays."""
    firsts = first_documents(units)
    verdicts = np.full(firsts[-1], KEPT, np.uint8)
    clusters = Clusters(firsts[-1])
    for part in parts:
        for section in sections_of(folder.links_of(part.key, part.number, part.parts)):
            clusters.link(section["first"], section["later"])
            if part.key == EXACT:
                verdicts[section["later"]] = EXACT_DUPLICATE
    roots = clusters.roots()
    followed: list[Numbers] = []
    with ArrayFileWriter(folder.verdicts) as writer:
        for unit, first in zip(units, firsts, strict=False):
            of_unit, roots_of_unit = (some[first : first + unit.documents] for some in (verdicts, roots))
            follows = roots_of_unit != np.arange(first, first + unit.documents, dtype=roots.dtype)
            followed.append(roots_of_unit[follows])
            of_unit[follows & (of_unit == KEPT)] = NEAR_DUPLICATE
            for section in sections_of(folder.signature(unit.index)):
                of_unit[section[CONTAMINATED_DOCUMENTS]] = CONTAMINATED
            writer.append(verdict=of_unit, first_document=np.array([first], np.uint64))
        # before the verdicts are there: whoever finds them finds these too
        write_durably(folder.clusters, json.dumps(_clusters_by_size(np.concatenate(followed))).encode())


def _clusters_by_size(followed: Numbers) -> dict[str, int]:
    """How many clusters there are of each size, of the first documents of all others."""
    sizes, counts = np.unique(np.unique(followed, return_counts=True)[1] + 1, return_counts=True)
    return {str(size): count for size, count in zip(sizes.tolist(), counts.tolist(), strict=True)}
