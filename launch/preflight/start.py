"""What a start would read and go on from, judged as `launch train` judges it: data, the run's folder, weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from checkpoint.manifest import CheckpointError, checkpoint_directory, list_steps, read_manifest
from launch.config import TrainConfig, TrainingError
from launch.data.object_store import StoreUnreachableError
from launch.preflight.findings import Finding, not_checked, ok, problem, problems
from launch.trainer.data_history import read_history
from launch.trainer.inputs import Inputs, check_init_from, read_inputs
from launch.trainer.lock import refuse_if_at_work
from launch.trainer.rewinds import read_rewinds
from launch.trainer.run_folder import check_resume, check_same_run, previous_config
from pipeline.shards.format import DatasetError

ReadConfig = Callable[[Path], TrainConfig]
_IF_WHOLE = "(if its files are whole: the ranks look)"


@dataclass(frozen=True)
class Start:
    """`step`: the one that the run goes on from, 0 where it begins or where that is not known. `init_from`: the weights
    that the trial begins with, None for fresh ones."""

    findings: tuple[Finding, ...]
    step: int = 0
    init_from: Path | None = None


def look_at_start(config: TrainConfig, *, read_config: ReadConfig, dataset_told: bool) -> Start:
    """`read_config` reads a config that the run folder holds, and raises TrainingError; `dataset_told`: a node has said
    that it cannot read a dataset."""
    inputs, about_data = _look_at_data(config, dataset_told=dataset_told)
    step, about_run = _look_at_run(config, inputs, read_config)
    about_weights = list(_look_at_weights(config, step))
    reads_weights = step == 0 and not problems(about_weights)
    return Start((*about_data, *about_run, *about_weights), step or 0, config.init_from if reads_weights else None)


def _look_at_data(config: TrainConfig, *, dataset_told: bool) -> tuple[Inputs | None, list[Finding]]:
    try:
        inputs = read_inputs(config)
    except (DatasetError, TrainingError, StoreUnreachableError) as error:
        if dataset_told and isinstance(error, DatasetError):
            return None, [not_checked("data", "all", "tokenizer and sizes need the missing datasets first")]
        return None, list(_problems("data", error, fix="see docs/data.md"))
    size = f"vocabulary of {inputs.tokenizer.vocab_size:,}"
    return inputs, [ok("data", "all", f"one tokenizer, which is the model's ({size}), enough tokens in each source")]


def _look_at_run(
    config: TrainConfig, inputs: Inputs | None, read_config: ReadConfig
) -> tuple[int | None, list[Finding]]:
    """The step of the newest checkpoint, 0 without one, None where that cannot be known."""
    run_dir = config.run_dir
    step = None
    try:
        step, passed_over = _newest_step(run_dir)
        if inputs is None:
            return step, [not_checked("run", "all", "what the run reads has to be in order first")]
        previous = previous_config(run_dir, read_config)
        record = check_same_run(config, previous, inputs)
        if step >= config.steps:
            return step, [ok("run", "all", f"all {config.steps} steps are done {_IF_WHOLE}; raise steps to go on")]
        refuse_if_at_work(run_dir)
        if step:
            earlier = read_history(run_dir, read_config)
            rewinds = read_rewinds(run_dir)
            check_resume(config, step, record=record, previous=previous, earlier=earlier, rewinds=rewinds)
    except (TrainingError, CheckpointError, OSError) as error:
        return step, list(_problems("run", error, fix="mend that, or choose another run_dir"))
    if not step:
        return step, [ok("run", "all", f"begins in {run_dir}")]
    damaged = f"; passes over {passed_over}" if passed_over else ""
    return step, [ok("run", "all", f"goes on from step {step} of {config.steps} in {run_dir} {_IF_WHOLE}{damaged}")]


def _newest_step(run_dir: Path) -> tuple[int, str]:
    """Of those whose manifest can be read, 0 without a checkpoint; and what is wrong with the newest, if it is passed
    over. No file of a checkpoint is hashed here. Raises CheckpointError if there are checkpoints and none can be read.
    """
    passed_over: CheckpointError | None = None
    for step in reversed(list_steps(run_dir)):
        try:
            read_manifest(checkpoint_directory(run_dir, step))
        except CheckpointError as error:
            passed_over = passed_over or error
        else:
            return step, str(passed_over or "")
    if passed_over is not None:
        raise passed_over
    return 0, ""


def _look_at_weights(config: TrainConfig, step: int | None) -> Iterator[Finding]:
    """A run that goes on does not read `init_from`."""
    if config.init_from is None or step:
        return
    if step is None:
        yield not_checked("weights", "all", "whether the run begins or goes on is not known")
        return
    try:
        check_init_from(config)
    except TrainingError as error:
        yield from _problems("weights", error, fix="name another model")
    else:
        yield ok("weights", "all", f"{config.init_from} is this model by its config.json; the trial reads its tensors")


def _problems(check: str, error: Exception, *, fix: str) -> Iterator[Finding]:
    """One for each line of an error; `fix` where a line names none."""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    for line in text.splitlines():
        what, _, way_out = line.partition("; ")
        yield problem(check, "all", what, way_out or fix)
