"""One rank of one contender of `training.py`: builds its model, then makes a training step for each line it is sent.

    python benchmarks/training_contenders.py NAME SETTINGS.json RESULT_FD      (RANK and WORLD_SIZE in the environment)

All contenders have the same weights, tokens, AdamW and clipping. A step is forward, backward, and update of one
sequence batch a rank. The answer is one JSON line: seconds, loss, and the peak resident memory so far.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from torch import Tensor, nn

from launch.config import TrainConfig
from launch.trainer.deepspeed_config import deepspeed_config
from launch.trainer.engine import DTYPES, build_engine
from launch.trainer.ranks import read_environment
from model.activation_checkpointing import ActivationCheckpointing
from model.documents import Documents
from model.hf_config import huggingface_config
from model.init import fill_parameter_, initialize
from model.parameters import parameter_shapes, to_huggingface_name
from model.transformer import SmolLM2

MEAN_DOCUMENT_TOKENS = 400


@dataclass(frozen=True)
class Batch:
    """Tensors [micro_batch, sequence] of one rank; `labels` are already shifted."""

    input_ids: Tensor
    labels: Tensor
    document_ids: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.labels.to(device), self.document_ids.to(device))


Step = Callable[[Batch], Tensor]


def ours(config: TrainConfig, *, packed: bool = False) -> Step:
    """Our trainer's engine."""
    engine = build_engine(config, read_environment(os.environ), fill_weights=True, say=lambda line: None).deepspeed
    return _deepspeed_step(
        engine,
        lambda batch: engine(batch.input_ids, document_ids=batch.document_ids if packed else None, labels=batch.labels),
    )


def transformers_deepspeed(config: TrainConfig, *, packed: bool = False) -> Step:
    """What most people run: LlamaForCausalLM under the same engine."""
    model = _llama(config)
    optimizer = _adamw(model, config)
    settings = deepspeed_config(config, world_size=int(os.environ["WORLD_SIZE"]))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    return _deepspeed_step(engine, lambda batch: _llama_loss(engine, batch, packed=packed))


def ours_alone(config: TrainConfig, *, packed: bool = False) -> Step:
    """One process without an engine."""
    model = _whole_model(config)
    return _plain_step(
        model,
        config,
        lambda batch: model(batch.input_ids, document_ids=batch.document_ids if packed else None, labels=batch.labels),
    )


def transformers_alone(config: TrainConfig, *, packed: bool = False) -> Step:
    model = _llama(config)
    return _plain_step(model, config, lambda batch: _llama_loss(model, batch, packed=packed))


def ours_fsdp2(config: TrainConfig) -> Step:
    """The same model under torch's own sharding, layer by layer."""
    from torch.distributed.fsdp import fully_shard

    model = _whole_model(config)
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    return _plain_step(model, config, lambda batch: model(batch.input_ids, labels=batch.labels))


CONTENDERS: dict[str, tuple[int, Callable[[TrainConfig], Step]]] = {
    "ours, ZeRO-3, 2 ranks": (2, ours),
    "ours, documents, selective/2, ZeRO-3, 2 ranks": (2, lambda config: ours(_selective(config), packed=True)),
    "transformers, documents, ZeRO-3, 2 ranks": (2, lambda config: transformers_deepspeed(config, packed=True)),
    "ours, FSDP2, 2 ranks": (2, ours_fsdp2),
    "ours, one process": (1, ours_alone),
    "transformers, one process": (1, transformers_alone),
    "ours, documents, one process": (1, lambda config: ours_alone(config, packed=True)),
    "transformers, documents, one process": (1, lambda config: transformers_alone(config, packed=True)),
    "ours, ZeRO-3, 1 rank": (1, ours),
    "ours, documents, ZeRO-3, 1 rank": (1, lambda config: ours(config, packed=True)),
    "transformers, ZeRO-3, 1 rank": (1, transformers_deepspeed),
    "transformers, documents, ZeRO-3, 1 rank": (1, lambda config: transformers_deepspeed(config, packed=True)),
}


def _selective(config: TrainConfig) -> TrainConfig:
    """Each second layer full, the others selective."""
    mode = ActivationCheckpointing(mode="selective", every_n_layers=2)
    return config.model_copy(update={"activation_checkpointing": mode})


def random_batch(config: TrainConfig, *, seed: int) -> Batch:
    """Random tokens in documents of MEAN_DOCUMENT_TOKENS on average, lengths exponentially distributed."""
    random = np.random.default_rng(seed)
    shape = (config.micro_batch_size, config.data.sequence_length + 1)
    tokens = torch.from_numpy(random.integers(0, config.model.vocab_size, size=shape))
    document_ids = torch.from_numpy((random.random(shape) < 1 / MEAN_DOCUMENT_TOKENS).cumsum(axis=1))
    return Batch(tokens[:, :-1], tokens[:, 1:].contiguous(), document_ids[:, :-1])


def _deepspeed_step(engine: Any, loss_of: Callable[[Batch], Tensor]) -> Step:
    def step(batch: Batch) -> Tensor:
        loss = loss_of(batch)
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return step


def _plain_step(model: nn.Module, config: TrainConfig, loss_of: Callable[[Batch], Tensor]) -> Step:
    optimizer = _adamw(model, config)

    def step(batch: Batch) -> Tensor:
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _adamw(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    settings = config.optimizer
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _whole_model(config: TrainConfig) -> SmolLM2:
    model = SmolLM2(
        config.model,
        attn_implementation=config.attn_implementation,
        activation_checkpointing=config.activation_checkpointing,
        compile_backend="inductor" if config.compile == "layers" else None,
        loss_implementation=config.loss_implementation,
    )
    initialize(model, seed=config.seed)
    return model.to(DTYPES[config.precision])


def _llama(config: TrainConfig) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = huggingface_config(config.model, dtype="float32")
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "attn_implementation": "sdpa", "use_cache": False}))
    theirs = dict(model.named_parameters())
    for name in parameter_shapes(config.model):
        fill_parameter_(name, theirs[to_huggingface_name(name)], config=config.model, seed=config.seed)
    if config.activation_checkpointing.mode != "none":
        model.gradient_checkpointing_enable()
    return model.to(DTYPES[config.precision]).train()


def _llama_loss(model: Any, batch: Batch, *, packed: bool) -> Tensor:
    # shift_labels: already shifted, as ours are; positions that restart are how transformers knows documents
    positions = Documents(batch.input_ids, batch.document_ids).position_ids if packed else None
    output = model(input_ids=batch.input_ids, position_ids=positions, labels=batch.labels, shift_labels=batch.labels)
    loss: Tensor = output.loss
    return loss


def main() -> None:
    name, settings, result_fd = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    ranks, build = CONTENDERS[name]
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    config = TrainConfig.model_validate_json(settings.read_text())
    step = build(config)
    with os.fdopen(result_fd, "w") as results:
        print(json.dumps({}), file=results, flush=True)
        for line in sys.stdin:
            seed = int(line)
            batch = random_batch(config, seed=seed * ranks + int(os.environ["RANK"]))
            started_s = time.perf_counter()
            loss = float(step(batch))
            seconds = time.perf_counter() - started_s
            peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps({"seconds": seconds, "loss": loss, "peak_bytes": peak_bytes}), file=results, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
