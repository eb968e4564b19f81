"""The run's folder: one trainer at a time, one run for ever, and where a start goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoint import digests
from checkpoint.events import EventWriter, events_file
from checkpoint.manifest import (
    CheckpointError,
    partial_directory,
)
from checkpoint.run_record import RunRecord, read_run, write_run
from launch.config import TrainConfig, TrainingError
from launch.data_config import DataConfig
from launch.trainer.data_history import Period
from launch.trainer.identity import config_digest, differences
from launch.trainer.inputs import Inputs, read_inputs
from launch.trainer.rewinds import Rewind, write_rewinds
from launch.trainer.run_folder import StartPoint, create_run_folder, prepare_run
from model.hf_config import huggingface_config

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [[1 + number % 200] * 99 for number in range(40)]


@pytest.fixture
def config(train_config: Callable[..., TrainConfig], tmp_path: Path, make_dataset: Callable[..., Path]) -> TrainConfig:
    make_dataset(tmp_path / "data", DOCUMENTS, validation=DOCUMENTS)
    create_run_folder(tmp_path / "run")
    return train_config()


@pytest.fixture
def inputs(config: TrainConfig) -> Inputs:
    return replace(read_inputs(config), remarks=("of the data",))


def start(
    config: TrainConfig,
    inputs: Inputs,
    *,
    previous: TrainConfig | None = None,
    earlier: Sequence[Period] = (),
) -> StartPoint:
    return prepare_run(config, resolved="name: tiny\n", previous=previous, inputs=inputs, earlier=earlier)


def begin(config: TrainConfig) -> None:
    """As a run that has trained a step leaves it."""
    with EventWriter(events_file(config.run_dir)) as events:
        events.write("metrics", step=1, **{"train/loss": 5.0})


def test_first_start_writes_who_the_run_is(config: TrainConfig, inputs: Inputs) -> None:
    begun = start(config, inputs)
    assert (begun.step, begun.remarks) == (0, ("of the data",))
    record = read_run(config.run_dir)
    assert record.run_key == begun.run_key
    assert record.dataset_digests == inputs.dataset_digests
    assert set(record.versions) >= {"python", "torch", "deepspeed"}
    assert (config.run_dir / "config.yaml").read_text() == "name: tiny\n"
    assert (config.run_dir / "tokenizer.json").is_file()


def test_second_start_is_the_same_run(config: TrainConfig, inputs: Inputs) -> None:
    assert start(config, inputs).run_key == start(config, inputs, previous=config).run_key


def test_start_goes_on_from_the_newest_checkpoint(
    config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    for step in (50, 100):
        add_checkpoint(config, inputs, step)
    assert start(config, inputs).step == 100


def test_damaged_checkpoint_is_passed_over_and_named(
    config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    add_checkpoint(config, inputs, 50)
    damaged = add_checkpoint(config, inputs, 100) / "zero" / "weights.pt"
    damaged.write_bytes(damaged.read_bytes().replace(b"100", b"101"))
    begun = start(config, inputs)
    assert begun.step == 50
    remark, _ = begun.remarks
    assert remark.startswith("passed over checkpoint step-00000100/zero/weights.pt: contents changed")


def test_missing_rank_file_is_passed_over_and_named(
    config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    add_checkpoint(config, inputs, 50)
    add_checkpoint(config, inputs, 100).joinpath("zero", "weights.pt").unlink()
    begun = start(config, inputs)
    assert begun.step == 50
    assert begun.remarks == ("passed over checkpoint step-00000100/zero/weights.pt: missing", "of the data")


def test_a_run_with_no_whole_checkpoint_does_not_begin_anew_by_itself(
    config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    for step in (50, 100):
        add_checkpoint(config, inputs, step).joinpath("zero", "weights.pt").unlink()
    folder = config.run_dir / "checkpoints"
    words = (
        rf"no checkpoint in {folder} is whole \(the newest: step-00000100/zero/weights.pt: missing\); mend one, or move"
    )
    with pytest.raises(CheckpointError, match=words):
        start(config, inputs)
    folder.rename(config.run_dir / "moved")
    assert start(config, inputs).step == 0


def test_a_run_whose_checkpoints_cannot_be_read_now_does_not_begin_anew(
    config: TrainConfig, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, add_checkpoint: Callable[..., Path]
) -> None:
    add_checkpoint(config, inputs, 50)
    with monkeypatch.context() as patched:
        patched.setattr(digests, "_digest_range", lambda place, pace: OSError(116, "Stale file handle"))
        with pytest.raises(OSError, match="Stale file handle"):
            start(config, inputs)
    assert start(config, inputs).step == 50


def test_leftovers_of_saves_cut_short_are_removed(
    config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    kept = add_checkpoint(config, inputs, 100)
    partial_directory(config.run_dir, 50).mkdir(parents=True)
    start(config, inputs)
    assert not partial_directory(config.run_dir, 50).exists()
    assert kept.is_dir()


def test_checkpoint_that_was_about_to_be_replaced_is_put_back(
    config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    kept = add_checkpoint(config, inputs, 100)
    kept.rename(kept.with_name(".replaced-step-00000100"))
    assert start(config, inputs, previous=config).step == 100
    assert [folder.name for folder in kept.parent.iterdir() if folder.is_dir()] == ["step-00000100"]


def test_checkpoint_of_another_run_is_refused(
    config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    add_checkpoint(config, inputs, 50)
    record = read_run(config.run_dir)
    write_run(config.run_dir, record.model_copy(update={"run_key": "other"}))
    with pytest.raises(TrainingError) as caught:
        start(config, inputs, previous=config)
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"checkpoint step-00000050 is of run {record.run_key} but run.json is of run other; put")


def test_checkpoints_without_the_runs_record_are_refused(
    config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    add_checkpoint(config, inputs, 50)
    (config.run_dir / "run.json").unlink()
    with pytest.raises(TrainingError, match=r"but there is no run.json; put that run's run.json back into"):
        start(config, inputs)
    assert not (config.run_dir / "run.json").exists()


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_tokens": 2048}])
def test_other_run_is_refused_when_its_config_file_is_lost(
    train_config: Callable[..., TrainConfig],
    config: TrainConfig,
    inputs: Inputs,
    change: dict[str, object],
    add_checkpoint: Callable[..., Path],
) -> None:
    add_checkpoint(config, inputs, 50)
    (config.run_dir / "config.yaml").unlink()
    with pytest.raises(TrainingError) as caught:
        start(train_config(**change), inputs)
    [line] = str(caught.value).splitlines()
    assert line.startswith("checkpoint step-00000050 was saved with other settings (digest sha256:")
    assert line.endswith("to say which; start it with the run's own config, or choose another run_dir")
    assert not (config.run_dir / "config.yaml").exists()
    assert start(config, inputs).step == 50


def test_weights_to_start_from_are_needed_by_the_first_start_only(
    train_config: Callable[..., TrainConfig],
    config: TrainConfig,
    inputs: Inputs,
    tmp_path: Path,
    add_checkpoint: Callable[..., Path],
) -> None:
    pretrained = train_config(init_from=tmp_path / "weights")
    with pytest.raises(
        TrainingError,
        match=r"is not on this machine, and nothing is fetched from a hub; name a Hugging Face model",
    ):
        start(pretrained, inputs)
    assert not (config.run_dir / "run.json").exists()
    (tmp_path / "weights").mkdir()
    weights = huggingface_config(config.model, dtype="bfloat16")
    (tmp_path / "weights" / "config.json").write_text(json.dumps(weights))
    add_checkpoint(pretrained, inputs, 50)
    shutil.rmtree(tmp_path / "weights")
    assert start(pretrained, inputs, previous=pretrained).step == 50


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed=1 but this run was started with 0"),
        ({"batch_tokens": 2048}, "batch_tokens=2048 but this run was started with 1024"),
        ({"precision": "float32"}, "precision=float32 but this run was started with bfloat16"),
        ({"optimizer": {"learning_rate": 1e-3, "eps": 1e-6}}, "optimizer.eps=1e-06"),
        ({"init_from": "somewhere"}, "init_from=somewhere but this run was started with nothing"),
    ],
)
def test_what_the_run_is_may_not_change(
    train_config: Callable[..., TrainConfig], config: TrainConfig, inputs: Inputs, change: dict[str, object], key: str
) -> None:
    begin(config)
    with pytest.raises(TrainingError) as caught:
        start(train_config(**change), inputs, previous=config)
    [line] = str(caught.value).splitlines()
    assert line.startswith(key)
    assert line.endswith("; set it back, or choose another run_dir")
    assert not (config.run_dir / "config.yaml").exists()


def test_run_that_has_trained_nothing_may_become_another(
    train_config: Callable[..., TrainConfig], config: TrainConfig, inputs: Inputs, make_dataset: Callable[..., Path]
) -> None:
    key = start(config, inputs).run_key
    make_dataset(config.data.sources[0].path, DOCUMENTS[:-1], validation=DOCUMENTS)
    changed = train_config(seed=1)
    now = read_inputs(changed)
    assert start(changed, now, previous=config) == StartPoint(0, key, now.remarks)
    assert read_run(config.run_dir).dataset_digests == now.dataset_digests


def test_each_difference_has_its_line(train_config: Callable[..., TrainConfig], config: TrainConfig) -> None:
    model = {**config.model.model_dump(), "num_hidden_layers": 3, "intermediate_size": 65}
    lines = differences(config, train_config(model=model, seed=4))
    assert [key for key, _ in lines] == ["model.intermediate_size", "model.num_hidden_layers", "seed"]


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 500},
        {"schedule": {"name": "cosine"}},
        {"optimizer": {"learning_rate": 5e-4}},
        {"micro_batch_size": 8},
        {"checkpoint": {"every_steps": 7}},
        {"validation": {"every_steps": 7, "sequences": 1}},
        {"logging": {"every_steps": 1}},
        {"launcher": {"ranks_per_node": 2}},
        {"activation_checkpointing": {"mode": "every_n_layers", "every_n_layers": 2}},
        {"compile": "layers"},
        {"attn_implementation": "eager"},
        {"data": {"sources": [{"name": "chain", "path": "moved"}], "sequence_length": 64}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_how_the_run_is_run_may_change(
    train_config: Callable[..., TrainConfig], config: TrainConfig, change: dict[str, object]
) -> None:
    changed = train_config(**change)
    assert differences(config, changed) == []
    assert config_digest(changed) == config_digest(config)


def test_other_contents_under_the_same_name_are_refused(
    config: TrainConfig, inputs: Inputs, tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    start(config, inputs)
    begin(config)
    make_dataset(tmp_path / "data", DOCUMENTS[:-1], validation=DOCUMENTS)
    with pytest.raises(TrainingError, match="dataset chain has other contents"):
        start(config, read_inputs(config), previous=config)


def test_dataset_of_another_tokenizer_is_refused(
    config: TrainConfig, inputs: Inputs, tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    start(config, inputs)
    begin(config)
    make_dataset(tmp_path / "data", DOCUMENTS, validation=DOCUMENTS, vocab_size=250)
    with pytest.raises(TrainingError, match="made with another tokenizer"):
        start(config, read_inputs(config), previous=config)


def heavier(train_config: Callable[..., TrainConfig], config: TrainConfig, **changes: object) -> TrainConfig:
    source = {**config.data.sources[0].model_dump(), "weight": 2.0}
    return train_config(data={"sources": [source], "sequence_length": 64, "document_masking": False}, **changes)


def test_changed_data_is_refused_with_each_difference_and_the_way_out(
    train_config: Callable[..., TrainConfig],
    config: TrainConfig,
    inputs: Inputs,
    tmp_path: Path,
    make_dataset: Callable[..., Path],
) -> None:
    start(config, inputs)
    begin(config)
    make_dataset(tmp_path / "data", DOCUMENTS[:-1], validation=DOCUMENTS)
    changed = heavier(train_config, config)
    with pytest.raises(TrainingError) as caught:
        start(changed, read_inputs(changed), previous=config)
    lines = str(caught.value).splitlines()
    assert [line.split("=")[0].split(" has")[0] for line in lines] == [
        *("data.document_masking", "data.sources.0.weight", "dataset chain"),
    ]
    for line in lines:
        assert line.endswith(", or choose another run_dir, or start with --allow-change data if it is meant")


def test_changed_data_that_is_meant_is_told_and_remembered(
    train_config: Callable[..., TrainConfig],
    config: TrainConfig,
    inputs: Inputs,
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    add_checkpoint: Callable[..., Path],
) -> None:
    add_checkpoint(config, inputs, 50)
    make_dataset(tmp_path / "data", DOCUMENTS[:-1], validation=DOCUMENTS)
    changed = heavier(train_config, config, allow_change="data")
    now = replace(read_inputs(changed), remarks=())
    begun = start(changed, now, previous=config)
    assert begun.step == 50
    assert begun.remarks[:2] == (
        "changed data: data.document_masking=False but this run was started with True",
        "changed data: data.sources.0.weight=2.0 but this run was started with 1.0",
    )
    assert begun.remarks[2].startswith("changed data: dataset chain has other contents")
    assert begun.remarks[3].startswith("from step 51 on samples are those of the changed data: sequences that were")
    assert [(period.until_step, period.config) for period in begun.earlier] == [(50, config)]
    assert read_run(config.run_dir).dataset_digests == now.dataset_digests
    # the next start is the changed run's, without being allowed anything
    again = start(heavier(train_config, config), now, previous=changed, earlier=begun.earlier)
    assert again.remarks == ()
    assert again.earlier == begun.earlier


def test_what_is_not_data_is_refused_though_data_may_change(
    train_config: Callable[..., TrainConfig], config: TrainConfig, inputs: Inputs
) -> None:
    begin(config)
    with pytest.raises(TrainingError) as caught:
        start(heavier(train_config, config, allow_change="data", seed=1), inputs, previous=config)
    [line] = str(caught.value).splitlines()
    assert line.startswith("seed=1 but this run was started with 0")


def test_a_stage_that_is_still_to_come_changes_nothing_that_was_read(
    train_config: Callable[..., TrainConfig], config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    add_checkpoint(config, inputs, 50)
    stages = [{"until_tokens": 51 * 1024, "weights": {"chain": 1}}, {"weights": {"chain": 2}}]
    source = config.data.sources[0].model_dump()
    changed = train_config(data={"sources": [source], "sequence_length": 64, "stages": stages}, allow_change="data")
    begun = start(changed, replace(inputs, remarks=()), previous=config)
    assert begun.remarks[0] == (
        "changed data: data.stages.0=(until 52224 tokens: chain 1) but this run was started with nothing"
    )
    assert begun.remarks[-1] == "the first 50 steps have read what they would read by the changed data too"


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"run_dir=.*cannot be written: .*Not a directory; choose a folder"):
        create_run_folder(tmp_path / "file" / "run")


def test_folder_of_a_data_run_is_refused(config: TrainConfig, inputs: Inputs) -> None:
    write_run(
        config.run_dir, RunRecord(kind="data", run_key="k", name="web", created_ms=1, code_revision="c", versions={})
    )
    with pytest.raises(TrainingError, match=r"^run_dir=.* is that of the data run 'web'; choose another run_dir$"):
        start(config, inputs)


def test_data_that_rewinds_have_left_out_is_kept_and_must_be_known(
    config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    begin(config)
    add_checkpoint(config, inputs, 50)
    # by what this says the checkpoint of step 50, which has consumed 50 batches, would have consumed 53
    write_rewinds(config.run_dir, [Rewind(spike_step=43, checkpoint_step=40, skipped_steps=3)])
    with pytest.raises(TrainingError) as caught:
        start(config, inputs, previous=config)
    assert str(caught.value) == (
        f"checkpoint step-00000050 has consumed 800 samples but by rewinds.json it would be 848; put that run's "
        f"rewinds.json back into {config.run_dir}: it says which data was skipped"
    )
    later = Rewind(spike_step=53, checkpoint_step=50, skipped_steps=3)
    write_rewinds(config.run_dir, [later])
    assert start(config, inputs, previous=config).rewinds == (later,)


def test_rewinds_must_leave_the_run_enough_of_its_stages(
    config: TrainConfig, inputs: Inputs, add_checkpoint: Callable[..., Path]
) -> None:
    stages = [{"until_tokens": config.steps * config.batch_tokens, "weights": {"chain": 1.0}}]
    data = DataConfig.model_validate(config.data.model_dump() | {"stages": stages})
    staged = config.model_copy(update={"data": data})
    begin(staged)
    add_checkpoint(staged, inputs, 50)
    write_rewinds(config.run_dir, [Rewind(spike_step=53, checkpoint_step=50, skipped_steps=3)])
    with pytest.raises(TrainingError) as caught:
        start(staged, inputs, previous=staged)
    assert str(caught.value) == (
        f"steps={config.steps} would read 3 batches behind the end of data.stages, since by rewinds.json the run has "
        f"left out 3; train at most {config.steps - 3} steps, or leave until_tokens out of the last stage "
        "(--allow-change data)"
    )
