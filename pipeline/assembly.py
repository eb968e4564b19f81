"""Makes a dataset of finished units: checks the sums, writes what stands beside the shards, then the manifest.

What stands beside the shards of a finished version stays until the manifest of the next is there (`next_version.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.config import PipelineConfig, config_digest, content_of
from pipeline.document import BAD_REASONS, PipelineError
from pipeline.next_version import place_of_next, take_next
from pipeline.report import Tally, add_up, add_up_encoding, report_tree
from pipeline.report_page import report_page
from pipeline.shards.format import (
    SPLITS,
    TOKENIZER_FILE,
    DatasetManifest,
    DroppedRecord,
    ShardRecord,
    SourceRecord,
    Split,
    SplitRecord,
    TokenizerRecord,
    split_directory,
    split_record,
    write_durably,
    write_manifest,
)
from pipeline.shards.hugging_face import write_hugging_face_files
from pipeline.unit import UnitRecord
from pipeline.workspace import CONFIG_FILE, REPORT_FILE, REPORT_PAGE_FILE, Workspace


def assemble(
    config: PipelineConfig,
    records: Sequence[UnitRecord],
    *,
    tokenizer: TokenizerRecord,
    tokenizer_content: bytes,
    seconds: float,
    version: int = 1,
    previous: str | None = None,
) -> DatasetManifest:
    """`records` in the order of their units. From the return on the dataset, or its new version, exists.

    Raises PipelineError if the sums do not agree, if too many records are bad, or if nothing was kept; what the folder
    held of an earlier version is whole then.
    """
    dataset = config.output_dir
    place = place_of_next(dataset)
    splits = {split: split_record(_shards(records, split)) for split in SPLITS}
    total = report_and_check(config, records, seconds=seconds)
    _check_not_empty(config, total, splits)

    for split, record in splits.items():
        write_hugging_face_files(split_directory(place, split), record)
    write_durably(place / TOKENIZER_FILE, tokenizer_content)
    write_durably(place / CONFIG_FILE, (json.dumps(content_of(config), indent=1, ensure_ascii=False) + "\n").encode())
    manifest = DatasetManifest(
        name=config.name,
        tokenizer=tokenizer,
        splits=splits,
        documents_in=total.documents_in,
        text_bytes_kept=total.text_bytes_kept,
        dropped={
            reason: DroppedRecord(documents=dropped.documents, text_bytes=dropped.text_bytes)
            for reason, dropped in total.dropped.items()
        },
        config_digest=config_digest(config),
        encoding=add_up_encoding(record.encoding for record in records),
        sources=_source_records(records),
        version=version,
        previous=previous,
    )
    write_manifest(dataset, manifest)
    take_next(dataset)
    return manifest


def report_and_check(config: PipelineConfig, records: Sequence[UnitRecord], *, seconds: float) -> Tally:
    """Write the report of all units, or of those that are done, and return its sum.

    A report of a finished version is left alone: this one waits for its manifest. Raises PipelineError if the sums do
    not agree or if too many records are bad.
    """
    _check_balance(records)
    by_source = {
        source.name: add_up(record.tally for record in records if record.source == source.name)
        for source in config.sources
    }
    report = report_tree(
        config.name,
        by_source,
        tokens_by_split={split: split_record(_shards(records, split)).tokens for split in SPLITS},
        seconds=seconds,
        worker_seconds_by_source={
            source.name: sum(record.seconds for record in records if record.source == source.name)
            for source in config.sources
        },
        encoding=add_up_encoding(record.encoding for record in records),
    )
    place = place_of_next(config.output_dir)
    write_durably(place / REPORT_FILE, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    write_durably(place / REPORT_PAGE_FILE, report_page(report).encode())
    total = add_up(by_source.values())
    _check_bad_records(config, total, report=place / REPORT_FILE)
    return total


def _shards(records: Sequence[UnitRecord], split: Split) -> Iterator[ShardRecord]:
    return (shard for record in records for shard in record.shards[split])


def _source_records(records: Sequence[UnitRecord]) -> dict[str, SourceRecord]:
    """By name, in the order of their first units."""
    grouped: dict[str, list[UnitRecord]] = {}
    for record in records:
        grouped.setdefault(record.source, []).append(record)
    return {
        source: SourceRecord(
            documents=sum(record.tally.documents_kept for record in group),
            tokens=sum(record.tokens for record in group),
            text_bytes=sum(record.tally.text_bytes_kept for record in group),
        )
        for source, group in grouped.items()
    }


def _check_balance(records: Sequence[UnitRecord]) -> None:
    for record in records:
        tally = record.tally
        written = sum(shard.documents for shards in record.shards.values() for shard in shards)
        if not tally.is_balanced() or written != tally.documents_kept:
            raise PipelineError(
                f"unit {record.index} does not add up: {tally.documents_in} documents in, {tally.documents_kept} kept, "
                f"{tally.documents_dropped} dropped, {written} written; "
                f"remove .work/units/{record.index:05d}.json in the output folder and run again"
            )


def _check_bad_records(config: PipelineConfig, total: Tally, *, report: Path) -> None:
    share = total.documents_bad / max(1, total.documents_in)
    if share <= config.max_bad_record_fraction:
        return
    reasons = {reason: dropped for reason, dropped in total.dropped.items() if reason in BAD_REASONS}
    worst = max(reasons, key=lambda reason: reasons[reason].documents)
    counts = ", ".join(f"{dropped.documents:,} {reason}" for reason, dropped in reasons.items())
    raise PipelineError(
        f"{total.documents_bad:,} of {total.documents_in:,} records read are bad ({counts}), more than "
        f"max_bad_record_fraction={config.max_bad_record_fraction:g} allows; the first {worst}: "
        f"{reasons[worst].examples[0].location}; see {report}, then raise the limit and run again, or mend the source "
        f"or its config and {Workspace(config.output_dir).way_out}"
    )


def _check_not_empty(config: PipelineConfig, total: Tally, splits: dict[Split, SplitRecord]) -> None:
    if splits["train"].documents:
        return
    dropped = ", ".join(f"{dropped.documents:,} {reason}" for reason, dropped in total.dropped.items()) or "none"
    raise PipelineError(
        f"nothing to train on: {total.documents_in:,} documents in, dropped: {dropped}, "
        f"validation: {splits['validation'].documents:,}; give more text, or loosen filters and validation_fraction"
    )
