"""New input files for a finished dataset: `run --append` makes its next version, and rewrites no shard.

`DATASET/units.jsonl` keeps what each unit was made of and what it gave, a line a unit, with the version that it came
with. The files of those units must be there unchanged; files that are new make units with the next indices. Until the
new manifest replaces the old one, the dataset is its old version: lines of units.jsonl with a version above the
manifest's do not count, shards that the manifest does not name are not read, and the other files wait beside
(`next_version.py`). A dataset that a run has made is known by the file; of datasets that other verbs made nothing says
which input they hold.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import PipelineConfig, content_of, differences
from pipeline.document import PipelineError
from pipeline.next_version import take_next
from pipeline.packed_models import PackedModels
from pipeline.plan import Plan, Unit, units_of
from pipeline.shards.format import (
    TOKENIZER_FILE,
    DatasetManifest,
    digest_file,
    read_manifest,
    write_durably,
    write_parts_durably,
)
from pipeline.shards.reader import check_size
from pipeline.sources.piece import Piece
from pipeline.unit import DISTRUST_FILE, UnitRecord
from pipeline.workspace import CONFIG_FILE, Workspace, is_finished, some_of

UNITS_FILE = "units.jsonl"


class KeptUnit(BaseModel):
    """A unit of a finished dataset, the record of it, and the version of the dataset that it came with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    unit: Unit
    record: UnitRecord


@dataclass(frozen=True, slots=True)
class Base:
    """What a run adds to: nothing, or the last version of a dataset.

    `versions` tells with which version each unit came.
    """

    manifest: DatasetManifest | None = None
    units: tuple[Unit, ...] = ()
    versions: tuple[int, ...] = ()
    records: PackedModels[UnitRecord] = field(default_factory=lambda: PackedModels(UnitRecord))

    @property
    def version(self) -> int:
        """0 for nothing."""
        return 0 if self.manifest is None else self.manifest.version

    @property
    def digest(self) -> str | None:
        return None if self.manifest is None else self.manifest.digest()

    @property
    def kept_units(self) -> Iterator[KeptUnit]:
        for unit, version in zip(self.units, self.versions, strict=True):
            yield KeptUnit(version=version, unit=unit, record=self.records[unit.index])

    def lend_tokenizer(self, workspace: Workspace) -> None:
        """Give a run the tokenizer of what is there, so that none is trained anew."""
        if self.manifest is not None and not workspace.tokenizer_path.is_file():
            write_durably(workspace.tokenizer_path, (workspace.dataset / TOKENIZER_FILE).read_bytes())

    def lend_distrust(self, workspace: Workspace) -> None:
        """Where a fast engine was caught in a difference as this was made, the new files are not given to it either."""
        records = () if self.manifest is None else self.manifest.encoding
        for record in records:
            if record.difference is not None and not workspace.distrusts_engine():
                write_durably(workspace.directory / DISTRUST_FILE, record.difference.encode())

    def plan_of_new_files(self, plan: Plan, config: PipelineConfig) -> Plan:
        """Units of what the plan of all files has beyond these, with the indices that follow; all of it for nothing.

        Raises PipelineError if a file of these is gone or has changed.
        """
        if self.manifest is None:
            return plan
        before = _versions(self.units)
        after = _versions(plan.units)
        changes = [f"{path} is gone" for source, path in before if (source, path) not in after]
        changes += [
            f"{path} has changed ({version} → {after[source, path]})"
            for (source, path), version in before.items()
            if after.get((source, path), version) != version
        ]
        if changes:
            raise PipelineError(
                f"--append adds files to those of {config.output_dir}, but of those: {some_of(sorted(changes))}; "
                "restore them, or make a dataset of the new files alone and merge the two"
            )
        pieces: dict[str, list[Piece]] = {unit.source: [] for unit in plan.units}
        for unit in plan.units:
            pieces[unit.source] += [piece for piece in unit.pieces if (unit.source, piece.path) not in before]
        return Plan(units_of(pieces, config, first_index=len(self.units)))


NOTHING = Base()


def open_base(config: PipelineConfig, workspace: Workspace) -> Base:
    """The version that `run --append` adds to.

    Raises PipelineError if the dataset is not finished, was not made by a run or was deduplicated, or if the config
    differs in more than its files and further sources; DatasetError if a shard is missing.
    """
    require_finished(config.output_dir)
    if config.deduplication.is_on:
        raise PipelineError(
            "--append would compare the new documents with each other only, not with those of the dataset; "
            "with deduplication, make a new dataset of all files"
        )
    manifest = read_manifest(config.output_dir)
    base = read_base(config.output_dir, manifest)
    if has_unfinished_append(workspace, base):
        workspace.check_config(config)
    else:
        take_next(config.output_dir)
        workspace.remove()
        workspace.remove_shards_beyond(manifest)
        _check_config(config)
    path = config.tokenizer.path
    for tokenizer in (config.output_dir / TOKENIZER_FILE, *([] if path is None else [path])):
        if not tokenizer.is_file() or digest_file(tokenizer) != manifest.tokenizer.digest:
            raise PipelineError(
                f"{tokenizer} is not what made version {manifest.version} of {config.output_dir} "
                f"({manifest.tokenizer.digest[:19]}…); restore it"
            )
    for record in manifest.splits.values():
        for shard in record.shards:
            check_size(config.output_dir, shard)
    return base


