"""A ZeRO-3 checkpoint of smollm2-135m for another number of ranks: ours beside DeepSpeed's Universal Checkpoint.

    python benchmarks/reshard.py [--from 2] [--to 3] [--rounds 5] [--model configs/model/smollm2-135m.yaml]

The checkpoint is DeepSpeed's own, of one step on real ranks. Contenders take turns. Ours includes what a user gets: the
source's digests are checked, the result is on the disk and digested; Universal Checkpoint does neither. `cp` does
nothing but read and write the same bytes. Memory is the largest process's; disk the most that lay there at any time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from local_ranks import free_port, rank_variables

ROOT = Path(__file__).resolve().parents[1]
STEP, SEQUENCE = 1, 8


@dataclass(frozen=True)
class Measured:
    """One conversion."""

    wall_s: float
    cpu_s: float
    rss_mb: float
    disk_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=int, default=2)
    parser.add_argument("--to", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, default=ROOT / "configs/model/smollm2-135m.yaml")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is made (default: a temporary folder)")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        save(arguments.rank, arguments.model)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run, output = Path(folder) / "run", Path(folder) / "output"
        make_checkpoint(run, arguments.model, ranks=arguments.source)
        zero = run / "checkpoints" / f"step-{STEP:08d}" / "zero"
        size_mb = size_bytes(zero) / 1e6
        contenders = {
            "smollm2 checkpoint reshard": [
                sys.executable, "-m", "checkpoint", "reshard", str(run), "--world-size", str(arguments.to),
                "--output", str(output / "ours"),
            ],
            "Universal Checkpoint": [
                sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(zero),
                "--output_folder", str(output / "universal"),
            ],
            "cp": ["cp", "-r", str(zero), str(output / "copy")],
        }  # fmt: skip
        found: dict[str, list[Measured]] = {name: [] for name in contenders}
        for _ in range(arguments.rounds):
            for name, command in contenders.items():
                output.mkdir()
                found[name].append(measure(command, output))
                shutil.rmtree(output)
    print(f"{arguments.model.stem}: {size_mb:,.0f} MB of {arguments.source} ranks, to {arguments.to}; medians")
    show(found, size_mb=size_mb)


def show(found: dict[str, list[Measured]], *, size_mb: float) -> None:
    ours = statistics.median(each.wall_s for each in found["smollm2 checkpoint reshard"])
    print(f"{'':<28} {'wall s':>7} {'CPU s':>7} {'peak RSS':>9} {'disk':>9} source ours")
    for name, rounds in found.items():
        wall, cpu, rss, disk = (
            statistics.median(getattr(each, field) for each in rounds)
            for field in ("wall_s", "cpu_s", "rss_mb", "disk_mb")
        )
        size = f"{disk:>6,.0f} MB x{disk / size_mb:<5.1f}"
        print(f"{name:<28} {wall:>7.1f} {cpu:>7.1f} {rss:>6,.0f} MB {size} x{wall / ours:.2f}")


def measure(command: list[str], output: Path) -> Measured:
    """Run it to its end, and look all the while how much lies in the folder."""
    started_s = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            most[0] = max(most[0], size_bytes(output))

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started_s
    process.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said.decode()[-2000:]}")
    disk_mb = max(most[0], size_bytes(output)) / 1e6
    return Measured(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, disk_mb)


def size_bytes(folder: Path) -> int:
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(directory, name)).st_size  # noqa: PTH116, PTH118
            except FileNotFoundError:
                continue  # removed meanwhile
    return total


def make_checkpoint(run: Path, model: Path, *, ranks: int) -> None:
    """Real ranks, without a launcher."""
    port = free_port()
    common = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--rank", str(run), "--model", str(model)]
    processes = []
    for rank in range(ranks):
        environment = os.environ | rank_variables(rank, world_size=ranks, port=port) | common
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    if any(process.wait() for process in processes):
        raise SystemExit("the checkpoint could not be made")


def save(run: Path, model: Path) -> None:
    """One rank of one step, and its checkpoint as the trainer writes it."""
    import logging

    import deepspeed
    import torch

    from checkpoint import manifest, run_record
    from configs.load import load
    from launch.config import OptimizerConfig
    from launch.trainer.optimizer import build_optimizer
    from model.config import SmolLM2Config
    from model.transformer import SmolLM2

    logging.disable(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    config = load(model, SmolLM2Config)
    with deepspeed.zero.Init(config_dict_or_path=settings):
        network = SmolLM2(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter.ds_tensor, std=0.02)
    optimizer = build_optimizer(network, OptimizerConfig(learning_rate=1e-3))
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings, dist_init_required=False)
    token_ids = torch.randint(0, config.vocab_size, (1, SEQUENCE))
    engine.backward(engine(token_ids, labels=token_ids))
    engine.step()
    partial = manifest.partial_directory(run, STEP)
    engine.save_checkpoint(str(partial), tag=manifest.ZERO_TAG, save_latest=False)
    if torch.distributed.get_rank() == 0:
        files = manifest.describe_files(partial, (path for path in partial.rglob("*") if path.is_file()))
        manifest.publish_checkpoint(
            run,
            manifest.CheckpointManifest(
                run_key="0" * 32,
                step=STEP,
                tokens_consumed=SEQUENCE,
                samples_consumed=1,
                world_size=torch.distributed.get_world_size(),
                zero_stage=3,
                dtype="bfloat16",
                config_digest="",
                dataset_digests={},
                tokenizer_digest="",
                model=config.model_dump(mode="json"),
                files=tuple(files),
            ),
        )
        record = run_record.RunRecord(run_key="0" * 32, name="reshard", created_ms=0, code_revision="", versions={})
        run_record.write_run(run, record)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
