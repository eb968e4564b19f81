"""What a start would go on from is judged by the functions that the start itself asks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.events import EventWriter, events_file
from configs.load import ConfigError, dump, load
from launch.config import TrainConfig, TrainingError
from launch.preflight.start import Start, look_at_start
from launch.trainer.inputs import Inputs, read_inputs
from launch.trainer.lock import hold_lock
from model.hf_config import huggingface_config

DOCUMENTS = [[1 + number % 200] * 99 for number in range(40)]


@pytest.fixture
def config(train_config: Callable[..., TrainConfig], tmp_path: Path, make_dataset: Callable[..., Path]) -> TrainConfig:
    make_dataset(tmp_path / "data", DOCUMENTS, validation=DOCUMENTS)
    return train_config()


@pytest.fixture
def inputs(config: TrainConfig) -> Inputs:
    return read_inputs(config)


def read_config(file: Path) -> TrainConfig:
    try:
        return load(file, TrainConfig)
    except ConfigError as error:
        raise TrainingError(str(error)) from None


def look(config: TrainConfig, *, dataset_told: bool = False) -> Start:
    return look_at_start(config, read_config=read_config, dataset_told=dataset_told)


def told(config: TrainConfig, *, dataset_told: bool = False) -> list[str]:
    findings = look(config, dataset_told=dataset_told).findings
    return [f"{finding.check}: {finding.status}: {finding.what}; {finding.fix}" for finding in findings]


@pytest.fixture
def saved(config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]) -> Callable[[int], Path]:
    """`saved(50)`: the run of the config has that checkpoint, whose folder it returns."""

    def save(step: int) -> Path:
        folder = add_checkpoint(config, inputs, step)
        (config.run_dir / "config.yaml").write_text(dump(config))
        return folder

    return save


def test_a_run_that_begins(config: TrainConfig) -> None:
    data, run = told(config)
    assert data.startswith("data: ok: one tokenizer, which is the model's (vocabulary of 256)")
    assert run == f"run: ok: begins in {config.run_dir}; "
    assert not config.run_dir.exists()


def test_a_run_that_goes_on(config: TrainConfig, saved: Callable[[int], Path]) -> None:
    saved(50)
    before = sorted(config.run_dir.rglob("*"))
    start = look(config)
    words = f"goes on from step 50 of 100 in {config.run_dir} (if its files are whole: the ranks look)"
    assert [finding.what for finding in start.findings if finding.check == "run"] == [words]
    assert start.step == 50
    assert sorted(config.run_dir.rglob("*")) == before


def test_a_checkpoint_that_cannot_be_read_is_passed_over_as_by_a_start(
    config: TrainConfig, saved: Callable[[int], Path]
) -> None:
    saved(50)
    manifest = saved(60) / "manifest.json"
    manifest.write_text("{")
    start = look(config)
    assert start.step == 50
    assert f"goes on from step 50 of 100 in {config.run_dir}" in start.findings[1].what
    assert f"; passes over {manifest.parent}" in start.findings[1].what


def test_a_run_none_of_whose_checkpoints_can_be_read(config: TrainConfig, saved: Callable[[int], Path]) -> None:
    (saved(50) / "manifest.json").write_text("{")
    start = look(config.model_copy(update={"init_from": Path("weights")}))
    assert [(finding.check, finding.status) for finding in start.findings] == [
        ("data", "ok"),
        ("run", "problem"),
        ("weights", "not checked"),
    ]


def test_weights_of_a_run_that_goes_on_are_not_asked_for(
    train_config: Callable[..., TrainConfig], tmp_path: Path, inputs: Inputs, saved: Callable[[int], Path]
) -> None:
    saved(50)
    pretrained = train_config(init_from=tmp_path / "gone")
    (pretrained.run_dir / "config.yaml").write_text(dump(pretrained))
    start = look(pretrained)
    assert (start.step, start.init_from) == (50, None)
    assert [(finding.check, finding.status) for finding in start.findings] == [("data", "ok"), ("run", "ok")]


@pytest.mark.parametrize("changes", [{}, {"zero": {"stage": 2}}])
def test_a_run_that_has_finished_is_compared_no_further(
    train_config: Callable[..., TrainConfig], saved: Callable[[int], Path], changes: dict[str, object]
) -> None:
    saved(100)
    words = "all 100 steps are done (if its files are whole: the ranks look); raise steps to go on"
    assert told(train_config(**changes))[1] == f"run: ok: {words}; "


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 1}, "seed=1 but this run was started with 0; set it back, or choose another run_dir"),
        (
            {"zero": {"stage": 2}},
            "checkpoint step-00000050 was saved with zero.stage=3 and this start has zero.stage=2; start it with "
            "zero.stage=3",
        ),
    ],
)
def test_a_start_that_the_run_would_refuse(
    train_config: Callable[..., TrainConfig], saved: Callable[[int], Path], change: dict[str, object], line: str
) -> None:
    saved(50)
    assert told(train_config(**change))[1] == f"run: problem: {line}"


def test_what_an_earlier_change_of_data_made_of_the_steps_is_known(
    train_config: Callable[..., TrainConfig], config: TrainConfig, saved: Callable[[int], Path]
) -> None:
    """A checkpoint of steps of 16 samples, in a run whose steps were made twice as large and are so now."""
    folder = saved(50)
    larger = train_config(batch_tokens=2048)
    (config.run_dir / "config.yaml").write_text(dump(larger))
    assert "has consumed 800 samples but by rewinds.json it would be 1,600" in told(larger)[1]
    history = config.run_dir / "data_history" / "until-step-00000050"
    history.mkdir(parents=True)
    (history / "config.yaml").write_text(dump(config))
    (history / "run.json").write_text((config.run_dir / "run.json").read_text())
    assert told(larger)[1].startswith("run: ok: goes on from step 50")
    assert folder.is_dir()


def test_a_config_file_that_does_not_load(config: TrainConfig, saved: Callable[[int], Path]) -> None:
    saved(50)
    (config.run_dir / "config.yaml").write_text("steps: [")
    assert told(config)[1].startswith(f"run: problem: {config.run_dir}/config.yaml:1:9: malformed YAML")


def test_a_run_folder_that_cannot_be_there(train_config: Callable[..., TrainConfig], config: TrainConfig) -> None:
    file = config.run_dir.parent / "file"
    file.touch()
    assert told(train_config(run_dir=file / "run"))[1] == (
        f"run: problem: {file}/run/checkpoints: Not a directory; mend that, or choose another run_dir"
    )


def test_a_trainer_at_work(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.run_dir.mkdir()
    with EventWriter(events_file(config.run_dir)) as events:
        events.write("state", step=0, state="running")
    monkeypatch.setattr("launch.trainer.lock.has_launcher", lambda pid: pid == os.getpid())
    descriptor = hold_lock(config.run_dir)
    try:
        [_, run] = told(config)
    finally:
        os.close(descriptor)
    assert run.startswith(f"run: problem: another trainer (pid {os.getpid()} on ")
    assert run.endswith("wait for it, end it, or choose another run_dir")


def test_data_that_is_not_in_order_leaves_the_run_unchecked(
    train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    data, run, weights = told(train_config(init_from=tmp_path / "gone"))
    assert data.startswith("data: problem: ")
    assert run == "run: not checked: what the run reads has to be in order first; "
    assert weights.startswith(f"weights: problem: init_from={tmp_path / 'gone'} is not on this machine")


def test_a_dataset_that_a_node_has_told_of_is_not_told_twice(train_config: Callable[..., TrainConfig]) -> None:
    assert told(train_config(), dataset_told=True)[0] == (
        "data: not checked: tokenizer and sizes need the missing datasets first; "
    )


def test_weights_of_another_model_are_named_and_the_trial_leaves_them_out(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    other = config.model.model_copy(update={"num_hidden_layers": 3})
    (tmp_path / "weights" / "config.json").write_text(json.dumps(huggingface_config(other, dtype="bfloat16")))
    start = look(config.model_copy(update={"init_from": tmp_path / "weights"}))
    weights = start.findings[-1]
    assert (weights.check, weights.status, weights.fix) == ("weights", "problem", "set model.num_hidden_layers to it")
    assert weights.what == f"model.num_hidden_layers=2 but init_from={tmp_path / 'weights'} has 3"
    assert start.init_from is None
