"""How many tokens of each source a run has read, by arithmetic: nothing is counted, so nothing can be counted twice.

A run whose data was changed on the way (`data_history.py`) has read what each of its configs said while it was in
force. Epochs are those of the order in force: how often it has gone through each source.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launch.config import TrainConfig
from launch.data.loader import PackedSamples
from launch.data.run_samples import stages_of
from launch.data.schedule import Schedule
from launch.trainer.data_history import Period
from launch.trainer.rewinds import Rewind, batch_number, batches_between


class Ledger:
    """Of a run whose training samples are `train`, after `earlier` periods of other data.

    `rewinds` are those of the run so far: what they have jumped over was not read, and what was read before a run went
    back to an earlier checkpoint is not part of what it is now.
    """

    def __init__(self, config: TrainConfig, train: PackedSamples, earlier: Sequence[Period] = ()) -> None:
        self._config, self._train = config, train
        self._earlier = [(period, Schedule(stages_of(period.config, "train"))) for period in earlier]

    def tokens(self, step: int, rewinds: Sequence[Rewind] = ()) -> dict[str, int]:
        """Tokens of each source in the first steps of the run, by its name."""
        total = dict.fromkeys((source.name for source in self._train.sources), 0)
        first_step = 0
        periods = [(period.config, schedule, period.until_step) for period, schedule in self._earlier]
        for config, schedule, until_step in (*periods, (self._config, self._train.schedule, step)):
            for name, tokens in _tokens(config, schedule, batches_between(first_step, until_step, rewinds)).items():
                total[name] = total.get(name, 0) + tokens
            first_step = until_step
        return total

    def metrics(self, step: int, rewinds: Sequence[Rewind] = ()) -> dict[str, float]:
        """`tokens/NAME` and `epoch/NAME`, where 1 is once through the source, jumped over or not."""
        samples = batch_number(step, rewinds) * self._config.samples_per_step
        counts = self._train.schedule.counts(samples).tolist()
        tokens: dict[str, float] = {f"tokens/{name}": number for name, number in self.tokens(step, rewinds).items()}
        epochs = {
            f"epoch/{source.name}": count / size
            for source, count, size in zip(self._train.sources, counts, self._train.sizes, strict=True)
        }
        return tokens | epochs


def _tokens(config: TrainConfig, schedule: Schedule, batches: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Tokens of each source in stretches of batches."""
    size, length = config.samples_per_step, config.data.sequence_length
    samples = sum(schedule.counts(stop * size) - schedule.counts(start * size) for start, stop in batches)
    counts = np.zeros(len(config.data.sources), dtype=np.int64) + samples
    names = [source.name for source in config.data.sources]
    return {name: count * length for name, count in zip(names, counts.tolist(), strict=True)}
