"""The output folder while a run is at work, and the rule that only one run is.

    DATASET/.lock                  held by the run, or by all shards of one together (`array_job.py`); the kernel
                                   releases it when the process dies, however it dies
    DATASET/status.json            what the run is at (`status.py`); stays
    DATASET/.work/config.json      the fields that decide the bytes
    DATASET/.work/plan.json        the units, with the version of every input file
    DATASET/.work/tokenizer.json   once it is there
    DATASET/.work/deduplication/   as in `deduplication/folder.py`
    DATASET/.work/units/00000.json one a finished unit

`.work` goes when the manifest is there.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config import PipelineConfig, content_of, differences
from pipeline.document import PipelineError
from pipeline.lock import LockedError, locked
from pipeline.packed_models import PackedModels
from pipeline.plan import Plan, changed_inputs, is_stored_in, json_parts
from pipeline.shards.format import (
    MANIFEST_FILE,
    SPLITS,
    TOKENIZER_FILE,
    WORK_DIRECTORY,
    DatasetManifest,
    split_directory,
    write_durably,
    write_parts_durably,
)
from pipeline.status import STATUS_FILE
from pipeline.unit import DISTRUST_FILE, UnitRecord, unit_record_path

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"
REPORT_FILE = "report.json"
REPORT_PAGE_FILE = "report.html"

MAX_DIFFERENCES = 5


class Workspace:
    """Paths and records of an unfinished run."""

    def __init__(self, dataset: Path) -> None:
        self.dataset = dataset
        self.directory = dataset / WORK_DIRECTORY
        self.units_directory = self.directory / "units"
        self.tokenizer_path = self.directory / TOKENIZER_FILE
        self._config_path = self.directory / CONFIG_FILE
        self._plan_path = self.directory / "plan.json"
        self._distrust_path = self.directory / DISTRUST_FILE

    @property
    def way_out(self) -> str:
        """What a message tells to remove: all, or only this where a finished dataset is being added to."""
        if is_finished(self.dataset):
            return f"remove {self.directory} to leave the finished dataset as it is"
        return f"remove {self.dataset} to start over"

    def last_planned_unit(self) -> int | None:
        """The index of the last unit of the run that is at work here, or was; None if it has planned none."""
        if not self._plan_path.is_file():
            return None
        try:
            units: list[dict[str, Any]] = json.loads(self._plan_path.read_bytes())
            return int(units[-1]["index"]) if units else None
        except (ValueError, TypeError, KeyError):
            raise PipelineError(f"{self._plan_path} is damaged; {self.way_out}") from None

    def check_config(self, config: PipelineConfig) -> None:
        """Raises PipelineError if the folder belongs to another config, or is not ours at all."""
        if self._config_path.is_file():
            require_same_config(self._config_path, config)
        elif foreign := sorted(entry.name for entry in self.dataset.iterdir() if not _is_ours(entry.name)):
            raise PipelineError(
                f"output_dir={self.dataset} holds other files ({', '.join(foreign[:3])}); choose a new or empty folder"
            )

    def forget_other_config(self, config: PipelineConfig) -> None:
        """Remove what a start by another config has left, where that was refused or stopped before it cost anything.

        Only for who holds the folder alone.
        """
        try:
            before: Any = json.loads(self._config_path.read_bytes())
            trains = before["tokenizer"]["path"] is None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return  # `check_config` says what is the matter
        has_shards = any(any(split_directory(self.dataset, split).glob("data-*.arrow")) for split in SPLITS)
        has_trained = trains and self.tokenizer_path.is_file()
        if has_shards or has_trained or (self.directory / "deduplication").is_dir() or before == content_of(config):
            return
        log.info("%s: what a start by another config left is removed; it had made no shard", self.dataset)
        self.remove_partials()
        self.remove()
        for name in _REFUSED_LEAVES:
            (self.dataset / name).unlink(missing_ok=True)

    def has_begun(self) -> bool:
        """Whether units may have been done: there is a plan and a tokenizer."""
        return self._plan_path.is_file() and self.tokenizer_path.is_file()

    def begin(self, config: PipelineConfig, plan: Plan) -> None:
        """Record the config and the plan, or compare them with those that the run began with.

        Raises PipelineError, saying what differs, if the inputs have changed since, or if the same inputs are cut
        otherwise now: units are known by their index, and a unit of other records under it would lose or double some.
        """
        self.units_directory.mkdir(parents=True, exist_ok=True)
        write_durably(self._config_path, json.dumps(content_of(config), indent=1).encode())
        if not self._plan_path.is_file():
            write_parts_durably(self._plan_path, json_parts(plan))
        elif not is_stored_in(self._plan_path, plan):
            if changes := changed_inputs(self._plan_path, plan):
                raise PipelineError(
                    f"the input has changed since the run in {self.dataset} began: {some_of(changes)}; "
                    f"restore it, or {self.way_out}"
                )
            raise PipelineError(
                f"the plan differs from that which the run in {self.dataset} began with, though its input is the "
                "same: another version of this program or of a library cuts it otherwise; "
                f"go on with the versions that began it, or {self.way_out}"
            )

    def finished_units(self, plan: Plan) -> PackedModels[UnitRecord]:
        """The records of units whose shards are all there, and whose ids are not doubted; others are done again."""
        distrusts_engine = self.distrusts_engine()
        records = PackedModels(UnitRecord)
        # asking for each is slow where the folder is on another machine and hundreds of thousands are not there
        written = {path.name for path in self.units_directory.iterdir()}
        for unit in plan.units:
            path = unit_record_path(self.units_directory, unit.index)
            if path.name not in written:
                continue
            try:
                record = UnitRecord.model_validate_json(path.read_bytes())
            except ValidationError:
                log.warning("%s is damaged; its unit is done again", path)
                continue
            if self.holds_shards_of(record) and not (distrusts_engine and record.is_doubtful):
                records.add(unit.index, record)
        return records

    def distrusts_engine(self) -> bool:
        """Whether a worker has caught the fast engine in a difference."""
        return self._distrust_path.is_file()

    def engine_difference(self) -> str:
        return self._distrust_path.read_text()

    def holds_shards_of(self, record: UnitRecord) -> bool:
        """Whether all shards of a finished unit can be seen from here."""
        shards = [shard for shards in record.shards.values() for shard in shards]
        return all(_has_size(self.dataset / shard.path, shard.size_bytes) for shard in shards)

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """Held while the config and the tokenizer are being written; the shards of a run wait for each other."""
        self.directory.mkdir(exist_ok=True)
        path = self.directory / "setup.lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(path))
            except LockedError:
                log.info("waiting for another shard of this run, which makes the tokenizer")
                stack.enter_context(locked(path, wait=True))
            yield

    def remove_partials(self, *, of_units: Collection[int] | None = None) -> None:
        """Remove what killed writers have left: all of it, or that of some units."""
        for folder in (self.dataset, self.dataset / "validation", self.directory, self.units_directory):
            for path in folder.glob(".*.partial"):
                unit = _UNIT_OF_PARTIAL.match(path.name)
                if of_units is None or (unit is not None and int(unit[1]) in of_units):
                    path.unlink(missing_ok=True)

    def remove_shards_beyond(self, manifest: DatasetManifest) -> None:
        """Remove those of an append that was refused or taken back. Only when none is unfinished."""
        named = {self.dataset / shard.path for split in manifest.splits.values() for shard in split.shards}
        folders = (split_directory(self.dataset, split) for split in SPLITS)
        left = [path for folder in folders for path in folder.glob("data-*.arrow") if _UNIT_OF_SHARD.match(path.name)]
        left = [path for path in left if path not in named]
        for path in left:
            path.unlink(missing_ok=True)
        if left:
            log.info("%s: %s shards that no version names are removed", self.dataset, f"{len(left):,}")
        self.remove_partials()

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


# of a run that found nothing to train on, or too many bad records
_REFUSED_LEAVES = (
    *(REPORT_FILE, REPORT_PAGE_FILE, STATUS_FILE),
    *("units.jsonl", "deduplication.json", "contaminated.jsonl"),
)


def _is_ours(name: str) -> bool:
    """Whether a run without a dataset may have left it."""
    is_partial = name.startswith(".") and name.endswith(".partial")
    return is_partial or name in (LOCK_FILE, WORK_DIRECTORY, "validation", *_REFUSED_LEAVES)


_UNIT_OF_SHARD = re.compile(r"^data-\d{5,}-\d{3,}\.arrow$")
_UNIT_OF_PARTIAL = re.compile(r"^\.(?:data-)?(\d{5,})[-.]")


@contextmanager
def only_run(dataset: Path, *, shared: bool = False) -> Iterator[None]:
    """Make the folder and hold its lock; `shared` with others that share it, which each hold a lock of their own.

    Raises PipelineError if another run holds it or a file lies there, and OSError if it cannot be made or written.
    """
    try:
        dataset.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise PipelineError(f"output_dir={dataset} is a file, wanted a folder; choose another, or remove it") from None
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(dataset / LOCK_FILE, shared=shared))
        except LockedError as error:
            raise PipelineError(
                f"another pipeline ({error}) is writing {dataset}; wait for it, or choose another output_dir"
            ) from None
        yield


def is_finished(dataset: Path) -> bool:
    return (dataset / MANIFEST_FILE).is_file()


def require_same_config(path: Path, config: PipelineConfig) -> None:
    """Raises PipelineError, saying what differs, unless `path` holds the deciding fields of this config."""
    way_out = "remove the folder to start over"
    if path.parent.name == WORK_DIRECTORY and is_finished(config.output_dir):
        way_out = Workspace(config.output_dir).way_out
    try:
        before: Any = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # not JSON, or not UTF-8
        raise PipelineError(
            f"{path}, which tells the config that output_dir={config.output_dir} is made with, is missing or damaged; "
            f"choose another output_dir, restore the file, or {way_out}"
        ) from None
    changes = differences(before, content_of(config))
    if changes:
        raise PipelineError(
            f"output_dir={config.output_dir} was made with another config ({some_of(changes)}); "
            f"choose another output_dir, restore the config, or {way_out}"
        )


def some_of(lines: list[str]) -> str:
    """The first few, in one line."""
    more = len(lines) - MAX_DIFFERENCES
    return "; ".join(lines[:MAX_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes
