"""Which batch a step trains on after rewinds, worked by hand, and the file that keeps it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.config import TrainConfig, TrainingError
from launch.trainer.rewinds import (
    REWINDS_FILE,
    Rewind,
    batch_number,
    batches_lacking,
    last_step_in_order,
    next_rewind,
    read_rewinds,
    write_rewinds,
)

# a spike at step 23, back to 20: three batches are left out; again at 22, which read batch 25: two more; later at 41
REWINDS = (Rewind(23, 20, 3), Rewind(22, 20, 2), Rewind(41, 40, 1))


def test_without_rewinds_a_step_trains_on_its_own_batch() -> None:
    assert [batch_number(step, ()) for step in (0, 1, 100)] == [0, 1, 100]


@pytest.mark.parametrize(("step", "batch"), [(1, 1), (20, 20), (21, 26), (22, 27), (40, 45), (41, 47), (100, 106)])
def test_steps_after_a_checkpoint_that_was_gone_back_to_skip(step: int, batch: int) -> None:
    assert batch_number(step, REWINDS) == batch


def test_first_batch_after_a_rewind_is_the_one_after_the_spikes() -> None:
    spike_batch = batch_number(23, ())
    assert batch_number(21, REWINDS[:1]) == spike_batch + 1


def test_batches_follow_one_another_up_to_a_rewind_that_lies_ahead() -> None:
    # a start from step 10, whose later checkpoints are damaged
    assert last_step_in_order(10, 100, REWINDS) == 20
    assert last_step_in_order(20, 100, REWINDS) == 40
    assert last_step_in_order(40, 100, REWINDS) == 100
    assert last_step_in_order(0, 100, ()) == 100


def test_file_gives_back_what_was_written(tmp_path: Path) -> None:
    assert read_rewinds(tmp_path) == ()
    write_rewinds(tmp_path, REWINDS)
    assert read_rewinds(tmp_path) == REWINDS


@pytest.mark.parametrize("content", ["", "[{", '{"a": 1}', '[{"spike_step": 3}]'])
def test_damaged_file_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / REWINDS_FILE).write_text(content)
    with pytest.raises(TrainingError, match=r"rewinds\.json is damaged \(.*\); put it back as it was"):
        read_rewinds(tmp_path)


@pytest.fixture
def staged(train_config: Callable[..., TrainConfig]) -> TrainConfig:
    """100 steps of 16 samples of 64 tokens, from stages that hold 103 batches and a half."""
    path = train_config().data.sources[0].path
    stages = [{"until_tokens": 50_000, "weights": {"chain": 1}}, {"until_tokens": 105_984, "weights": {"chain": 1}}]
    data = {"sources": [{"name": "chain", "path": path}], "sequence_length": 64}
    return train_config(guards={"rewind": {"max_rewinds": 2, "margin_steps": 1}}, data=data | {"stages": stages})


def test_rewind_skips_what_lies_between_and_the_margin(train_config: Callable[..., TrainConfig]) -> None:
    config = train_config(guards={"rewind": {"margin_steps": 2}})
    assert next_rewind(config, 23, last_checkpoint=20, rewinds=()) == Rewind(23, 20, 5)


def test_rewind_reads_nothing_behind_the_last_stage(staged: TrainConfig) -> None:
    # a step and the margin: batches 101 and 102 instead of 99 and 100
    assert next_rewind(staged, 99, last_checkpoint=98, rewinds=()) == Rewind(99, 98, 2)
    # three: up to batch 103, the last whole one
    assert next_rewind(staged, 98, last_checkpoint=96, rewinds=()) == Rewind(98, 96, 3)
    assert next_rewind(staged, 98, last_checkpoint=95, rewinds=()) == (
        "data.stages would end 1 batch before the run; leave until_tokens out of the last one"
    )
    assert batches_lacking(staged, [Rewind(98, 96, 3), Rewind(99, 98, 2)]) == 2
    assert batches_lacking(staged, ()) == 0


def test_why_there_is_no_rewind_is_said(staged: TrainConfig) -> None:
    assert next_rewind(staged, 5, last_checkpoint=None, rewinds=()) == "there is no checkpoint to go back to"
    assert next_rewind(staged, 50, last_checkpoint=49, rewinds=REWINDS[:2]) == "guards.rewind.max_rewinds=2 were made"
