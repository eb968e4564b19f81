"""The writing of one checkpoint behind the training: a thread a rank, and no collective.

Each rank copies its state (`host_copy.py`), writes its files, digests the bytes as they pass, makes them durable, and
says so in `.done/rank-N.json` below the partial folder. Rank 0 waits for the files of all ranks, through the folder
that all nodes share, and publishes. A rank that cannot write keeps its error for the training thread to ask for.

A thread and not a process: torch.save's checksum and its writing, the hash and fsync all let go of the interpreter's
lock, so that a process would save nothing and cost a second torch, shared memory (64 MB in many a container) and a
death of its own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from checkpoint.manifest import (
    FileRecord,
    RangeHasher,
    Record,
    describe_files,
    file_record,
    sync_directory,
)
from launch.trainer.host_copy import HostCopy

DONE_FOLDER = ".done"
# How long a file that another node has written may stay unseen: NFS keeps what it knows of a folder for up to a minute.
VISIBLE_WITHIN_S = 90.0
_PIECE_BYTES = 4 * 1024 * 1024
_MAX_POLL_S = 0.5


class _RankDone(Record):
    """What a rank has written in one save, which `save_key` names: a straggler of another attempt is not believed."""

    save_key: str
    files: tuple[FileRecord, ...]


@dataclass(frozen=True)
class Share:
    """What one rank has to write: `states` by torch.save, `copy` before them (None: they are the live ones), and
    `others`, which lie there already."""

    partial: Path
    save_key: str
    rank: int
    states: Sequence[tuple[Path, Any]]
    copy: HostCopy | None
    others: Sequence[Path] = ()


class RankWriter:
    """One rank's part of one save, at work as soon as it is made. `publish` is rank 0's and gets all ranks' files."""

    def __init__(
        self, share: Share, *, world_size: int, publish: Callable[[tuple[FileRecord, ...]], None] | None
    ) -> None:
        self.error: Exception | None = None
        self.written = self.published = False
        self._share, self._world_size, self._publish = share, world_size, publish
        self._copied, self._ended, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        self._all_written_s: float | None = None
        threading.Thread(target=self._run, name="checkpoint", daemon=True).start()

    def wait_for_copy(self) -> None:
        """Until the live tensors may change."""
        self._copied.wait()

    def wait(self, timeout_s: float) -> None:
        """Until this rank's part has ended, well or not; at most `timeout_s`."""
        self._ended.wait(timeout_s)

    def abandon(self) -> None:
        """End the waiting for other ranks, one of which has failed."""
        self._abandoned.set()

    def note_all_written(self) -> None:
        """All ranks say that they have written, so that their files must be seen soon."""
        if self._all_written_s is None:
            self._all_written_s = time.monotonic()

    def _run(self) -> None:
        try:
            self._write()
            if self._publish is not None and (files := self._gather()) is not None:
                self._publish(files)
                self.published = True
        # whatever it is, the training thread has to hear of it
        except Exception as error:
            self.error = error
        finally:
            self._copied.set()
            self._ended.set()

    def _write(self) -> None:
        share = self._share
        if share.copy is not None:
            share.copy.copy()
            self._copied.set()
        files = [_write_state(state, path, share.partial) for path, state in share.states]
        if share.copy is not None:
            share.copy.release()
        files += describe_files(share.partial, share.others)
        for folder in {path.parent for path, _ in share.states}:
            sync_directory(folder)
        self._say_done(_RankDone(save_key=share.save_key, files=tuple(files)))
        self.written = True

    def _say_done(self, done: _RankDone) -> None:
        """By a rename, the last thing done in the folder: rank 0 takes it away as soon as all have said so."""
        file = _done_file(self._share.partial, self._share.rank)
        unfinished = file.with_name(f".{file.name}")
        unfinished.write_text(done.model_dump_json(), encoding="utf-8")
        unfinished.replace(file)

    def _gather(self) -> tuple[FileRecord, ...] | None:
        """The files of all ranks, by path; None if the save was abandoned. Raises OSError for files never seen."""
        done: dict[int, _RankDone] = {}
        pause_s = 0.01
        while len(done) < self._world_size:
            # listed anew each time, which makes NFS ask its server
            seen = set((self._share.partial / DONE_FOLDER).iterdir())
            for rank in set(range(self._world_size)) - done.keys():
                file = _done_file(self._share.partial, rank)
                if file in seen:
                    told = _RankDone.model_validate_json(file.read_bytes())
                    if told.save_key == self._share.save_key:
                        done[rank] = told
            if len(done) < self._world_size and self._is_in_vain(pause_s, done):
                return None
            pause_s = min(2 * pause_s, _MAX_POLL_S)
        for rank in done:
            _done_file(self._share.partial, rank).unlink()
        (self._share.partial / DONE_FOLDER).rmdir()
        return tuple(sorted((file for told in done.values() for file in told.files), key=lambda file: file.path))

    def _is_in_vain(self, pause_s: float, done: dict[int, _RankDone]) -> bool:
        if self._all_written_s is not None and time.monotonic() - self._all_written_s > VISIBLE_WITHIN_S:
            missing = _done_file(self._share.partial, min(set(range(self._world_size)) - done.keys()))
            raise OSError(
                f"another rank has written {missing} and rank 0 does not see it (run_dir must be one folder that all "
                "nodes share)"
            )
        return self._abandoned.wait(pause_s)


class _DigestingFile:
    """What torch.save writes to. It must not raise into torch's writer, which ends the process: the first error is
    kept, and the rest of the content is dropped."""

    def __init__(self, file: BinaryIO) -> None:
        self.hasher = RangeHasher()
        self.error: OSError | None = None
        self._file = file

    def write(self, content: bytes | memoryview) -> int:
        view = memoryview(content).cast("B")
        for begin in range(0, len(view), _PIECE_BYTES):
            if self.error is None:
                piece = view[begin : begin + _PIECE_BYTES]
                try:
                    self._file.write(piece)
                except OSError as error:
                    self.error = error
                self.hasher.update(piece)
        return len(view)

    def flush(self) -> None: ...


def _write_state(state: Any, path: Path, partial: Path) -> FileRecord:
    with path.open("wb") as file:
        digesting = _DigestingFile(file)
        torch.save(state, digesting)  # type: ignore[arg-type]
        if digesting.error is not None:
            raise digesting.error
        file.flush()
        os.fsync(file.fileno())
    return file_record(partial, path, digesting.hasher.size_bytes, digesting.hasher.digests())


def _done_file(partial: Path, rank: int) -> Path:
    return partial / DONE_FOLDER / f"rank-{rank}.json"