def require_finished(dataset: Path) -> None:
    """Raises PipelineError if there is no version to append to."""
    if not is_finished(dataset):
        raise PipelineError(f"--append adds to a finished dataset, and {dataset} is none; run without --append first")


def refuse_unfinished_append(dataset: Path, manifest: DatasetManifest, workspace: Workspace) -> None:
    """Raises PipelineError if an append was interrupted: a run without it would take its work away."""
    if workspace.last_planned_unit() is None or not (dataset / UNITS_FILE).is_file():
        return
    if has_unfinished_append(workspace, read_base(dataset, manifest)):
        raise PipelineError(
            f"a run --append to {dataset} was interrupted; run it again with --append to finish it, "
            f"or {workspace.way_out}"
        )


def has_unfinished_append(workspace: Workspace, base: Base) -> bool:
    """Whether the workspace plans units that the dataset does not have yet."""
    last = workspace.last_planned_unit()
    return last is not None and last >= len(base.units)


def write_units(dataset: Path, base: Base, plan: Plan, records: Mapping[int, UnitRecord]) -> None:
    """Keep the base's units and these, which make its next version. To be called before the manifest is written."""
    new = (
        # without its time, which varies
        KeptUnit(version=base.version + 1, unit=unit, record=records[unit.index].model_copy(update={"seconds": 0.0}))
        for unit in plan.units
    )
    # not pydantic's JSON, which is UTF-8: a file's name need not be, and an ASCII escape holds any byte of it
    lines = (f"{json.dumps(kept.model_dump())}\n".encode() for kept in itertools.chain(base.kept_units, new))
    write_parts_durably(dataset / UNITS_FILE, lines)


def read_base(dataset: Path, manifest: DatasetManifest) -> Base:
    """The units of the manifest's version. Raises PipelineError if the file is missing or damaged."""
    path = dataset / UNITS_FILE
    if manifest.origin is not None:
        raise PipelineError(
            f"{dataset} was made by `smollm2 pipeline {manifest.origin.verb}`, not by a run; make a dataset of the new "
            "files and merge the two"
        )
    units: list[Unit] = []
    versions: list[int] = []
    records = PackedModels(UnitRecord)
    documents_in = 0
    try:
        with path.open("rb") as file:
            for line in file:
                kept = KeptUnit.model_validate(json.loads(line))
                if kept.version <= manifest.version:
                    units.append(kept.unit)
                    versions.append(kept.version)
                    records.add(kept.unit.index, kept.record)
                    documents_in += kept.record.tally.documents_in
    except FileNotFoundError:
        raise PipelineError(
            f"{path} is missing, and with it what {dataset} was made of; make a dataset of the new files and merge "
            "the two"
        ) from None
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise PipelineError(
            f"{path} is damaged ({reason}); make a dataset of the new files and merge the two"
        ) from None
    if documents_in != manifest.documents_in:
        # cut off between two lines: the documents of what is missing would be left out, or made again
        raise PipelineError(
            f"{path} is damaged (its units are of {documents_in:,} documents, the manifest of "
            f"{manifest.documents_in:,}); make a dataset of the new files and merge the two"
        )
    return Base(manifest, tuple(units), tuple(versions), records)


def _check_config(config: PipelineConfig) -> None:
    path = config.output_dir / CONFIG_FILE
    try:
        before: Any = json.loads(path.read_bytes())
        sources_before = {source["name"]: source for source in before.pop("sources")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise PipelineError(f"{path} is missing or damaged; restore it") from None
    after = content_of(config)
    sources_after = {source["name"]: source for source in after.pop("sources")}
    changes = differences(before, after)
    for name, source in sources_before.items():
        if name not in sources_after:
            changes.append(f"source {name!r} is gone")
            continue
        changes += differences(
            {key: value for key, value in source.items() if key != "files"},
            {key: value for key, value in sources_after[name].items() if key != "files"},
            path=f"source {name!r}",
        )
    if changes:
        raise PipelineError(
            f"--append may add files and sources only, but the config differs from that of {config.output_dir} in more "
            f"({some_of(changes)}); restore the config, or choose another output_dir"
        )


def _versions(units: Iterable[Unit]) -> dict[tuple[str, str], str]:
    return {(unit.source, piece.path): piece.version for unit in units for piece in unit.pieces}
