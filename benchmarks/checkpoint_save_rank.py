"""One rank of `checkpoint_saves.py`: trains a little, saves in one way, and writes what that cost as JSON.

deepspeed --num_gpus 2 benchmarks/checkpoint_save_rank.py WAY CONFIG OUTPUT ROUNDS
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from checkpoint_contenders import resident_peak_bytes

from checkpoint.manifest import Probe
from configs.load import load
from launch.config import TrainConfig
from launch.trainer import engine as engine_module
from launch.trainer.engine import Engine, build_engine
from launch.trainer.inputs import Inputs
from launch.trainer.ranks import read_environment
from launch.trainer.state import Checkpoints
from pipeline.shards.format import TokenizerRecord

# DeepSpeed's, beside its plain one (https://www.deepspeed.ai/docs/config-json/, "checkpoint"): PYTHON is Python's own
# file writing, FAST its double-buffered one through its asynchronous I/O, which compiles with libaio's headers
WRITERS: dict[str, dict[str, Any]] = {
    "deepspeed, decoupled": {"type": "PYTHON", "decoupled": True},
    "deepspeed, fast": {"type": "FAST", "decoupled": False},
}
PROBE = Probe(token_ids=((0,),), mean_negative_log_likelihood=0.0)


def main() -> None:
    way, config_file, output, rounds = sys.argv[-4:]
    folder = Path(output) / "files"
    config = load(config_file, TrainConfig, [f"run_dir={folder}", f"checkpoint.asynchronous={way == 'ours'}"])
    ranks = read_environment(os.environ)
    choose_writer(WRITERS.get(way))
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    engine = build_engine(config, ranks, fill_weights=True, say=lambda line: None)
    inputs = Inputs({}, TokenizerRecord(digest="", vocab_size=config.model.vocab_size, eos_token_id=0), None)
    saves = Checkpoints(config, ranks, inputs, run_key="benchmark", last_step=None)

    def save(step: int) -> None:
        if not way.startswith("ours"):
            engine.deepspeed.save_checkpoint(str(folder), tag=f"step-{step}")
            return
        saves.save(engine, step=step, samples_consumed=0, validation_loss=None, probe=PROBE, tokens_by_source={})
        if way == "ours, blocking":
            saves.finish()

    measured = []
    for number in range(int(rounds) + 1):
        if ranks.is_first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        before_s = take_step(engine, config, lambda: None)[0]
        torch.distributed.barrier()
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        save(number + 1)
        stall_s, stall_cpu_s = time.perf_counter() - wall_s, time.thread_time() - cpu_s
        behind_s, waited_s = take_step(engine, config, saves.before_update)
        saves.finish()
        measured.append({"stall_s": stall_s + waited_s, "stall_cpu_s": stall_cpu_s, "slower_s": behind_s - before_s})
    peak_bytes = resident_peak_bytes()
    # of the first save not: files and memory are asked for
    result = {"rounds": measured[1:], "peak_bytes": peak_bytes}
    (Path(output) / f"rank-{ranks.rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    os._exit(0)  # DeepSpeed's writer processes are waited for otherwise


def choose_writer(writer: dict[str, Any] | None) -> None:
    """Put a writer of DeepSpeed's into the settings that the engine is built with."""
    if writer is None:
        return
    ours = engine_module.deepspeed_config

    def with_writer(config: TrainConfig, *, world_size: int) -> dict[str, Any]:
        settings = ours(config, world_size=world_size)
        return settings | {"checkpoint": settings["checkpoint"] | {"writer": writer}}

    engine_module.deepspeed_config = with_writer


def take_step(engine: Engine, config: TrainConfig, before_update: Callable[[], None]) -> tuple[float, float]:
    """Seconds of a step, the wait before its update apart, and those of the wait."""
    began_s = time.perf_counter()
    token_ids = torch.randint(1, config.model.vocab_size, (config.micro_batch_size, config.data.sequence_length))
    loss = engine.deepspeed(token_ids, document_ids=None, labels=token_ids)
    engine.deepspeed.backward(loss)
    wait_began_s = time.perf_counter()
    before_update()
    waited_s = time.perf_counter() - wait_began_s
    engine.deepspeed.step()
    return time.perf_counter() - began_s - waited_s, waited_s


if __name__ == "__main__":
    main()
