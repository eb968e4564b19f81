"""The loss over fixed data, without gradients: the validation loss, and the probe that an export must reproduce.

Every rank joins every forward pass, as a sharded model needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from checkpoint.events import VALIDATION_LOSS
from checkpoint.manifest import Probe
from launch.config import TrainConfig
from launch.data.loader import PackedSamples
from launch.data.packing import IGNORED_LABEL
from launch.data.token_bytes import read_token_bytes
from launch.data.validation_set import validation_batches
from launch.trainer.engine import Engine
from launch.trainer.inputs import probe_rows
from launch.trainer.ranks import RankEnvironment
from pipeline.shards.format import TOKENIZER_FILE


@dataclass(frozen=True)
class ValidationLosses:
    """Means over the tokens of a fixed set, in nats a token, and in bits a byte of text where the tokenizer tells how
    many bytes a token has (`launch/data/token_bytes.py`); for each source by name, and `loss` over all of them."""

    loss: float
    bits_per_byte: float | None
    loss_by_source: dict[str, float]
    bits_per_byte_by_source: dict[str, float]

    def metrics(self) -> dict[str, float]:
        """As they are told, by key."""
        told = {VALIDATION_LOSS: self.loss}
        if self.bits_per_byte is not None:
            told["validation/bits_per_byte"] = self.bits_per_byte
        told |= {f"validation_loss/{name}": loss for name, loss in self.loss_by_source.items()}
        return told | {f"validation_bits_per_byte/{name}": bits for name, bits in self.bits_per_byte_by_source.items()}


def validation_losses(
    engine: Engine, samples: PackedSamples, config: TrainConfig, ranks: RankEnvironment
) -> ValidationLosses:
    """Over the first `validation.sequences` samples; equal on all ranks.

    The sequences are the same at every world size; only the order of the sums differs.
    """
    batches = validation_batches(
        samples,
        sequences=config.validation.sequences,
        micro_batch_size=config.micro_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    token_bytes = read_token_bytes(samples.sources[0].path / TOKENIZER_FILE)
    lengths = None if token_bytes is None else torch.from_numpy(token_bytes.copy())
    # of each source: the losses, the tokens and their bytes
    sums = torch.zeros(len(samples.sources), 3, dtype=torch.float64, device=engine.device)
    with inference(engine):
        for source, batch in batches:
            document_ids = batch.document_ids.to(engine.device) if config.data.document_masking else None
            labels = batch.labels.to(engine.device)
            loss = engine.deepspeed(batch.input_ids.to(engine.device), document_ids=document_ids, labels=labels)
            counted = batch.labels[batch.labels != IGNORED_LABEL]
            # a node without the tokenizer makes the sum none at all, instead of too small
            text_bytes = math.nan if lengths is None else float(lengths[counted].sum())
            # the mean of no label at all is 0 by the model's contract, so a filling row adds nothing
            sums[source, 0] += loss.double() * len(counted)
            sums[source, 1:] += torch.tensor([len(counted), text_bytes], dtype=sums.dtype, device=sums.device)
    torch.distributed.all_reduce(sums)
    return _means(sums.cpu(), [source.name for source in samples.sources])


def _means(sums: torch.Tensor, names: Sequence[str]) -> ValidationLosses:
    total, tokens, text_bytes = sums.sum(dim=0).tolist()
    by_source = [(name, *row) for name, row in zip(names, sums.tolist(), strict=True)]
    return ValidationLosses(
        loss=total / tokens,
        bits_per_byte=total / math.log(2) / text_bytes if text_bytes > 0 else None,
        # a share that is small may have no sequence in the set
        loss_by_source={name: loss / count for name, loss, count, _ in by_source if count},
        bits_per_byte_by_source={name: loss / math.log(2) / size for name, loss, _, size in by_source if size > 0},
    )


def measure_probe(engine: Engine, samples: PackedSamples, config: TrainConfig) -> Probe:
    """Rows from the start of the validation split and their mean loss, each row one document (`Probe`).

    Every rank computes all of it: it is about a thousand tokens.
    """
    rows = probe_rows(config.data.sequence_length)
    token_ids = samples.read(np.arange(rows, dtype=np.int64)).input_ids
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    with inference(engine):
        for part in torch.split(token_ids, config.micro_batch_size):
            labels = torch.full_like(part, IGNORED_LABEL)
            labels[:, :-1] = part[:, 1:]
            loss = engine.deepspeed(part.to(engine.device), document_ids=None, labels=labels.to(engine.device))
            total += loss.double() * part.shape[0]
    return Probe(
        token_ids=tuple(tuple(row) for row in token_ids.tolist()), mean_negative_log_likelihood=float(total) / rows
    )


@contextmanager
def inference(engine: Engine) -> Iterator[None]:
    """The model in evaluation, without gradients; afterwards in training again."""
    engine.deepspeed.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        engine.deepspeed.train()
