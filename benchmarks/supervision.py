"""What watching over a run costs: CPU seconds a step of each part, beside those of the step itself. No peers.

    python benchmarks/supervision.py --steps 4 --tokens 2048

One rank trains smollm2-135m through the trainer's own loop, with everything on; around each part stands a clock of its
thread's CPU time. A rank on a cluster has more tokens a step than fit into minutes here (16,384 on 64 ranks): the share
that is printed is an upper bound, since no part grows with them. The first step, which warms up, is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from local_ranks import free_port, rank_variables

from configs.load import load
from launch.config import TrainConfig
from pipeline.shards import format as contract

ROOT = Path(__file__).parent.parent
DOCUMENTS, DOCUMENT_TOKENS = 200, 400


class BrokenOffError(Exception):
    """Enough steps."""


class Clocks:
    """CPU seconds of each part, by wrapping functions; `steps` forgets what came before the first counted one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, owner: Any, name: str, part: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            began_s = time.thread_time()
            try:
                return inner(*arguments, **options)
            finally:
                self.seconds[part] += time.thread_time() - began_s

        setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="counted steps (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=2048, help="a step's, of this rank (default: %(default)s)")
    parser.add_argument("--sequence-length", type=int, default=512)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "data")
        config = load(ROOT / "configs" / "train" / "smollm2-135m.yaml", TrainConfig, overrides(arguments, Path(folder)))
        clocks, step_s = measure(config, arguments.steps)
    print(f"\nsmollm2-135m, one rank, {arguments.tokens:,} tokens a step: {step_s:.2f} CPU seconds a step\n")
    print(f"{'part':<44} {'CPU ms a step':>14} {'share':>9}")
    for part, seconds in clocks.seconds.items():
        print(f"{part:<44} {seconds / arguments.steps * 1e3:>14.3f} {seconds / arguments.steps / step_s:>9.4%}")
    total_s = sum(clocks.seconds.values()) / arguments.steps
    print(f"{'together':<44} {total_s * 1e3:>14.3f} {total_s / step_s:>9.4%}")


def overrides(arguments: argparse.Namespace, folder: Path) -> list[str]:
    return [
        f"run_dir={folder / 'run'}",
        f"data={json.dumps({'sources': [{'name': 'noise', 'path': str(folder / 'data')}], 'sequence_length': 512})}",
        f"data.sequence_length={arguments.sequence_length}",
        f"batch_tokens={arguments.tokens}",
        "micro_batch_size=1",
        "validation.sequences=1",
        "attn_implementation=sdpa",
        "guards.replicas_every_steps=2",  # 50 times as often as by default
    ]


def measure(config: TrainConfig, steps: int) -> tuple[Clocks, float]:
    """The parts' clocks over so many steps, and CPU seconds of the whole process a step."""
    os.environ |= rank_variables(port=free_port()) | {"DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu")}
    from launch.trainer import loop, oversight, replicas
    from launch.trainer.attempt import run_attempt
    from launch.trainer.console import Console
    from launch.trainer.heartbeat import Heartbeat
    from launch.trainer.inputs import read_inputs
    from launch.trainer.ranks import read_environment
    from launch.trainer.run_folder import StartPoint
    from launch.trainer.telling import Teller
    from launch.trainer.watchdog import Watchdog

    clocks, marks_s = Clocks(), []
    clocks.around(loop, "local_gradient_square", "gradient's norm, before the update")
    clocks.around(loop, "exchange", "exchange of losses, times and signals")
    clocks.around(loop, "find_not_finite", "is it finite")
    for name in ("step", "phase", "end_step"):
        clocks.around(Heartbeat, name, "heartbeat")
    clocks.around(Watchdog, "_write", "watchdog's thread")
    clocks.around(Heartbeat, "seconds_over", "watchdog's thread")
    clocks.around(oversight.Oversight, "took_step", "spikes, stragglers, replicas")
    clocks.around(Teller, "step", "event log and screen")
    judge = loop.Trainer._judge

    def judge_and_count(trainer: Any, step: int, result: Any) -> bool:
        verdict = judge(trainer, step, result)
        # one rank has no copies to compare: the checksum alone, whose cost it is
        if step % config.guards.replicas_every_steps == 0:
            began_s = time.thread_time()
            replicas._checksum(trainer.engine.deepspeed.optimizer.persistent_parameters)
            clocks.seconds["checksum of replicas"] += (
                (time.thread_time() - began_s) * config.guards.replicas_every_steps / 100
            )
        marks_s.append(time.process_time())
        if step == 1:
            clocks.seconds.clear()
        if step == steps + 1:
            raise BrokenOffError
        return verdict

    loop.Trainer._judge = judge_and_count  # type: ignore[method-assign]
    (config.run_dir / "logs").mkdir(parents=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    ranks, console = read_environment(os.environ), Console(rank=0, log=config.run_dir, stdout=nowhere, stderr=nowhere)
    watchdog = Watchdog(config.watchdog, ranks, run_dir=config.run_dir, alarm=console.alarm)
    watchdog.start()
    with contextlib.suppress(BrokenOffError):
        run_attempt(config, ranks, console, read_inputs(config), StartPoint(0, "key", ()), watchdog.heartbeat)
    return clocks, (marks_s[-1] - marks_s[0]) / steps


def write_dataset(folder: Path) -> None:
    """Noise, through the contract of `pipeline/shards/format.py`."""
    random = np.random.default_rng(0)
    splits: dict[contract.Split, contract.SplitRecord] = {}
    names: tuple[contract.Split, ...] = ("train", "validation")
    for split in names:
        file = contract.split_directory(folder, split) / "data-00000-000.arrow"
        file.parent.mkdir(parents=True)
        documents = [[*random.integers(1, 49152, DOCUMENT_TOKENS - 1).tolist(), 0] for _ in range(DOCUMENTS)]
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, contract.SCHEMA) as writer:
            rows = [documents, [f"{split}-{number}" for number in range(DOCUMENTS)]]
            writer.write_batch(pa.record_batch(rows, schema=contract.SCHEMA))
        tokens = DOCUMENTS * DOCUMENT_TOKENS
        shard = contract.ShardRecord(
            path=file.relative_to(folder).as_posix(),
            documents=DOCUMENTS,
            tokens=tokens,
            size_bytes=file.stat().st_size,
            digest=contract.digest_file(file),
        )
        splits[split] = contract.SplitRecord(documents=DOCUMENTS, tokens=tokens, shards=(shard,))
    tokenizer = folder / contract.TOKENIZER_FILE
    tokenizer.write_text("{}")
    record = contract.TokenizerRecord(digest=contract.digest_file(tokenizer), vocab_size=49152, eos_token_id=0)
    manifest = contract.DatasetManifest(
        name="noise", tokenizer=record, splits=splits, documents_in=400, text_bytes_kept=0, config_digest=""
    )
    contract.write_manifest(folder, manifest)


if __name__ == "__main__":
    main()
    # threads and the process group of a run that was broken off may wait for ever
    sys.stdout.flush()
    os._exit(0)
