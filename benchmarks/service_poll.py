"""What a look of the checkpoint service costs when nothing has happened, in CPU seconds.

python benchmarks/service_poll.py --runs 1000 --checkpoints 100

Beside it a poll that trusts nothing it saw before: it lists every run's checkpoints and reads their manifests.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from checkpoint.config import ServiceConfig
from checkpoint.digests import count_ranges
from checkpoint.events import EventWriter, events_file
from checkpoint.jobs import Job, Outcome
from checkpoint.manifest import (
    CheckpointManifest,
    FileRecord,
    checkpoint_directory,
    encode_manifest,
    list_steps,
    read_manifest,
)
from checkpoint.run_record import RunRecord, write_run
from checkpoint.service import Service, find_runs

FILE_BYTES = 100_000_000
YOUNG_S = 2.5  # folders that have just changed are listed again


class DoneAtOnce:
    """Jobs that have nothing to do: an idle service's."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def poll(self) -> list[tuple[Job, Outcome]]:
        jobs, self._jobs = self._jobs, []
        return [(job, Outcome()) for job in jobs]

    def unfinished(self) -> tuple[Job, ...]:
        return tuple(self._jobs)

    def close(self) -> None:
        self._jobs.clear()


def make_runs(folder: Path, *, runs: int, checkpoints: int) -> None:
    digests = tuple(f"{index:016x}" for index in range(count_ranges(FILE_BYTES)))
    files = tuple(
        FileRecord(path=f"zero/rank-{rank}.pt", size_bytes=FILE_BYTES, digest="sha256:0", range_digests=digests)
        for rank in range(16)
    )
    for number in range(runs):
        run = folder / f"run-{number:04d}"
        run.mkdir()
        record = RunRecord(run_key=f"{number:032d}", name=run.name, created_ms=0, code_revision="", versions={})
        write_run(run, record)
        with EventWriter(events_file(run)) as log:
            log.write("state", step=0, state="finished")
        for step in range(1, checkpoints + 1):
            manifest = CheckpointManifest(
                run_key=record.run_key, step=step, tokens_consumed=step, samples_consumed=step, world_size=8,
                zero_stage=3, dtype="bfloat16", config_digest="", dataset_digests={}, tokenizer_digest="", model={},
                files=files,
            )  # fmt: skip
            checkpoint_directory(run, step).mkdir(parents=True)
            (checkpoint_directory(run, step) / "manifest.json").write_bytes(encode_manifest(manifest))


def read_everything(folder: Path) -> None:
    for run in find_runs(folder):
        for step in list_steps(run):
            read_manifest(checkpoint_directory(run, step))


def cpu_seconds(act: Callable[[], object], *, rounds: int) -> float:
    times_s = []
    for _ in range(rounds):
        began_s = time.process_time()
        act()
        times_s.append(time.process_time() - began_s)
    return statistics.median(times_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--checkpoints", type=int, default=100, help="of each run")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_runs(folder, runs=arguments.runs, checkpoints=arguments.checkpoints)
        service = Service(folder, ServiceConfig(), runner=DoneAtOnce())
        first_s = cpu_seconds(service.run_until_done, rounds=1)
        time.sleep(YOUNG_S)
        service.look()  # remembers what it has just listed for good
        look_s = cpu_seconds(service.look, rounds=arguments.rounds)
        naive_s = cpu_seconds(lambda: read_everything(folder), rounds=1)
    print(f"{arguments.runs:,} idle runs of {arguments.checkpoints:,} checkpoints, CPU seconds")
    print(f"{'a look of the service':32} {look_s:8.3f}  1.0x")
    print(f"{'its first look, with the jobs':32} {first_s:8.3f}  {first_s / look_s:.1f}x")
    print(f"{'listing and reading manifests':32} {naive_s:8.3f}  {naive_s / look_s:.1f}x")


if __name__ == "__main__":
    main()
