"""Where the passes leave what they found, below the output folder of an unfinished run.

DATASET/.work/deduplication/
    evaluations.arrow, evaluations.json        n-grams of the evaluation sets, and the records they stand in
    signatures/00003.arrow                     hashes of the documents of a unit, sorted for matching
    signatures/00003.contaminated.jsonl        those of its documents that share an n-gram with an evaluation
    signatures/00003.json                      written last: the unit is signed
    links/exact-0-of-1.arrow                   pairs of documents with an equal hash; gone when there are verdicts
    clusters.json                              how many clusters there are of each size
    verdicts.arrow                             what becomes of every document, a section a unit
    removals/0-of-1.arrow                      paragraphs to be left out, a section a unit, then those across units
    done                                       nothing is left to do
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.document import PipelineError
from pipeline.report import Tally

_DIRECTORY = "deduplication"


@dataclass(frozen=True, slots=True)
class UnitRows:
    """What is known of a signed unit once all are signed: every worker has this of all units."""

    index: int
    documents: int
    paragraphs: int


class SignedUnit(BaseModel):
    """A unit that has been signed: documents that passed the filters, and paragraphs long enough to be compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int
    source: str
    size_bytes: int
    documents: int
    paragraphs: int
    tally: Tally

    @property
    def rows(self) -> UnitRows:
        return UnitRows(self.index, self.documents, self.paragraphs)


class Folder:
    """Paths of a run's deduplication."""

    def __init__(self, dataset: Path) -> None:
        self.directory = dataset / ".work" / _DIRECTORY
        self.evaluations = self.directory / "evaluations.arrow"
        self.evaluation_items = self.directory / "evaluations.json"
        self.signatures = self.directory / "signatures"
        self.links = self.directory / "links"
        self.clusters = self.directory / "clusters.json"
        self.verdicts = self.directory / "verdicts.arrow"
        self.removals = self.directory / "removals"
        self.done = self.directory / "done"

    def make(self) -> None:
        for directory in (self.signatures, self.links, self.removals):
            directory.mkdir(parents=True, exist_ok=True)

    def signature(self, unit: int) -> Path:
        return self.signatures / f"{unit:05d}.arrow"

    def contaminated(self, unit: int) -> Path:
        return self.signatures / f"{unit:05d}.contaminated.jsonl"

    def signed(self, unit: int) -> Path:
        return self.signatures / f"{unit:05d}.json"

    def read_signed(self, unit: int) -> SignedUnit:
        """Raises PipelineError for a file that is damaged."""
        try:
            return SignedUnit.model_validate_json(self.signed(unit).read_bytes())
        except ValidationError:
            raise damaged(self.signed(unit)) from None

    def links_of(self, key: str, partition: int, partitions: int) -> Path:
        return self.links / f"{key}-{partition}-of-{partitions}.arrow"

    def removals_of(self, partition: int, partitions: int) -> Path:
        return self.removals / f"{partition}-of-{partitions}.arrow"


def damaged(path: Path) -> PipelineError:
    """What to raise for a file of the passes that cannot be read: all of them can be made again."""
    directory = next((parent for parent in path.parents if parent.name == _DIRECTORY), path)
    return PipelineError(f"{path} is damaged; remove {directory} and run the same command to deduplicate again")
