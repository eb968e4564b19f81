"""Tokens a second and memory of training on this machine's cores: ours beside transformers' model and torch's FSDP2.

    python benchmarks/training.py --sequence-lengths 512 2048 --rounds 5

Two contenders at a time are alive, with the same weights and the same tokens, and step in turn, so that what else the
machine does meets both; all ranks of one wait while the other works. Where the machine's memory does not hold both,
they live in turn: each turn starts anew and takes its first step before the timed one. The first step of each is not
timed, and its loss must be equal in both. "documents": a packed document attends to itself alone, in both or in one;
with one, losses differ and are not compared. A ratio is the median of the rounds' ratios, with the least and the most
beside it.

`peak` is the largest resident memory of a rank over two steps, imports and all, in a start of its own in which the C
library gives back what is freed (MALLOC_MMAP_THRESHOLD_): by default it keeps gigabytes of it, more of one model than
of the other, which says nothing of what a model needs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Self

import psutil
from local_ranks import free_port, rank_variables
from training_contenders import CONTENDERS

from configs.load import load
from launch.config import TrainConfig
from model.cost import flops_per_token

ROOT = Path(__file__).parent.parent
# (the one whose speed is divided, the one it is compared with)
PAIRS = (
    ("ours, documents, selective/2, ZeRO-3, 2 ranks", "transformers, documents, ZeRO-3, 2 ranks"),
    ("ours, documents, one process", "transformers, documents, one process"),
    ("ours, one process", "transformers, one process"),
    ("ours, documents, one process", "ours, one process"),
    ("ours, ZeRO-3, 1 rank", "ours, one process"),
    ("ours, ZeRO-3, 2 ranks", "ours, FSDP2, 2 ranks"),
)
_PEERS_END_WITHIN_S = 30.0
# what the C library keeps of what is freed, of the memory that is needed; seen: up to a half
_KEPT_BY_LIBC = 0.5
LOSS_TOLERANCE = 1e-3  # sums in another order; a wrong mask or position shows in the first digit


@dataclass(frozen=True)
class StepMeasurement:
    """Of one step of all ranks together: the slowest rank's seconds, the largest rank's memory."""

    seconds: float
    loss: float
    peak_bytes: int


class Ranks:
    """The processes of one contender, which step when told to."""

    def __init__(self, name: str, settings: Path, errors: IO[str], **variables: str) -> None:
        self.name = name
        world_size, _ = CONTENDERS[name]
        port = free_port()
        self._processes: list[subprocess.Popen[str]] = []
        self._results: list[IO[str]] = []
        for rank in range(world_size):
            reading, writing = os.pipe()
            environment = os.environ | {
                **rank_variables(rank, world_size=world_size, port=port),
                "DS_ACCELERATOR": "cpu",
                "THP_MEM_ALLOC_ENABLE": "1",  # for all, as the trainer has it
                "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // world_size)),
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                **variables,
            }
            command = [sys.executable, str(ROOT / "benchmarks/training_contenders.py"), name, str(settings)]
            self._processes.append(
                subprocess.Popen(
                    [*command, str(writing)],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=errors,
                    stderr=errors,
                    text=True,
                    pass_fds=(writing,),
                )
            )
            os.close(writing)
            self._results.append(os.fdopen(reading))

    def __enter__(self) -> Self:
        for result in self._results:
            self._read(result)
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # of a rank that was killed
                process.stdin.close()
        for process in self._processes:
            process.wait()
        for result in self._results:
            result.close()

    def step(self, seed: int) -> StepMeasurement:
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # of a rank that was killed; what it does not answer says so
                process.stdin.write(f"{seed}\n")
                process.stdin.flush()
        answers = [self._read(result) for result in self._results]
        return StepMeasurement(
            seconds=max(answer["seconds"] for answer in answers),
            loss=statistics.mean(answer["loss"] for answer in answers),
            peak_bytes=max(answer["peak_bytes"] for answer in answers),
        )

    def _read(self, result: IO[str]) -> dict[str, Any]:
        while not select.select([result], [], [], 1.0)[0]:
            # a rank that waits for one that is gone may wait for ever
            if any(process.poll() for process in self._processes):
                self._end()
        line = result.readline()
        if not line:
            self._end()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> NoReturn:
        """Raise for what became of the ranks, and leave none behind."""
        deadline_s = time.monotonic() + _PEERS_END_WITHIN_S
        # a rank that only lost its peer may be the first to be seen, so the others are given time to end
        while any(process.poll() is None for process in self._processes) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        for process in self._processes:
            process.kill()
        raise ContenderError(self.name)


class ContenderError(Exception):
    """A contender that ended; its output says why."""


def compare(pair: tuple[str, str], config: TrainConfig, *, rounds: int, peaks: dict[str, int]) -> None:
    """Prints a line for each of the two, and their ratio. `peaks` has those measured before, and gets the others."""
    with tempfile.TemporaryDirectory() as temporary, (Path(temporary) / "errors").open("w+") as errors:
        settings = Path(temporary) / "settings.json"
        settings.write_text(config.model_dump_json())
        try:
            peaks |= {name: _peak_bytes(name, settings, errors) for name in pair if name not in peaks}
            needed = sum(CONTENDERS[name][0] * peaks[name] for name in pair) * (1 + _KEPT_BY_LIBC)
            if needed < psutil.virtual_memory().available:
                runs = _alive_together(pair, settings, errors, rounds=rounds)
            else:
                print("(the two do not fit into memory together: each starts anew for its turn)", flush=True)
                runs = _alive_in_turn(pair, settings, errors, rounds=rounds)
        except ContenderError as failed:
            errors.seek(0)
            raise SystemExit(f"{failed} failed:\n{errors.read()[-4000:]}") from None
    for name in pair:
        _print_line(name, runs[name], peaks[name], config)
    ratios = [theirs.seconds / ours.seconds for ours, theirs in zip(runs[pair[0]], runs[pair[1]], strict=True)]
    print(
        f"  -> {statistics.median(ratios):.2f}x the tokens/s ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"{peaks[pair[0]] / peaks[pair[1]]:.2f}x the peak memory\n",
        flush=True,
    )


def _alive_together(
    pair: tuple[str, str], settings: Path, errors: IO[str], *, rounds: int
) -> dict[str, list[StepMeasurement]]:
    runs: dict[str, list[StepMeasurement]] = {name: [] for name in pair}
    with Ranks(pair[0], settings, errors) as first, Ranks(pair[1], settings, errors) as second:
        _check_losses(pair, [contender.step(0) for contender in (first, second)])
        for seed in range(1, rounds + 1):
            for contender in (first, second) if seed % 2 else (second, first):
                runs[contender.name].append(contender.step(seed))
    return runs


def _alive_in_turn(
    pair: tuple[str, str], settings: Path, errors: IO[str], *, rounds: int
) -> dict[str, list[StepMeasurement]]:
    runs: dict[str, list[StepMeasurement]] = {name: [] for name in pair}
    for seed in range(1, rounds + 1):
        warm: dict[str, StepMeasurement] = {}
        for name in pair if seed % 2 else reversed(pair):
            with Ranks(name, settings, errors) as contender:
                warm[name] = contender.step(0)
                runs[name].append(contender.step(seed))
        _check_losses(pair, [warm[name] for name in pair])
    return runs


def _peak_bytes(name: str, settings: Path, errors: IO[str]) -> int:
    """Of two steps: the first makes the optimizer's state."""
    threshold = str(1 << 20)
    with Ranks(name, settings, errors, MALLOC_MMAP_THRESHOLD_=threshold, MALLOC_TRIM_THRESHOLD_=threshold) as contender:
        contender.step(0)
        return contender.step(1).peak_bytes


