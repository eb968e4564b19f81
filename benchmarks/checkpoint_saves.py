"""How long training stands still for a save: ours beside DeepSpeed's `engine.save_checkpoint` and its other writers.

    python benchmarks/checkpoint_saves.py --layers 30 --rounds 5

Two CPU ranks under ZeRO-3 in bfloat16, one way after the other, each in processes of its own. `stall` is the time in
the save and, for ours, of the wait before the next update; `CPU` is what the training's thread worked meanwhile, which
a busy machine does not change; `next step` is how much longer the step behind the save took. DeepSpeed's plain writer
neither makes durable nor digests; ours does both, all of it in the stall where it is blocking. Medians, of the slower
rank; `peak` is the largest resident memory of a rank.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from local_ranks import free_port

ROOT = Path(__file__).parent.parent
WAYS = ("deepspeed", "ours", "ours, blocking", "deepspeed, decoupled", "deepspeed, fast")
TIME_LIMIT_S = 1200  # of one way, so that a writer that hangs does not hang the table
CONFIG = """
run_dir: unused
name: saves
model: {{vocab_size: 49152, hidden_size: 576, intermediate_size: 1536, num_hidden_layers: {layers},
  num_attention_heads: 9, num_key_value_heads: 3, max_position_embeddings: 2048}}
data: {{sources: [{{name: none, path: none}}], sequence_length: 128}}
batch_tokens: 256
micro_batch_size: 1
steps: 1000
optimizer: {{learning_rate: 1e-4}}
schedule: {{name: wsd}}
checkpoint: {{every_steps: 1}}
validation: {{every_steps: 1, sequences: 8}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30, help="of smollm2-135m's 30")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go (default: a temporary folder)")
    options = parser.parse_args()
    print(f"{'':24} {'stall s':>8} {'of plain':>8} {'CPU s':>8} {'of plain':>8} {'next step':>10} {'peak MB':>8}")
    plain: tuple[float, float] | None = None
    for way in WAYS:
        measured = measure(way, options.layers, options.rounds, options.folder)
        if measured is None:
            continue
        stall_s, cpu_s, slower_s, peak_bytes = measured
        plain = plain or (stall_s, cpu_s)
        print(
            f"{way:24} {stall_s:>8.3f} {stall_s / plain[0]:>8.0%} {cpu_s:>8.3f} {cpu_s / plain[1]:>8.0%} "
            f"{slower_s:>+9.2f}s {peak_bytes / 1e6:>8,.0f}",
            flush=True,
        )


def measure(way: str, layers: int, rounds: int, folder: Path | None) -> tuple[float, float, float, int] | None:
    """Medians of the stall, its CPU and the next step's delay, and the peak; None, with a line, if it does not run."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        config = Path(output) / "config.yaml"
        config.write_text(CONFIG.format(layers=layers))
        port = free_port()
        command = [
            sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(port),
            str(ROOT / "benchmarks/checkpoint_save_rank.py"), way, str(config), output, str(rounds),
        ]  # fmt: skip
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        errors = run_to_its_end(command, environment)
        results = [json.loads(file.read_text()) for file in sorted(Path(output).glob("rank-*.json"))]
    if len(results) != 2:
        reasons = [line for line in errors.splitlines() if "Error" in line]
        print(f"{way:24} does not run here: {(reasons or ['no reason told'])[-1][:150]}", flush=True)
        return None

    def slower_rank(key: str) -> float:
        rounds_of_ranks = [[one_round[key] for one_round in result["rounds"]] for result in results]
        return statistics.median(map(max, zip(*rounds_of_ranks, strict=True)))

    peak_bytes = max(result["peak_bytes"] for result in results)
    return slower_rank("stall_s"), slower_rank("stall_cpu_s"), slower_rank("slower_s"), peak_bytes


def run_to_its_end(command: list[str], environment: dict[str, str]) -> str:
    """What it said on stderr. All its processes are ended with it, which a writer's own outlive, or at the limit."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        in_time = True
        try:
            process.wait(timeout=TIME_LIMIT_S)
        except subprocess.TimeoutExpired:
            in_time = False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # the launcher ends its ranks
        process.wait()
        errors.seek(0)
        return errors.read() + ("" if in_time else "\nTimeoutError: no end within the time limit")


if __name__ == "__main__":
    main()
