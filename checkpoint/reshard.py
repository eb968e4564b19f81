"""A ZeRO-3 checkpoint as another number of ranks would have saved it, for any DeepSpeed that loads it there.

The trainer needs none of this: it takes its ranks' slices straight from the checkpoint (`launch/trainer/elastic.py`).

    OUTPUT/manifest.json          the source's, with the new world size and files, and `resharded_from`
    OUTPUT/zero/…                 DeepSpeed's own files for the new ranks
    .partial-NAME beside OUTPUT   being written: source.json and the ranks' files that are whole

A rank's files appear in the partial folder by a rename each, after they are on the disk: a kill costs the files that
were being written, and the next attempt at the same conversion goes on. Memory is a buffer a thread and the names and
shapes of the parameters, whatever the model's size. No torch, no deepspeed, no process group.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.lock import claim_output
from checkpoint.manifest import (
    MANIFEST_FILE,
    ZERO_TAG,
    CheckpointError,
    CheckpointManifest,
    ReshardedFrom,
    checkpoint_directory,
    describe_files,
    encode_manifest,
    read_manifest,
    step_name,
    sync_directory,
    verify_checkpoint,
    write_durably,
)
from checkpoint.rank_file import write_rank_file
from checkpoint.reading import hold_checkpoint
from checkpoint.zero3_layout import model_file_name
from checkpoint.zero3_state import Zero3State, rank_model_states, rank_optimizer_file, read_state

MAX_THREADS = 4  # more do not make a disk faster
SOURCE_FILE = "source.json"
_RANK_FILE = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt$")


@dataclass(frozen=True)
class Resharded:
    """What a conversion made; `kept` of its rank files were there from an attempt that was cut short."""

    directory: Path
    files: int
    size_bytes: int
    kept: int


def resharded_directory(run: Path, step: int, *, world_size: int) -> Path:
    """`RUN/resharded/world-4/step-00000100`."""
    return run / "resharded" / f"world-{world_size}" / step_name(step)


def reshard_checkpoint(run: Path, step: int, output: Path, *, world_size: int) -> Resharded:
    """Write the checkpoint of a step for `world_size` ranks to the new folder `output`, which appears by one rename.

    Raises CheckpointError for a damaged checkpoint, one of another stage than 3, an output that exists, the same world
    size, and a disk without room for it.
    """
    checkpoint = checkpoint_directory(run, step)
    manifest = read_manifest(checkpoint)
    if manifest.zero_stage != 3:
        raise CheckpointError(
            f"{checkpoint} is of ZeRO stage {manifest.zero_stage}; only those of stage 3 are resharded"
        )
    if manifest.world_size == world_size:
        raise CheckpointError(f"{checkpoint} is of {world_size} ranks already: nothing to do")
    _refuse_existing(output)
    if problems := verify_checkpoint(checkpoint):
        raise CheckpointError("\n".join(f"{checkpoint}/{problem}; take another step" for problem in problems))
    state = read_state(checkpoint / ZERO_TAG)
    if state.world_size != manifest.world_size:
        raise CheckpointError(
            f"{checkpoint} holds the files of {state.world_size} ranks, its manifest says {manifest.world_size}; "
            "take another step"
        )
    source = ReshardedFrom(
        world_size=manifest.world_size,
        manifest_digest=describe_files(checkpoint, [checkpoint / MANIFEST_FILE])[0].digest,
    )
    with _partial_folder(output, source, world_size=world_size) as partial:
        # another number of ranks has the same elements, and some padding
        size_bytes = sum(record.size_bytes for record in manifest.files)
        kept = _write_ranks(state, partial / ZERO_TAG, world_size=world_size, size_bytes=size_bytes)
        _copy_others(checkpoint, partial, manifest)
        return _publish(partial, output, manifest, source, world_size=world_size, kept=kept)


def add_reshard_verb(add_verb: Callable[..., ArgumentParser], step_of: Callable[[Path, int | None], int]) -> None:
    """The command, for the room's parser; `step_of` is the step that the user names, or the newest."""

    def run(arguments: Namespace) -> int:
        source, world_size = arguments.run_directory, arguments.world_size
        step = step_of(source, arguments.step)
        output = arguments.output or resharded_directory(source, step, world_size=world_size)
        with hold_checkpoint(checkpoint_directory(source, step)):
            made = reshard_checkpoint(source, step, output, world_size=world_size)
        kept = f", {made.kept} of them written by an attempt before" if made.kept else ""
        print(f"{made.directory}: {world_size} ranks, {made.files} files{kept}, {made.size_bytes:,} bytes")
        return 0

    purpose = "the checkpoint as another number of ranks would have saved it, for DeepSpeed; `launch train` needs none"
    verb = add_verb("reshard", purpose, run, example="reshard runs/demo --world-size 16")
    verb.add_argument("--step", type=int, metavar="N", help="default: the newest")
    verb.add_argument("--world-size", type=_count, required=True, metavar="V", help="the number of ranks")
    verb.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: RUN/resharded/world-V/step-…)")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a number of ranks, such as 16")
    return int(text)


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise CheckpointError(f"{output} exists already; remove it or name another folder")


