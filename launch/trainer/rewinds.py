"""Rewinds of a run: which data it has jumped over, so that every later start jumps over it too. No torch.

The order of samples stays the arithmetic of `launch/data/loader.py`. A rewind only says that from some step on, the
steps take later batches of that order than their own number's: `batch_number` is the whole of it.

    RUN/rewinds.json   all rewinds of the run, oldest first; replaced atomically, before the run goes back
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from checkpoint.manifest import write_durably
from launch.config import TrainConfig, TrainingError

REWINDS_FILE = "rewinds.json"


@dataclass(frozen=True)
class Rewind:
    """Back from `spike_step` to the checkpoint of `checkpoint_step`; steps after that skip `skipped_steps` batches."""

    spike_step: int
    checkpoint_step: int
    skipped_steps: int


def batch_number(step: int, rewinds: Iterable[Rewind]) -> int:
    """Which global batch of the data order step `step` trains on, both counted from 1; without rewinds, `step`.

    Batch b holds samples [(b-1)·G, b·G). After step `step`, b·G samples of the order are consumed or skipped.
    """
    return step + sum(rewind.skipped_steps for rewind in rewinds if rewind.checkpoint_step < step)


def next_rewind(
    config: TrainConfig, step: int, *, last_checkpoint: int | None, rewinds: Sequence[Rewind]
) -> Rewind | str:
    """What a spike at a step asks for by `guards.rewind`, or why it cannot be had."""
    settings = config.guards.rewind
    assert settings is not None
    if len(rewinds) >= settings.max_rewinds:
        return f"guards.rewind.max_rewinds={settings.max_rewinds} were made"
    if last_checkpoint is None:
        return "there is no checkpoint to go back to"
    rewind = Rewind(step, last_checkpoint, step - last_checkpoint + settings.margin_steps)
    if lacking := batches_lacking(config, (*rewinds, rewind)):
        plural = "es" if lacking > 1 else ""
        return f"data.stages would end {lacking} batch{plural} before the run; leave until_tokens out of the last one"
    return rewind


def batches_lacking(config: TrainConfig, rewinds: Iterable[Rewind]) -> int:
    """How many global batches a run would read behind the end of its last stage, for what it has jumped over."""
    end = config.data.stage_ends()[-1] if config.data.stages else None
    last = batch_number(config.steps, rewinds)
    return 0 if end is None else max(0, last - end // config.samples_per_step)


def last_step_in_order(step: int, steps: int, rewinds: Iterable[Rewind]) -> int:
    """Up to which step the batches after `step` follow one another: `steps`, or where a rewind's jump lies ahead."""
    return min((rewind.checkpoint_step for rewind in rewinds if rewind.checkpoint_step > step), default=steps)


def batches_between(first_step: int, last_step: int, rewinds: Iterable[Rewind]) -> list[tuple[int, int]]:
    """The batches [start, stop), counted from 0, that the steps behind `first_step`, up to and with `last_step`, train
    on: a stretch more for each rewind that lies between."""
    rewinds = tuple(rewinds)
    inside = {rewind.checkpoint_step for rewind in rewinds if first_step < rewind.checkpoint_step < last_step}
    return [
        (batch_number(before + 1, rewinds) - 1, batch_number(after, rewinds))
        for before, after in pairwise(sorted({first_step, last_step, *inside}))
    ]


def read_rewinds(run_dir: Path) -> tuple[Rewind, ...]:
    """Raises TrainingError for a file that is not what `write_rewinds` wrote."""
    file = run_dir / REWINDS_FILE
    try:
        return tuple(Rewind(**fields) for fields in json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"{file} is damaged ({error}); put it back as it was: it says which data the run has skipped"
        ) from None


def write_rewinds(run_dir: Path, rewinds: Iterable[Rewind]) -> None:
    write_durably(run_dir / REWINDS_FILE, (json.dumps([asdict(rewind) for rewind in rewinds]) + "\n").encode())
