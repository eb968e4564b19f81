"""The loss over fixed data, without gradients: the validation loss, and the probe that an export must reproduce.

Every rank joins every forward pass, as a sharded model needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from checkpoint.manifest import Probe
from launch.config import TrainConfig
from launch.data.loader import PackedSamples, validation_batches
from launch.data.packing import IGNORED_LABEL
from launch.trainer.engine import Engine
from launch.trainer.inputs import probe_rows
from launch.trainer.ranks import RankEnvironment


def validation_loss(engine: Engine, samples: PackedSamples, config: TrainConfig, ranks: RankEnvironment) -> float:
    """Mean over the tokens of the first `validation.sequences` samples, in nats; equal on all ranks.

    The sequences are the same at every world size; only the order of the sum differs.
    """
    batches = validation_batches(
        samples,
        sequences=config.validation.sequences,
        micro_batch_size=config.micro_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
    with _inference(engine):
        for batch in batches:
            document_ids = batch.document_ids.to(engine.device) if config.data.document_masking else None
            labels = batch.labels.to(engine.device)
            loss = engine.deepspeed(batch.input_ids.to(engine.device), document_ids=document_ids, labels=labels)
            counted = (labels != IGNORED_LABEL).sum()
            # the mean of no label at all is 0 by the model's contract, so a filling row adds nothing
            sums += torch.stack([loss.double() * counted, counted.double()])
    torch.distributed.all_reduce(sums)
    total, count = sums.tolist()
    return float(total / count)


def measure_probe(engine: Engine, samples: PackedSamples, config: TrainConfig) -> Probe:
    """Rows from the start of the validation split and their mean loss, each row one document (`Probe`).

    Every rank computes all of it: it is about a thousand tokens.
    """
    rows = probe_rows(config.data.sequence_length)
    token_ids = samples.read(np.arange(rows, dtype=np.int64)).input_ids
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    with _inference(engine):
        for part in torch.split(token_ids, config.micro_batch_size):
            labels = torch.full_like(part, IGNORED_LABEL)
            labels[:, :-1] = part[:, 1:]
            loss = engine.deepspeed(part.to(engine.device), document_ids=None, labels=labels.to(engine.device))
            total += loss.double() * part.shape[0]
    return Probe(
        token_ids=tuple(tuple(row) for row in token_ids.tolist()), mean_negative_log_likelihood=float(total) / rows
    )


@contextmanager
def _inference(engine: Engine) -> Iterator[None]:
    engine.deepspeed.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        engine.deepspeed.train()
