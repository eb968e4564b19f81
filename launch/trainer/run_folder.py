"""The run's folder: what it says the run is, and where a start goes on from.

    RUN/config.yaml   the resolved config of the newest attempt
    RUN/run.json, RUN/tokenizer.json   written once
    RUN/rewinds.json   which data a run has left out after loss spikes (`rewinds.py`)

No torch; nothing here needs another rank.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoint.events import (
    CONFIG_FILE,
    RUN_FILE,
    RunRecord,
    code_revision,
    events_file,
    read_events,
    read_run,
    write_run,
)
from checkpoint.manifest import (
    TOKENIZER_FILE,
    checkpoint_directory,
    checkpoints_directory,
    list_steps,
    newest_verified,
    read_manifest,
    recover_interrupted_replacement,
    step_name,
    write_durably,
)
from launch.config import TrainConfig, TrainingError
from launch.trainer.console import unwritable
from launch.trainer.data_history import Period, settle_history
from launch.trainer.identity import change_remarks, config_digest, data_changes, differences, is_data
from launch.trainer.inputs import Inputs, check_init_from
from launch.trainer.lock import hold_lock
from launch.trainer.rewinds import REWINDS_FILE, Rewind, batch_number, batches_lacking, read_rewinds
from launch.trainer.untold import tell_untold

_PACKAGES = ("torch", "deepspeed", "numpy", "pyarrow", "pydantic")


@dataclass(frozen=True)
class StartPoint:
    """Where a start goes on: after `step` steps (0: from the beginning); `remarks` are lines for the user, `rewinds`
    say which data the run has left out, `earlier` what it read of other data before."""

    step: int
    run_key: str
    remarks: tuple[str, ...]
    rewinds: tuple[Rewind, ...] = ()
    earlier: tuple[Period, ...] = ()


def create_run_folder(run_dir: Path) -> None:
    """Make the folder and try to write in it. Raises TrainingError."""
    probe = run_dir / f".writable-{os.getpid()}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(run_dir, error) from None


def previous_config(run_dir: Path, load: Callable[[Path], TrainConfig]) -> TrainConfig | None:
    """Of the start before this one, None if there was none. Raises what `load` does."""
    file = run_dir / CONFIG_FILE
    return load(file) if file.is_file() else None


def prepare_run(
    config: TrainConfig,
    *,
    resolved: str,
    previous: TrainConfig | None,
    inputs: Inputs,
    earlier: Sequence[Period] = (),
) -> StartPoint:
    """Compare this start with what the folder holds, write what identifies the run, choose the checkpoint.

    `resolved` is the config as YAML; `previous` the one that the folder's config.yaml holds, if it has one; `earlier`
    those of data that was changed before (`data_history.py`).
    Raises TrainingError, a line a difference, if this start would be another run; what `newest_verified` raises.
    """
    run_dir = config.run_dir
    record = check_same_run(config, previous, inputs)
    recover_interrupted_replacement(run_dir)
    _remove_leftovers(checkpoints_directory(run_dir))
    step, passed_over = newest_verified(run_dir)
    rewinds = read_rewinds(run_dir)
    if step is None:
        check_init_from(config)
    else:
        check_resume(config, step, record=record, previous=previous, earlier=earlier, rewinds=rewinds)
        tell_untold(run_dir, step=step, finished=step >= config.steps)
    changes: list[str] = []
    if record is not None and previous is not None and _has_begun(run_dir):
        before = Period(step or 0, previous, record.dataset_digests)
        now = Period(step or 0, config, inputs.dataset_digests)
        samples = batch_number(step or 0, rewinds) * config.samples_per_step
        changes = change_remarks(before, now, data_changes(config, previous, inputs, record), samples=samples)
        earlier = settle_history(run_dir, step=step or 0, earlier=earlier, now=now, before=before)
        if changes:
            record = record.model_copy(update={"dataset_digests": inputs.dataset_digests})
            write_run(run_dir, record)
    if record is None or not _has_begun(run_dir):
        record = record or _new_record(config, inputs, run_key=uuid.uuid4().hex)
        if inputs.tokenizer_file is not None:
            write_durably(run_dir / TOKENIZER_FILE, inputs.tokenizer_file.read_bytes())
        write_run(run_dir, record)
    write_durably(run_dir / CONFIG_FILE, resolved.encode())
    damage = [f"passed over checkpoint {problem}" for problem in passed_over]
    return StartPoint(step or 0, record.run_key, (*damage, *changes, *inputs.remarks), rewinds, tuple(earlier))


def check_same_run(config: TrainConfig, previous: TrainConfig | None, inputs: Inputs) -> RunRecord | None:
    """The run's record, None if the folder has none. Raises TrainingError, a line a difference.

    A run that has trained nothing yet, since its start was refused or failed, may still become another one.
    """
    record = read_run(config.run_dir) if (config.run_dir / RUN_FILE).is_file() else None
    if record is not None and record.kind != "training":
        raise TrainingError(f"run_dir={config.run_dir} is that of the data run {record.name!r}; choose another run_dir")
    if not _has_begun(config.run_dir):
        return record and _new_record(config, inputs, run_key=record.run_key)
    problems = [line for key, line in differences(previous, config) if not is_data(key)] if previous is not None else []
    if record is not None and inputs.tokenizer.digest != record.tokenizer_digest:
        problems.append(
            f"the datasets were made with another tokenizer ({inputs.tokenizer.digest[:19]}…) than this run's "
            f"({record.tokenizer_digest[:19]}…); use the datasets it was started with, or choose another run_dir"
        )
    if config.allow_change != "data":
        way_out = ", or start with --allow-change data if it is meant"
        problems += [f"{line}{way_out}" for line in data_changes(config, previous, inputs, record)]
    if problems:
        raise TrainingError("\n".join(problems))
    return record


def _has_begun(run_dir: Path) -> bool:
    """Whether anything was computed: there is a checkpoint, or a metric was told."""
    if list_steps(run_dir):
        return True
    return any(event.kind == "metrics" for event, _ in read_events(events_file(run_dir)))


def check_resume(
    config: TrainConfig,
    step: int,
    *,
    record: RunRecord | None,
    previous: TrainConfig | None,
    earlier: Sequence[Period],
    rewinds: Sequence[Rewind],
) -> None:
    """Raises TrainingError, a line a difference, if the checkpoint of `step` is not one that this start may go on from;
    CheckpointError if it has no manifest that can be read.

    Settings are compared by name before, where config.yaml tells them (`check_same_run`); the digest stands in for a
    lost config.yaml and does not overrule one, since a release with one setting more has another digest for the same
    run.
    """
    manifest = read_manifest(checkpoint_directory(config.run_dir, step))
    # a change of data may have changed how many samples a step has
    sizes = {one.samples_per_step for one in (config, previous, *(p.config for p in earlier)) if one is not None}
    name = step_name(manifest.step)
    problems = []
    if record is None or manifest.run_key != record.run_key:
        this = f"there is no {RUN_FILE}" if record is None else f"{RUN_FILE} is of run {record.run_key}"
        problems.append(
            f"checkpoint {name} is of run {manifest.run_key} but {this}; put that run's {RUN_FILE} back into "
            f"{config.run_dir}, or choose another run_dir"
        )
    if previous is None and manifest.config_digest != config_digest(config):
        problems.append(
            f"checkpoint {name} was saved with other settings (digest {manifest.config_digest[:19]}…) than this "
            f"start's ({config_digest(config)[:19]}…), and {config.run_dir} has no {CONFIG_FILE} to say which; start "
            "it with the run's own config, or choose another run_dir"
        )
    elif manifest.samples_consumed not in {batch_number(manifest.step, rewinds) * size for size in sizes}:
        consumed = batch_number(manifest.step, rewinds) * config.samples_per_step
        problems.append(
            f"checkpoint {name} has consumed {manifest.samples_consumed:,} samples but by {REWINDS_FILE} it would be "
            f"{consumed:,}; put that run's {REWINDS_FILE} back into {config.run_dir}: it says which data was skipped"
        )
    if lacking := batches_lacking(config, rewinds):
        problems.append(
            f"steps={config.steps} would read {lacking} batches behind the end of data.stages, since by {REWINDS_FILE} "
            f"the run has left out {batch_number(config.steps, rewinds) - config.steps}; train at most "
            f"{config.steps - lacking} steps, or leave until_tokens out of the last stage (--allow-change data)"
        )
    if manifest.zero_stage != config.zero.stage:
        problems.append(
            f"checkpoint {name} was saved with zero.stage={manifest.zero_stage} and this start has "
            f"zero.stage={config.zero.stage}; start it with zero.stage={manifest.zero_stage}"
        )
    if problems:
        raise TrainingError("\n".join(problems))


def settle_finished_run(config: TrainConfig, step: int) -> str:
    """For a start that finds no steps left and starts no ranks: what to say, once the event log says it too."""
    descriptor = hold_lock(config.run_dir)
    try:
        tell_untold(config.run_dir, step=step, finished=True)
    finally:
        os.close(descriptor)
    return finished_line(config, step)


def finished_line(config: TrainConfig, step: int) -> str:
    """What is said to the start of a run that has no steps left."""
    return f"run {config.run_dir} has finished: {step} of {config.steps} steps; raise steps to go on"


def _new_record(config: TrainConfig, inputs: Inputs, *, run_key: str) -> RunRecord:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return RunRecord(
        run_key=run_key,
        name=config.name,
        created_ms=time.time_ns() // 1_000_000,
        code_revision=code_revision(),
        dataset_digests=inputs.dataset_digests,
        tokenizer_digest=inputs.tokenizer.digest,
        versions={"python": platform.python_version(), **versions},
    )


def _remove_leftovers(checkpoints: Path) -> None:
    """Folders of saves that a crash cut short."""
    for pattern in (".partial-*", ".replaced-*"):
        for folder in checkpoints.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
