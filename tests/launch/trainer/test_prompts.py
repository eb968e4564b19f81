"""Prompts that cannot be continued, one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.config import TrainConfig, TrainingError
from launch.trainer.inputs import read_inputs

LONG = [[1 + number % 200] * 99 for number in range(40)]


@pytest.fixture
def config_of(
    train_config: Callable[..., TrainConfig], tmp_path: Path, make_dataset: Callable[..., Path]
) -> Callable[..., TrainConfig]:
    make_dataset(tmp_path / "data", LONG, validation=LONG)

    def build(prompts: list[str]) -> TrainConfig:
        samples = {"prompts": prompts, "max_new_tokens": 60}
        return train_config(validation={"every_steps": 50, "sequences": 8, "samples": samples})

    return build


def problems(config: TrainConfig) -> list[str]:
    with pytest.raises(TrainingError) as caught:
        read_inputs(config)
    return str(caught.value).splitlines()


def test_a_prompt_that_leaves_no_room_is_named(config_of: Callable[..., TrainConfig]) -> None:
    read_inputs(config_of(["t1 t2 t3 t4", ""]))
    assert problems(config_of(["t1", "t1 t2 t3 t4 t5"])) == [
        "validation.samples.prompts.1 has 5 tokens, which with max_new_tokens=60 exceed "
        "model.max_position_embeddings=64; shorten one of them"
    ]


def test_prompts_without_a_tokenizer_are_refused(config_of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    (tmp_path / "data" / "tokenizer.json").unlink()
    assert problems(config_of(["t1"])) == [
        "validation.samples needs a tokenizer.json beside the first source's manifest; copy it there"
    ]


def test_a_file_that_is_no_tokenizer_is_named(config_of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    file = tmp_path / "data" / "tokenizer.json"
    file.write_text("{}")
    [line] = problems(config_of(["t1"]))
    assert line.startswith(f"validation.samples: {file} is not a tokenizer (")
    assert line.endswith("); copy that of the datasets there")
