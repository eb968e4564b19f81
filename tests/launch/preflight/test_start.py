"""What a start would go on from is judged by the functions that the start itself asks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.events import EventWriter, events_file
from checkpoint.manifest import checkpoint_directory, read_manifest
from launch.config import TrainConfig
from launch.preflight.start import Start, look_at_start
from launch.trainer.identity import config_digest
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


def look(config: TrainConfig, *, previous: TrainConfig | None = None) -> Start:
    return look_at_start(config, previous=previous, earlier=(), dataset_told=False)


def told(config: TrainConfig, *, previous: TrainConfig | None = None) -> list[str]:
    start = look(config, previous=previous)
    return [f"{finding.check}: {finding.status}: {finding.what}; {finding.fix}" for finding in start.findings]


def test_a_run_that_begins(config: TrainConfig) -> None:
    data, run = told(config)
    assert data.startswith("data: ok: one tokenizer, which is the model's (vocabulary of 256)")
    assert run == f"run: ok: begins in {config.run_dir}; "
    assert not config.run_dir.exists()


def test_a_run_that_goes_on(config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]) -> None:
    add_checkpoint(config, inputs, 50)
    before = sorted(config.run_dir.rglob("*"))
    start = look(config, previous=config)
    assert start.findings[1].what == f"goes on from step 50 of 100 in {config.run_dir}"
    assert start.step == 50
    assert sorted(config.run_dir.rglob("*")) == before


def test_weights_of_a_run_that_goes_on_are_not_asked_for(
    train_config: Callable[..., TrainConfig],
    config: TrainConfig,
    inputs: Inputs,
    tmp_path: Path,
    add_checkpoint: Callable[..., Path],
) -> None:
    pretrained = train_config(init_from=tmp_path / "gone")
    add_checkpoint(config, inputs, 50)
    manifest = read_manifest(checkpoint_directory(config.run_dir, 50))
    assert manifest.config_digest != config_digest(pretrained)  # and is not compared, where config.yaml is there
    start = look(pretrained, previous=pretrained)
    assert (start.step, start.init_from) == (50, None)
    assert [finding.check for finding in start.findings if finding.status == "ok"] == ["data", "run"]


def test_a_run_that_has_finished(
    train_config: Callable[..., TrainConfig], config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    add_checkpoint(config, inputs, 100)
    assert (
        told(config, previous=config)[1]
        == f"run: ok: run {config.run_dir} has finished: 100 of 100 steps; raise steps to go on; "
    )


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
    train_config: Callable[..., TrainConfig],
    config: TrainConfig,
    inputs: Inputs,
    add_checkpoint: Callable[..., Path],
    change: dict[str, object],
    line: str,
) -> None:
    add_checkpoint(config, inputs, 50)
    assert told(train_config(**change), previous=config)[1] == f"run: problem: {line}"


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


def test_data_that_is_not_in_order_leaves_the_run_unchecked(train_config: Callable[..., TrainConfig]) -> None:
    data, run = told(train_config())
    assert data.startswith("data: problem: ")
    assert run == "run: not checked: what the run reads has to be in order first; "


def test_weights_of_another_model_are_named_and_the_trial_leaves_them_out(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    other = config.model.model_copy(update={"num_hidden_layers": 3})
    (tmp_path / "weights" / "config.json").write_text(json.dumps(huggingface_config(other, dtype="bfloat16")))
    start = look(config.model_copy(update={"init_from": tmp_path / "weights"}))
    weights = start.findings[-1]
    assert (weights.check, weights.status, weights.fix) == ("weights", "problem", "set model.num_hidden_layers to it")
    assert weights.what == f"model.num_hidden_layers=2 but init_from={tmp_path / 'weights'} has 3"
    assert start.init_from is None