def _check_losses(pair: tuple[str, str], warm: list[StepMeasurement]) -> None:
    if ("documents" in pair[0]) == ("documents" in pair[1]) and abs(warm[0].loss - warm[1].loss) > LOSS_TOLERANCE:
        raise SystemExit(f"{pair}: losses of the first step differ: {warm[0].loss} and {warm[1].loss}")


def _print_line(name: str, runs: list[StepMeasurement], peak_bytes: int, config: TrainConfig) -> None:
    world_size, _ = CONTENDERS[name]
    tokens = world_size * config.micro_batch_size * config.data.sequence_length
    seconds = [run.seconds for run in runs]
    rate = tokens / statistics.median(seconds)
    achieved = rate * flops_per_token(config.model, sequence_length=config.data.sequence_length) / 1e9
    print(
        f"{name:<46}{statistics.median(seconds):8.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})"
        f"{rate:9.0f} tokens/s{achieved:8.1f} GFLOP/s{peak_bytes / 1e9:7.2f} GB peak",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/train/smollm2-135m.yaml", help="(135M)")
    parser.add_argument("--sequence-lengths", type=int, nargs="+", default=[512, 2048], help="(default: 512 2048)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each (default: 5)")
    numbers = range(len(PAIRS))
    parser.add_argument("--pairs", type=int, nargs="+", choices=numbers, default=numbers, help="(default: all)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example precision=bfloat16")
    settings = parser.parse_args()
    if settings.rounds < 1:
        parser.error(f"--rounds: got {settings.rounds}, wanted at least 1")
    for length in settings.sequence_lengths:
        print(f"sequences of {length} tokens, one a rank and step, medians of {settings.rounds} rounds in turn")
        peaks: dict[str, int] = {}
        for index in settings.pairs:
            world_size = max(CONTENDERS[name][0] for name in PAIRS[index])
            overrides = (
                f"data.sequence_length={length}",
                "micro_batch_size=1",
                f"batch_tokens={length * world_size}",
                "precision=float32",
                *settings.overrides,
            )
            compare(PAIRS[index], load(settings.config, TrainConfig, overrides), rounds=settings.rounds, peaks=peaks)


if __name__ == "__main__":
    main()
