"""What a start would read and go on from, judged as `launch train` judges it: data, the run's folder, weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoint.manifest import CheckpointError, list_steps
from launch.config import TrainConfig, TrainingError
from launch.data.object_store import StoreUnreachableError
from launch.preflight.findings import Finding, not_checked, ok, problem
from launch.trainer.data_history import Period
from launch.trainer.inputs import Inputs, check_init_from, read_inputs
from launch.trainer.lock import refuse_if_at_work
from launch.trainer.run_folder import check_resume, check_same_run, finished_line
from pipeline.shards.format import DatasetError


@dataclass(frozen=True)
class Start:
    """`step`: after how many the run goes on, as far as that is known. `init_from`: the weights that the trial begins
    with, None for fresh ones."""

    findings: tuple[Finding, ...]
    step: int = 0
    init_from: Path | None = None


def look_at_start(
    config: TrainConfig, *, previous: TrainConfig | None, earlier: Sequence[Period], dataset_told: bool
) -> Start:
    """`previous` and `earlier` as for `prepare_run`; `dataset_told`: a node has said that it cannot read one."""
    try:
        inputs = read_inputs(config)
    except (DatasetError, TrainingError, StoreUnreachableError) as error:
        if dataset_told and isinstance(error, DatasetError):
            about_data = [not_checked("data", "all", "tokenizer and sizes need the missing datasets first")]
        else:
            about_data = list(_problems("data", error, fix="see docs/data.md"))
        return Start((*about_data, not_checked("run", "all", "what the run reads has to be in order first")))
    size = f"vocabulary of {inputs.tokenizer.vocab_size:,}"
    data = ok("data", "all", f"one tokenizer, which is the model's ({size}), enough tokens in each source")
    try:
        step = _step_to_go_on_from(config, inputs, previous, earlier)
    except (TrainingError, CheckpointError) as error:
        return Start((data, *_problems("run", error, fix="choose another run_dir")))
    if step >= config.steps:
        return Start((data, ok("run", "all", finished_line(config, step))), step)
    if step:
        return Start((data, ok("run", "all", f"goes on from step {step} of {config.steps} in {config.run_dir}")), step)
    begins = ok("run", "all", f"begins in {config.run_dir}")
    if config.init_from is None:
        return Start((data, begins))
    try:
        check_init_from(config)
    except TrainingError as error:
        return Start((data, begins, *_problems("weights", error, fix="name another model")))
    fits = ok("weights", "all", f"{config.init_from} is this model by its config.json; the trial reads its tensors")
    return Start((data, begins, fits), init_from=config.init_from)


def _step_to_go_on_from(
    config: TrainConfig, inputs: Inputs, previous: TrainConfig | None, earlier: Sequence[Period]
) -> int:
    """The newest checkpoint's, which is not hashed here; 0 for a run that begins. Raises what a start would."""
    record = check_same_run(config, previous, inputs)
    refuse_if_at_work(config.run_dir)
    step = max(list_steps(config.run_dir), default=0)
    if step:
        check_resume(config, step, record=record, previous=previous, earlier=earlier)
    return step


def _problems(check: str, error: Exception, *, fix: str) -> Iterator[Finding]:
    """One for each line of an error; `fix` where a line names none."""
    for line in str(error).splitlines():
        what, _, way_out = line.partition("; ")
        yield problem(check, "all", what, way_out or fix)
