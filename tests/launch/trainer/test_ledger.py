"""The ledger against counting what each step reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.config import TrainConfig
from launch.data.run_samples import run_samples
from launch.trainer.data_history import Period
from launch.trainer.ledger import Ledger
from launch.trainer.rewinds import Rewind, batch_number

STAGES = [{"until_tokens": 3000, "weights": {"web": 9, "code": 1}}, {"weights": {"web": 1, "code": 2}}]


@pytest.fixture
def config_of(
    train_config: Callable[..., TrainConfig], tmp_path: Path, make_dataset: Callable[..., Path]
) -> Callable[..., TrainConfig]:
    """Sources `web`, `code` and `math`, 8 samples of 16 tokens a step."""
    for name in ("web", "code", "math"):
        make_dataset(tmp_path / name, [[1] * 99] * 20)

    def build(names: list[str], **data: Any) -> TrainConfig:
        sources = [{"name": name, "path": tmp_path / name} for name in names]
        return train_config(
            data={"sources": sources, "sequence_length": 16, **data}, batch_tokens=128, micro_batch_size=1
        )

    return build


def counted(config: TrainConfig, first_step: int, last_step: int) -> Counter[str]:
    samples = run_samples(config, "train")
    sources, _ = samples.locate(np.arange(first_step * 8, last_step * 8))
    return Counter({config.data.sources[int(s)].name: 16 * int((sources == s).sum()) for s in np.unique(sources)})


def test_tokens_are_those_that_the_steps_read(config_of: Callable[..., TrainConfig]) -> None:
    config = config_of(["web", "code"], stages=STAGES)
    ledger = Ledger(config, run_samples(config, "train"))
    for step in (0, 1, 22, 23, 24, 25, 70):
        tokens = ledger.tokens(step)
        assert +Counter(tokens) == counted(config, 0, step)
        assert sum(tokens.values()) == step * config.batch_tokens


def test_epochs_are_shares_of_the_dataset(config_of: Callable[..., TrainConfig]) -> None:
    config = config_of(["web"])
    # 2,000 tokens are 124 samples of 16 and the token after them
    metrics = Ledger(config, run_samples(config, "train")).metrics(31)
    assert metrics == {"tokens/web": 31 * 128, "epoch/web": 2.0}


def test_a_changed_run_has_read_what_each_config_said(config_of: Callable[..., TrainConfig]) -> None:
    first, second, third = config_of(["web", "code"]), config_of(["web", "code"], stages=STAGES), config_of(["math"])
    earlier = [Period(10, first, {}), Period(30, second, {})]
    tokens = Ledger(third, run_samples(third, "train"), earlier).tokens(50)
    assert tokens == counted(first, 0, 10) + counted(second, 10, 30) + counted(third, 30, 50)


def test_what_a_rewind_jumped_over_was_not_read(config_of: Callable[..., TrainConfig]) -> None:
    first, second = config_of(["web", "code"]), config_of(["web", "code"], stages=STAGES)
    rewinds = [Rewind(spike_step=8, checkpoint_step=5, skipped_steps=4), Rewind(25, 22, 3), Rewind(24, 22, 2)]
    ledger = Ledger(second, run_samples(second, "train"), [Period(10, first, {})])
    for step in (10, 22, 23, 40):
        expected: Counter[str] = Counter()
        for one in range(1, step + 1):
            batch = batch_number(one, rewinds)
            expected += counted(first if one <= 10 else second, batch - 1, batch)
        assert ledger.tokens(step, rewinds) == expected
        assert sum(expected.values()) == step * 128
