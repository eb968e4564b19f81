"""Which samples of the run a rank reads in which step: arithmetic, for any number of ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def node_sample_indices(*, samples_per_step: int, micro_batch_size: int, ranks: range, world_size: int) -> Indices:
    """What ranks that follow each other read in step 0, in order of time: [accumulation, ranks, micro_batch_size]."""
    together = [
        rank_sample_indices(
            0, samples_per_step=samples_per_step, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size
        )
        for rank in ranks
    ]
    return np.stack(together, axis=1)


def rank_sample_indices(
    step: int, *, samples_per_step: int, micro_batch_size: int, rank: int, world_size: int
) -> Indices:
    """What one rank reads in a step: sample indices [accumulation, micro_batch_size].

    Micro-step m of rank r reads t·G + (m·world_size + r)·micro_batch_size + [0, micro_batch_size), so that the ranks
    together read the step's samples in order. The step divides: `TrainConfig.accumulation_steps` sees to that.
    """
    together = micro_batch_size * world_size
    assert samples_per_step % together == 0, f"{samples_per_step} samples in parts of {together}"
    in_step = np.arange(samples_per_step, dtype=np.int64).reshape(-1, world_size, micro_batch_size)
    return step * samples_per_step + in_step[:, rank, :]
