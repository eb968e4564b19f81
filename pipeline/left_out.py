"""What a run that came to its end tells of the records that it did without: a wrong field of a small source among large
ones stays below `max_bad_record_fraction`, and would be seen in the report alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.config import PipelineConfig
from pipeline.document import BAD_REASONS
from pipeline.first_bad import first_bad
from pipeline.report import Dropped, Tally


def left_out(config: PipelineConfig, tallies: Mapping[str, Tally]) -> Iterator[str]:
    """A line for each source that has records and gave no document, and for each other of which records are bad.

    `tallies` are by source, of what this run has read.
    """
    for source, tally in tallies.items():
        bad: dict[str, Dropped] = {
            reason: dropped for reason, dropped in tally.dropped.items() if reason in BAD_REASONS
        }
        if tally.documents_in and not tally.documents_kept:
            yield (
                f"source {source}: none of its {tally.documents_in:,} records read is in the dataset: "
                f"{_counts(config, source, tally, tally.dropped)}"
            )
        elif bad:
            yield (
                f"source {source}: {tally.documents_bad:,} of {tally.documents_in:,} records read are bad and left "
                f"out: {_counts(config, source, tally, bad)}"
            )


def _counts(config: PipelineConfig, source: str, tally: Tally, reasons: Mapping[str, Dropped]) -> str:
    worst = max(reasons, key=lambda reason: reasons[reason].documents)
    counts = ", ".join(f"{dropped.documents:,} {reason}" for reason, dropped in reasons.items())
    return f"{counts}; the first {worst}: {first_bad(config, [(source, tally)], worst)}"
