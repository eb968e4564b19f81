"""A rank that loads what was resharded, and saves it again: `reload_rank.py SOURCE RESHARDED OUTPUT VARIANT …`.

SOURCE/VARIANT/zero is of another number of ranks, RESHARDED/VARIANT/zero of this one. OUTPUT/deepspeed/VARIANT/zero is
what DeepSpeed saves after it has loaded the resharded files, OUTPUT/trainer/VARIANT/zero what it saves after the
trainer has read the source's slices.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import zero3_writer as writer

from launch.trainer.elastic import load_resharded
from launch.trainer.engine import Engine
from launch.trainer.ranks import RankEnvironment


def fresh_engine(variant: str) -> Any:
    if variant.startswith("muon"):
        return writer.muon_engine()
    _, tied, dtype, sub_group_size = writer.VARIANTS[variant]
    torch.manual_seed(99)  # other weights than those that are loaded
    model = writer.Uneven(tied=tied).to(getattr(torch, dtype))
    return writer.start_engine(model, dtype, sub_group_size=sub_group_size)


def main() -> None:
    source, resharded, output, *variants = sys.argv[1:]
    logging.disable(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    ranks = RankEnvironment(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 0, None)
    for variant in variants:
        engine = fresh_engine(variant)
        engine.load_checkpoint(str(Path(resharded) / variant), tag="zero")
        assert engine.global_steps == 2
        engine.save_checkpoint(str(Path(output) / "deepspeed" / variant), tag="zero")
        engine = fresh_engine(variant)
        load_resharded(
            Engine(engine, engine.optimizer.optimizer, torch.device("cpu"), "cpu", 0),
            Path(source) / variant / "zero",
            ranks,
        )
        assert engine.global_steps == 2
        engine.save_checkpoint(str(Path(output) / "trainer" / variant), tag="zero")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
