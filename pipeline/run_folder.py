"""The folder of a data run (`run_dir`), laid out as `checkpoint/run_record.py` says: whose it is, and what lies in it.

RUN/.lock         held by the driver while it is at work
RUN/config.yaml   the resolved config of the newest attempt
RUN/run.json      written once, with the folder of the dataset: a run is known by it
RUN/artifacts/    copies of the dataset's reports and manifest
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import yaml

from checkpoint.events import (
    CONFIG_FILE,
    LOCK_FILE,
    RUN_FILE,
    RunRecord,
    RunRecordError,
    artifacts_directory,
    code_revision,
    events_file,
    read_events,
    read_run,
    write_run,
)
from pipeline.config import PipelineConfig
from pipeline.deduplication.duplicate_report import REPORT_FILE as DEDUPLICATION_FILE
from pipeline.document import PipelineError
from pipeline.lock import LockedError, locked
from pipeline.shards.format import MANIFEST_FILE, write_durably
from pipeline.workspace import REPORT_FILE, REPORT_PAGE_FILE

# the service takes the lock for an instant at every pass, to see whether the run is alive
LOCK_PATIENCE_S = 5.0

_ARTIFACTS = (REPORT_FILE, REPORT_PAGE_FILE, DEDUPLICATION_FILE, MANIFEST_FILE)
_PACKAGES = ("pyarrow", "numpy", "tokenizers", "splintr-rs", "pydantic")


@contextmanager
def open_run_folder(run_dir: Path, config: PipelineConfig, *, goes_on: bool) -> Iterator[None]:
    """Make the folder, or take it up again, and hold its lock. `goes_on`: the dataset was begun before.

    Raises PipelineError if the folder is that of another run, OSError if it cannot be made or written.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        _enter_lock(stack, run_dir)
        if (run_dir / RUN_FILE).is_file():
            _check_record(run_dir, config, goes_on=goes_on)
        else:
            write_run(run_dir, _new_record(config))
        yield


def refuse_foreign(run_dir: Path, config: PipelineConfig) -> None:
    """Raises PipelineError if the folder is that of another run, as far as it can be read. Makes and locks nothing."""
    with suppress(OSError):
        if (run_dir / RUN_FILE).is_file():
            _check_record(run_dir, config, goes_on=True)


def write_config(run_dir: Path, config: PipelineConfig) -> None:
    """Raises OSError."""
    tree = json.loads(config.model_dump_json())
    content = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    write_durably(run_dir / CONFIG_FILE, content.encode())


def copy_artifacts(run_dir: Path, dataset: Path, *, since_s: float = 0.0) -> None:
    """Copy reports and manifest of a dataset, as far as they were written since a time. Raises OSError."""
    folder = artifacts_directory(run_dir)
    for name in _ARTIFACTS:
        path = dataset / name
        if path.is_file() and path.stat().st_mtime >= since_s:
            folder.mkdir(exist_ok=True)
            write_durably(folder / name, path.read_bytes())


def _enter_lock(stack: ExitStack, run_dir: Path) -> None:
    deadline_s = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            stack.enter_context(locked(run_dir / LOCK_FILE))
            return
        except LockedError as error:
            if time.monotonic() >= deadline_s:
                raise PipelineError(
                    f"run_dir={run_dir} is being written by another run ({error}); wait for it, or choose another"
                ) from None
        time.sleep(0.1)


def _check_record(run_dir: Path, config: PipelineConfig, *, goes_on: bool) -> None:
    try:
        record = read_run(run_dir)
    except RunRecordError as error:
        raise PipelineError(f"{error}, or choose another run_dir") from None
    if record.kind != "data":
        raise PipelineError(f"run_dir={run_dir} is that of the training run {record.name!r}; choose another run_dir")
    if record.dataset != str(config.output_dir.absolute()):
        raise PipelineError(
            f"run_dir={run_dir} tells of the dataset {record.dataset}, not of {config.output_dir.absolute()}; "
            "choose another run_dir"
        )
    if not goes_on and any(event.kind == "metrics" for event, _ in read_events(events_file(run_dir))):
        raise PipelineError(
            f"run_dir={run_dir} tells of an earlier run to {config.output_dir}, of which nothing is left there; "
            "remove it, or choose another run_dir"
        )


def _new_record(config: PipelineConfig) -> RunRecord:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return RunRecord(
        kind="data",
        run_key=uuid.uuid4().hex,
        name=config.name,
        created_ms=time.time_ns() // 1_000_000,
        code_revision=code_revision(),
        dataset=str(config.output_dir.absolute()),
        versions=versions,
    )
