"""Makes a dataset of finished units: checks the sums, writes what stands beside the shards, then the manifest.

What stands beside the shards of a finished version stays until the manifest of the next is there (`next_version.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.config import PipelineConfig, config_digest, content_of
from pipeline.document import BAD_REASONS, PipelineError
from pipeline.first_bad import first_bad
from pipeline.next_version import place_of_next, take_next
from pipeline.report import Tally, add_up, report_tree
from pipeline.report_page import report_page
from pipeline.shards.format import (
    TOKENIZER_FILE,
    DatasetManifest,
    DroppedRecord,
    SourceRecord,
    Split,
    SplitRecord,
    TokenizerRecord,
    split_directory,
    split_record,
    sync_directory,
    write_all_durably,
    write_manifest,
)
from pipeline.shards.hugging_face import hugging_face_files
from pipeline.totals import Totals, add_up_units
from pipeline.unit import UnitRecord
from pipeline.workspace import CONFIG_FILE, REPORT_FILE, REPORT_PAGE_FILE, Workspace


def assemble(
    config: PipelineConfig,
    records: Iterable[UnitRecord],
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
    totals = add_up_units(records)
    splits = {split: split_record(shards) for split, shards in totals.shards.items()}
    total = report_and_check(config, totals, seconds=seconds)
    _check_not_empty(config, total, splits)

    files = {
        place / TOKENIZER_FILE: tokenizer_content,
        place / CONFIG_FILE: (json.dumps(content_of(config), indent=1, ensure_ascii=False) + "\n").encode(),
    }
    for split, record in splits.items():
        directory = split_directory(place, split)
        if record.shards:
            files |= hugging_face_files(directory, record)
        else:
            directory.rmdir()  # `load_from_disk` cannot open it
    write_all_durably(files)
    for split, record in splits.items():
        if record.shards:
            sync_directory(split_directory(dataset, split))  # whose shards have had their names for now only
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
        encoding=totals.encoding,
        sources=_source_records(totals),
        version=version,
        previous=previous,
    )
    write_manifest(dataset, manifest)
    take_next(dataset)
    return manifest


def report_and_check(config: PipelineConfig, totals: Totals, *, seconds: float) -> Tally:
    """Write the report of all units, or of those that are done, and return its sum.

    A report of a finished version is left alone: this one waits for its manifest. Raises PipelineError if too many
    records are bad.
    """
    by_source = {source.name: totals.tallies.get(source.name, Tally()) for source in config.sources}
    report = report_tree(
        config.name,
        by_source,
        tokens_by_split={split: split_record(shards).tokens for split, shards in totals.shards.items()},
        seconds=seconds,
        worker_seconds_by_source={
            source.name: totals.worker_seconds.get(source.name, 0.0) for source in config.sources
        },
        encoding=totals.encoding,
    )
    place = place_of_next(config.output_dir)
    write_all_durably(
        {
            place / REPORT_FILE: (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode(),
            place / REPORT_PAGE_FILE: report_page(report).encode(),
        }
    )
    total = add_up(by_source.values())
    _check_bad_records(config, total, by_source, report=place / REPORT_FILE)
    return total


def _source_records(totals: Totals) -> dict[str, SourceRecord]:
    return {
        source: SourceRecord(
            documents=tally.documents_kept, tokens=totals.tokens[source], text_bytes=tally.text_bytes_kept
        )
        for source, tally in totals.tallies.items()
    }


def _check_bad_records(config: PipelineConfig, total: Tally, by_source: Mapping[str, Tally], *, report: Path) -> None:
    share = total.documents_bad / max(1, total.documents_in)
    if share <= config.max_bad_record_fraction:
        return
    reasons = {reason: dropped for reason, dropped in total.dropped.items() if reason in BAD_REASONS}
    worst = max(reasons, key=lambda reason: reasons[reason].documents)
    counts = ", ".join(f"{dropped.documents:,} {reason}" for reason, dropped in reasons.items())
    raise PipelineError(
        f"{total.documents_bad:,} of {total.documents_in:,} records read are bad ({counts}), more than "
        f"max_bad_record_fraction={config.max_bad_record_fraction:g} allows; the first {worst}: "
        f"{first_bad(config, by_source.items(), worst)}; see {report}, then raise the limit and run again, or mend the "
        f"source or its config and {Workspace(config.output_dir).way_out}"
    )


def _check_not_empty(config: PipelineConfig, total: Tally, splits: dict[Split, SplitRecord]) -> None:
    if splits["train"].documents:
        return
    dropped = ", ".join(f"{dropped.documents:,} {reason}" for reason, dropped in total.dropped.items()) or "none"
    raise PipelineError(
        f"nothing to train on: {total.documents_in:,} documents in, dropped: {dropped}, "
        f"validation: {splits['validation'].documents:,}; give more text, or loosen keep_if, filters and "
        "validation_fraction"
    )