@contextmanager
def _partial_folder(output: Path, source: ReshardedFrom, *, world_size: int) -> Iterator[Path]:
    """The folder of this conversion for this process alone, with what an earlier attempt at the same one left."""
    partial = output.with_name(f".partial-{output.name}")
    busy = f"another reshard is at work on {output}; wait for it, or name another folder"
    with claim_output(output, busy=busy):
        _refuse_existing(output)  # by now
        wanted = f"{source.model_dump_json()} {world_size}\n".encode()
        marker = partial / SOURCE_FILE
        if not marker.is_file() or marker.read_bytes() != wanted:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / ZERO_TAG).mkdir(parents=True)
            write_durably(marker, wanted)
        try:
            yield partial
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CheckpointError(
                f"no space left on the disk of {output}; free some and run the same command: it goes on with what is "
                "written"
            ) from None


def _write_ranks(state: Zero3State, folder: Path, *, world_size: int, size_bytes: int) -> int:
    """All ranks' files that are not there yet, of some `size_bytes` in all; returns how many were."""
    jobs: list[tuple[Path, Callable[[], dict[str, Any]]]] = []
    for rank in range(world_size):
        optimizer = f"{state.optimizer_prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        for name, contents in ((optimizer, rank_optimizer_file), (model_file_name(rank), rank_model_states)):
            if not (folder / name).is_file():
                jobs.append(
                    (folder / name, lambda make=contents, rank=rank: make(state, rank=rank, world_size=world_size))  # type: ignore[misc]
                )
    _check_space(folder, size_bytes * len(jobs) // (2 * world_size))
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        try:
            for _ in threads.map(lambda job: _write_rank_file(job[0], job[1]()), jobs):
                pass
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    sync_directory(folder)
    return 2 * world_size - len(jobs)


def _write_rank_file(path: Path, contents: dict[str, Any]) -> None:
    unfinished = path.with_name(f".{path.name}")
    write_rank_file(unfinished, contents)
    unfinished.rename(path)


def _check_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise CheckpointError(
            f"{folder} has {free_bytes:,} bytes free, what is left to write takes {needed_bytes:,}; free some"
        )


def _publish(
    partial: Path, output: Path, manifest: CheckpointManifest, source: ReshardedFrom, *, world_size: int, kept: int
) -> Resharded:
    own = {partial / SOURCE_FILE, partial / MANIFEST_FILE}
    records = describe_files(partial, (path for path in partial.rglob("*") if path.is_file() and path not in own))
    changed = {"world_size": world_size, "files": tuple(records), "resharded_from": source}
    write_durably(partial / MANIFEST_FILE, encode_manifest(manifest.model_copy(update=changed)))
    # last, for what is hashed without it would be made again
    (partial / SOURCE_FILE).unlink()
    partial.rename(output)
    sync_directory(output.parent)
    return Resharded(output, len(records), sum(record.size_bytes for record in records), kept)


def _copy_others(checkpoint: Path, partial: Path, manifest: CheckpointManifest) -> None:
    """What is not of a rank: the same whatever the number of ranks."""
    for record in manifest.files:
        if not _RANK_FILE.search(record.path):
            (partial / record.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkpoint / record.path, partial / record.path)
