"""What a run reads, found unfit before anything heavy starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from launch.config import TrainConfig, TrainingError
from launch.trainer.inputs import check_init_from, probe_rows, read_inputs
from model.hf_config import huggingface_config
from pipeline.shards.format import DatasetError, read_manifest

MakeDataset = Callable[..., Path]
LONG: Sequence[Sequence[int]] = [[1 + number % 200] * 99 for number in range(40)]


@pytest.fixture
def dataset(tmp_path: Path, make_dataset: MakeDataset) -> Path:
    return make_dataset(tmp_path / "data", LONG, validation=LONG[:20])


def problems(config: TrainConfig) -> list[str]:
    with pytest.raises(TrainingError) as caught:
        read_inputs(config)
    return str(caught.value).splitlines()


def test_inputs_are_the_identity_of_the_data(train_config: Callable[..., TrainConfig], dataset: Path) -> None:
    inputs = read_inputs(train_config())
    manifest = read_manifest(dataset)
    assert inputs.dataset_digests == {"chain": manifest.digest()}
    assert inputs.tokenizer == manifest.tokenizer
    assert inputs.tokenizer_file == dataset / "tokenizer.json"


def test_another_dataset_on_another_node_is_named(train_config: Callable[..., TrainConfig], dataset: Path) -> None:
    inputs = read_inputs(train_config())
    assert inputs.differences(inputs.dataset_digests) == []
    [line] = inputs.differences({"chain": "sha256:0123456789abcdef"})
    assert line.startswith("dataset chain has other contents here (sha256:")
    assert "than on rank 0 (sha256:0123456789ab…); give every node the same dataset" in line


def test_missing_dataset_says_what_to_run(train_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"does not exist; make it with `smollm2 pipeline run`"):
        read_inputs(train_config())


def test_dataset_of_another_tokenizer_than_the_run_names(
    train_config: Callable[..., TrainConfig], dataset: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    source = {"name": "chain", "path": dataset}
    [line] = problems(train_config(data={"sources": [source], "sequence_length": 64, "tokenizer": other}))
    assert line.startswith("dataset chain was made with another tokenizer (sha256:")
    assert f"than data.tokenizer={other}" in line


def test_the_tokenizer_that_the_run_names_may_be_a_copy(
    train_config: Callable[..., TrainConfig], dataset: Path, tmp_path: Path
) -> None:
    copied = shutil.copy(dataset / "tokenizer.json", tmp_path / "copy.json")
    source = {"name": "chain", "path": dataset}
    read_inputs(train_config(data={"sources": [source], "sequence_length": 64, "tokenizer": copied}))


def test_two_sources_of_different_tokenizers(
    train_config: Callable[..., TrainConfig], dataset: Path, tmp_path: Path, make_dataset: MakeDataset
) -> None:
    second = make_dataset(tmp_path / "second", LONG, validation=LONG, vocab_size=250)
    sources = [{"name": "chain", "path": dataset}, {"name": "second", "path": second}]
    [line] = problems(train_config(data={"sources": sources, "sequence_length": 64}))
    assert line.startswith("dataset second was made with another tokenizer")
    assert "than that of chain" in line


def small_model(config: TrainConfig, **changes: Any) -> dict[str, Any]:
    return {**config.model.model_dump(), **changes}


def test_model_that_does_not_know_the_tokenizer(train_config: Callable[..., TrainConfig], dataset: Path) -> None:
    config = train_config()
    lines = problems(train_config(model=small_model(config, vocab_size=200, eos_token_id=7)))
    assert lines == [
        "model.vocab_size=200 is smaller than the tokenizer's 256; use model.vocab_size=256 or the tokenizer that "
        "belongs to the model",
        "model.eos_token_id=7 but the datasets' documents end in id 0; set model.eos_token_id=0",
    ]


def test_too_little_data_for_one_sequence(
    train_config: Callable[..., TrainConfig], tmp_path: Path, make_dataset: MakeDataset
) -> None:
    # 64 tokens make no sequence of 64 with the token after it
    make_dataset(tmp_path / "data", [[1] * 63], validation=LONG)
    [line] = problems(train_config())
    assert "dataset chain has 64 training tokens, fewer than one sequence of 64" in line


def test_validation_split_too_small_for_a_proof(
    train_config: Callable[..., TrainConfig], tmp_path: Path, make_dataset: MakeDataset
) -> None:
    make_dataset(tmp_path / "data", LONG, validation=LONG[:10])
    # 1,000 tokens are 15 sequences of 64 and the token after them; 1,024 tokens need 16
    [line] = problems(train_config())
    assert "the validation splits hold 15 sequences of 64 tokens until chain would repeat, wanted at least 16" in line
    assert line.endswith(
        "; raise validation_fraction in the dataset's pipeline config and make it anew (remove its folder)"
    )


@pytest.mark.parametrize(("vocab_size", "told"), [(256 + 127, False), (256 + 128, True)])
def test_tokenizer_with_fewer_tokens_than_the_model_has_ids_is_said(
    train_config: Callable[..., TrainConfig], dataset: Path, vocab_size: int, told: bool
) -> None:
    """A vocabulary that is padded to a multiple of 128 is not."""
    config = train_config(steps=1, schedule={})
    remarks = read_inputs(train_config(steps=1, schedule={}, model=small_model(config, vocab_size=vocab_size))).remarks
    line = (
        "the datasets' tokenizer has 256 tokens and model.vocab_size=384: 128 ids have no token and are never read; "
        "is it the tokenizer that belongs to the model?"
    )
    assert remarks == ((line,) if told else ())


def mixed(train_config: Callable[..., TrainConfig], first: Path, second: Path, **changes: Any) -> TrainConfig:
    sources = [{"name": "chain", "path": first, "weight": 3}, {"name": "second", "path": second}]
    return train_config(data={"sources": sources, "sequence_length": 64}, **changes)


def test_every_source_needs_a_validation_split(
    train_config: Callable[..., TrainConfig], dataset: Path, tmp_path: Path, make_dataset: MakeDataset
) -> None:
    # the other has more than enough for the proof of an export
    second = make_dataset(tmp_path / "second", LONG)
    assert problems(mixed(train_config, dataset, second)) == [
        "dataset second has 0 validation tokens, fewer than one sequence of 64 and the token after it; "
        "raise validation_fraction in the dataset's pipeline config and make it anew (remove its folder)"
    ]


def test_validation_set_that_a_small_source_cuts_is_said(
    train_config: Callable[..., TrainConfig], dataset: Path, tmp_path: Path, make_dataset: MakeDataset
) -> None:
    # 400 tokens are 6 sequences; every fourth is second's, from number 3 on: its seventh would be number 27
    second = make_dataset(tmp_path / "second", LONG, validation=LONG[:4])
    short = {"every_steps": 50, "sequences": 1024}
    assert read_inputs(mixed(train_config, dataset, second, steps=1, schedule={}, validation=short)).remarks == (
        "validation reads 27 sequences, not validation.sequences=1,024: second has no more; "
        "for more, raise validation_fraction in its pipeline config",
    )
    enough = {"every_steps": 50, "sequences": 27}
    assert read_inputs(mixed(train_config, dataset, second, steps=1, schedule={}, validation=enough)).remarks == ()


def test_training_data_that_repeats_is_said(train_config: Callable[..., TrainConfig], dataset: Path) -> None:
    # 4,000 tokens are 62 sequences; the global batch is 16, so that step 4 reads numbers 48 to 63
    assert read_inputs(train_config(steps=3, schedule={})).remarks == ()
    assert read_inputs(train_config(steps=4, schedule={})).remarks == (
        "training data repeats within steps=4: chain begins epoch 2 at step 4",
    )


def test_a_source_that_is_read_often_is_said(train_config: Callable[..., TrainConfig], dataset: Path) -> None:
    # 62 sequences, 16 a step: 4 epochs are 15.5 steps
    lines = read_inputs(train_config(steps=15, schedule={})).remarks
    assert len(lines) == 1
    _, line = read_inputs(train_config(steps=20, schedule={})).remarks
    assert line == (
        "chain is read 5.2 times within steps=20: above 4 epochs repeated text teaches little (arXiv:2305.16264); "
        "give it less weight, or more data"
    )


def test_more_epochs_than_allowed_are_refused(train_config: Callable[..., TrainConfig], dataset: Path) -> None:
    source = {"name": "chain", "path": dataset, "max_epochs": 1.5}
    data = {"sources": [source], "sequence_length": 64}
    read_inputs(train_config(data=data, steps=5, schedule={}))
    assert problems(train_config(data=data, steps=6, schedule={})) == [
        "dataset chain would be read 1.55 times within steps=6, more than its max_epochs=1.5; give it less weight or "
        "more data, or raise max_epochs"
    ]


def test_epochs_are_counted_over_the_stages(
    train_config: Callable[..., TrainConfig], dataset: Path, tmp_path: Path, make_dataset: MakeDataset
) -> None:
    second = make_dataset(tmp_path / "second", LONG, validation=LONG)
    sources = [{"name": "chain", "path": dataset, "max_epochs": 1}, {"name": "second", "path": second}]
    stages = [
        {"until_tokens": 40 * 64, "weights": {"chain": 1, "second": 0}},
        {"until_tokens": 160 * 64, "weights": {"chain": 0, "second": 1}},
        {"weights": {"chain": 1, "second": 1}},
    ]
    data = {"sources": sources, "sequence_length": 64, "stages": stages}
    # 40 in the first stage, none in the second, and 22 more of the 44 that follow
    repeats = "training data repeats within steps=12: second begins epoch 2 at step 7"
    assert read_inputs(train_config(data=data, steps=12, schedule={})).remarks == (repeats,)
    [line] = problems(train_config(data=data, steps=13, schedule={}))
    assert line.startswith("dataset chain would be read 1.03 times within steps=13")


def test_share_that_rounding_changes_by_more_than_a_hundredth_is_said(
    train_config: Callable[..., TrainConfig], dataset: Path, tmp_path: Path, make_dataset: MakeDataset
) -> None:
    second = make_dataset(tmp_path / "second", LONG, validation=LONG)
    sources = [{"name": "chain", "path": dataset, "weight": 999_999}, {"name": "second", "path": second}]
    inputs = read_inputs(train_config(data={"sources": sources, "sequence_length": 64}, steps=1, schedule={}))
    assert inputs.remarks == ("second is 0.002% of the mixture and not 0.000%: shares are whole 1/65,536",)


def test_start_from_a_folder_that_is_no_model(train_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        check_init_from(train_config(init_from=tmp_path))
    assert str(caught.value) == f"init_from={tmp_path} has no config.json; name a Hugging Face model directory"


def test_start_from_a_model_of_a_hub_or_from_a_file_is_told_what_is_wanted(
    train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as caught:
        check_init_from(train_config(init_from="HuggingFaceTB/SmolLM2-135M"))
    assert str(caught.value) == (
        "init_from=HuggingFaceTB/SmolLM2-135M is not on this machine, and nothing is fetched from a hub; name a "
        "Hugging Face model directory"
    )
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(TrainingError, match=r"model\.safetensors is a file; name a Hugging"):
        check_init_from(train_config(init_from=tmp_path / "model.safetensors"))


def test_start_from_another_model_is_refused_before_its_weights_are_read(
    train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = train_config(init_from=tmp_path)
    other = config.model.model_copy(update={"num_hidden_layers": 3, "vocab_size": 512})
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(other, dtype="bfloat16")))
    with pytest.raises(TrainingError) as caught:
        check_init_from(config)
    assert str(caught.value).splitlines() == [
        f"model.vocab_size=256 but init_from={tmp_path} has 512; set model.vocab_size to it",
        f"model.num_hidden_layers=2 but init_from={tmp_path} has 3; set model.num_hidden_layers to it",
    ]


def test_start_from_a_model_of_another_kind_is_one_line(
    train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "architectures": ["Mamba"]')
    with pytest.raises(TrainingError, match=r"config.json: not JSON"):
        check_init_from(train_config(init_from=tmp_path))


@pytest.mark.parametrize(("sequence_length", "rows"), [(64, 16), (512, 2), (1000, 2), (2048, 1)])
def test_probe_has_at_least_1024_tokens(sequence_length: int, rows: int) -> None:
    assert probe_rows(sequence_length) == rows
