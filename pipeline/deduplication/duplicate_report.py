"""What deduplication did, for people: DATASET/deduplication.json and the list of contaminated documents."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.config import PipelineConfig
from pipeline.deduplication.array_file import sections_of
from pipeline.deduplication.config import DecontaminationConfig
from pipeline.deduplication.folder import Folder, UnitRows, damaged
from pipeline.deduplication.signatures import CONTAMINATED_DOCUMENTS
from pipeline.deduplication.verdicts import REASONS
from pipeline.shards.format import write_durably

REPORT_FILE = "deduplication.json"
CONTAMINATED_FILE = "contaminated.jsonl"


def write_report(config: PipelineConfig, units: Sequence[UnitRows], folder: Folder) -> None:
    """`clusters` are of exact and near duplicates together: how many there are of each size."""
    counts = sum(
        (np.bincount(section["verdict"], minlength=256) for section in sections_of(folder.verdicts)),
        start=np.zeros(256, np.int64),
    )
    try:
        clusters = json.loads(folder.clusters.read_bytes())
    except ValueError:
        raise damaged(folder.clusters) from None
    report: dict[str, Any] = {
        "documents": sum(unit.documents for unit in units),
        "dropped": {reason: int(counts[verdict]) for verdict, reason in REASONS.items()},
        "clusters": clusters,
    }
    if config.deduplication.paragraphs:
        report["paragraphs"] = {
            "compared": sum(unit.paragraphs for unit in units),
            "removed": sum(
                len(section["document"]) for path in folder.removals.glob("*.arrow") for section in sections_of(path)
            ),
        }
    if config.deduplication.decontamination:
        report["evaluations"] = _list_contaminated(config.deduplication.decontamination, config, units, folder)
    write_durably(config.output_dir / REPORT_FILE, (json.dumps(report, indent=1) + "\n").encode())


def _list_contaminated(
    decontamination: DecontaminationConfig, config: PipelineConfig, units: Sequence[UnitRows], folder: Folder
) -> dict[str, int]:
    """Join the lists of the units in their order; contaminated documents by evaluation."""
    documents = Counter({evaluation.name: 0 for evaluation in decontamination.evaluations})
    path = config.output_dir / CONTAMINATED_FILE
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        for unit in units:
            for evaluation, line in contaminated_lines(folder, unit.index):
                documents[evaluation] += 1
                file.write(line)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return dict(documents)


def contaminated_lines(folder: Folder, unit: int) -> list[tuple[str, bytes]]:
    """The list of a signed unit, with the evaluation of each line.

    Raises PipelineError if a line is missing or cut off, or if the signatures are damaged.
    """
    path = folder.contaminated(unit)
    found = sum(len(section[CONTAMINATED_DOCUMENTS]) for section in sections_of(folder.signature(unit)))
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        of_evaluations = [(str(json.loads(line)["evaluation"]), line) for line in lines]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        raise damaged(path) from None
    if len(lines) != found or (lines and not lines[-1].endswith(b"\n")):
        raise damaged(path)
    return of_evaluations
