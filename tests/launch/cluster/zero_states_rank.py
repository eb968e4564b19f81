"""One rank of a real DeepSpeed engine: what its tensors take at the worst moment of a step, and what it sends.

    python zero_states_rank.py CONFIG STAGE OUT key=value …

The engine is made here from the trainer's settings with another stage in them, for stages too that it refuses.

The second step counts, when the moments are there. Bytes are those of every storage that Python or a `.grad` can see,
at three moments: after the first micro-batch's backward, after the last's, and inside the optimizer's step. Traffic is
what torch.distributed is called with, as the bytes that a ring sends from one rank.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import set_z3_leaf_modules

from configs.load import load
from launch.config import TrainConfig
from launch.trainer.console import open_console
from launch.trainer.deepspeed_config import deepspeed_config
from launch.trainer.engine import DTYPES
from launch.trainer.optimizer import build_optimizer
from launch.trainer.ranks import RankEnvironment, read_environment
from model.init import fill_parameter_
from model.transformer import DecoderLayer, SmolLM2

# of the whole tensor, in shares of (ranks - 1) / ranks
RING = {
    "all_reduce": 2,
    "all_gather_into_tensor": 1,
    "reduce_scatter_tensor": 1,
    "all_to_all_single": 1,
    "reduce": 1,
    "broadcast": 1,
}


class Traffic:
    """Bytes that this rank sends, counted at torch's functions; the larger of input and output is the whole tensor."""

    def __init__(self) -> None:
        self.sent_bytes = 0.0
        self.counting = False
        for name, share in RING.items():
            setattr(dist, name, self._counted(getattr(dist, name), share))

    def _counted(self, function: Any, share: int) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.counting:
                sizes = [
                    value.numel() * value.element_size()
                    for value in (*arguments, *keywords.values())
                    if isinstance(value, torch.Tensor)
                ]
                ranks = dist.get_world_size()
                self.sent_bytes += share * max(sizes) * (ranks - 1) / ranks
            return function(*arguments, **keywords)

        return call


def held_bytes(model: torch.nn.Module) -> int:
    """Of all storages that are alive."""
    gc.collect()
    storages: dict[int, int] = {}
    for tensor in _tensors(model):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    storages.pop(0, None)
    return sum(storages.values())


def _tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    # a gradient that nobody has asked for is no object of Python's
    yield from (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for candidate in gc.get_objects():
            with contextlib.suppress(Exception):
                if isinstance(candidate, torch.Tensor) and not type(candidate).__name__.startswith("Fake"):
                    yield candidate


def make_engine(config: TrainConfig, ranks: RankEnvironment, *, stage: int) -> tuple[Any, torch.optim.Optimizer]:
    settings = deepspeed_config(config, world_size=ranks.world_size)
    settings["zero_optimization"]["stage"] = stage
    if stage == 0 and config.precision == "bfloat16":
        settings["data_types"]["grad_accum_dtype"] = "bf16"  # without ZeRO DeepSpeed has no other
    with deepspeed.zero.Init(config_dict_or_path=settings, enabled=stage == 3):
        model = SmolLM2(config.model)
    if stage == 3:
        set_z3_leaf_modules(model, [DecoderLayer])
    else:
        model.to(DTYPES[config.precision])
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0, enabled=stage == 3):
            if ranks.is_first or stage < 3:
                fill_parameter_(name, parameter, config=config.model, seed=0)
    optimizer = build_optimizer(model, config.optimizer)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine, optimizer


def main() -> None:
    config = load(sys.argv[1], TrainConfig, sys.argv[4:])
    ranks = read_environment(os.environ)
    torch.set_num_threads(1)
    open_console(config.run_dir, rank=ranks.rank)
    traffic = Traffic()
    deepspeed.init_distributed(verbose=False)
    engine, optimizer = make_engine(config, ranks, stage=int(sys.argv[2]))
    tokens = torch.randint(0, config.model.vocab_size, (config.micro_batch_size, config.data.sequence_length))
    marks: dict[str, int] = {}
    step = optimizer.step

    def watched_step(*arguments: Any, **keywords: Any) -> Any:
        marks["step"] = held_bytes(engine.module)
        return step(*arguments, **keywords)

    optimizer.step = watched_step  # type: ignore[method-assign]
    accumulation = config.accumulation_steps(world_size=ranks.world_size)
    for number in range(2):
        traffic.counting = number == 1
        for micro_step in range(accumulation):
            engine.backward(engine(tokens, labels=tokens, z_loss_coefficient=0.0).total)
            if micro_step in (0, accumulation - 1):
                marks["first" if micro_step == 0 else "last"] = held_bytes(engine.module)
            engine.step()
    held = torch.tensor(max(marks.values()))
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    figures = {"held_bytes": int(held), "sent_bytes": traffic.sent_bytes, "marks": marks}
    if ranks.is_first:
        Path(sys.argv[3]).write_text(json.dumps(figures))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
