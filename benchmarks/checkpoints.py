"""A checkpoint's weights to bfloat16 safetensors, and its verification: time, CPU and peak memory beside the peers.

    python benchmarks/checkpoints.py --model configs/model/smollm2-135m.yaml --ranks 4 --rounds 5

The checkpoint is synthetic (`checkpoint_synthetic.py`; smollm2-1.7b takes 21 GB of disk). Each contender is a process
of its own and they take turns, so that what else the machine does meets all, and each finds the weights and nothing
else of the checkpoint in the page cache; a ratio is the median of the rounds' ratios to ours. `bytes alone` reads the
same bytes at the same places in as many threads and writes as many bytes. `peak` is a process's largest resident
memory, `work` what of it is not the imports'. Saves: `checkpoint_saves.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from checkpoint_contenders import CONTENDERS
from checkpoint_synthetic import write_synthetic_checkpoint

from configs.load import load
from model.config import SmolLM2Config

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Measurement:
    """Of one process: seconds and CPU seconds of the work, its largest resident memory, and that less the imports'."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    work_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "configs/model/smollm2-135m.yaml")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoint = Path(folder) / "checkpoint"
        config = load(options.model, SmolLM2Config, [])
        parameters = write_synthetic_checkpoint(checkpoint / "zero", config, world_size=options.ranks)
        (checkpoint / "latest").write_text("zero")
        size_bytes = sum(path.stat().st_size for path in (checkpoint / "zero").iterdir())
        print(f"{options.model.stem}: {parameters:,} parameters from {options.ranks} ranks, {options.rounds} rounds")
        rounds = [
            {name: measure(name, checkpoint, options.model, Path(folder)) for name in CONTENDERS}
            for _ in range(options.rounds)
        ]
    show(rounds)
    rate = size_bytes / statistics.median(one["verification"].cpu_s for one in rounds)
    print(f"verification: {size_bytes / 1e9:.1f} GB at {rate / 1e9:.1f} GB for each second of a core")


def measure(name: str, checkpoint: Path, model: Path, folder: Path) -> Measurement:
    output = folder / "output"
    output.mkdir()
    forget(checkpoint)
    command = [
        sys.executable,
        str(ROOT / "benchmarks/checkpoint_contenders.py"),
        name,
        *map(str, (checkpoint, model, output)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    shutil.rmtree(output)
    if ended.returncode:
        raise SystemExit(f"{name} failed:\n{ended.stderr[-2000:]}")
    return Measurement(**json.loads(ended.stdout.splitlines()[-1]))


def forget(checkpoint: Path) -> None:
    """Out of the page cache with it: memory that it fills has to be found again by whoever writes next."""
    for path in (checkpoint / "zero").iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def show(rounds: list[dict[str, Measurement]]) -> None:
    print(f"{'':34} {'wall s':>8} {'/ ours':>7} {'CPU s':>8} {'/ ours':>7} {'peak MB':>8} {'/ ours':>7} {'work MB':>8}")
    ours = "ours"
    for name in CONTENDERS:
        own = [one[name] for one in rounds]

        def ratio(key: str, name: str = name) -> float:
            return statistics.median(getattr(one[name], key) / getattr(one[ours], key) for one in rounds)

        wall_s, cpu_s = (statistics.median(getattr(one, key) for one in own) for key in ("wall_s", "cpu_s"))
        peak, work = (max(getattr(one, key) for one in own) / 1e6 for key in ("peak_bytes", "work_bytes"))
        print(
            f"{name:34} {wall_s:>8.2f} {ratio('wall_s'):>6.2f}x {cpu_s:>8.2f} {ratio('cpu_s'):>6.2f}x "
            f"{peak:>8,.0f} {ratio('peak_bytes'):>6.1f}x {work:>8,.0f}"
        )


if __name__ == "__main__":
    main()
