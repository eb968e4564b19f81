"""The event contract: what a run tells, as one JSON line an event, in `RUN/events/rank-N.jsonl`.

The trainer, or the driver of a data run, appends and never waits for a network; the service reads and ships. A line is
written by one `write` on a descriptor opened for appending, so that a kill leaves whole lines; a torn line (power cut,
full disk) is closed by the next write and skipped by every reader.

A resumed run repeats the steps after its checkpoint, and the log keeps both tellings. MLflow cannot take a row back and
gets the first of each key and step (`MetricsFilter`); the loss curve shows the last, which the checkpoints go on from.

A door: other rooms import from here what this file offers and the run's record, which says whose events these are
(`run_record.py`, behind it). Imports the standard library and pydantic only.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from checkpoint.run_record import (
    CONFIG_FILE,
    LOCK_FILE,
    RUN_FILE,
    RunRecord,
    RunRecordError,
    artifacts_directory,
    code_revision,
    read_run,
    write_run,
)

__all__ = [
    "CONFIG_FILE", "KINDS", "LEARNING_RATE", "LOCK_FILE", "RUN_FILE", "TRAIN_LOSS", "VALIDATION_LOSS",
    "Event", "EventError", "EventKind", "EventWriter", "MetricsFilter", "RunRecord", "RunRecordError",
    "artifacts_directory", "code_revision", "events_file", "last_event", "read_events", "read_run", "write_run",
]  # fmt: skip

EventKind = Literal["state", "params", "metrics", "checkpoint", "dataset", "text", "incident", "attempt"]
KINDS: tuple[EventKind, ...] = ("state", "params", "metrics", "checkpoint", "dataset", "text", "incident", "attempt")

_LINE_BYTES = 1 << 20  # more than any line that a trainer writes

# Keys of metrics that both sides name: the trainer writes more, and the service ships them all.
TRAIN_LOSS, VALIDATION_LOSS, LEARNING_RATE = "train/loss", "validation/loss", "train/learning_rate"


class EventError(ValueError):
    """An event that cannot be written: an unknown kind or a value that is not JSON."""


@dataclass(frozen=True)
class Event:
    """One line of the log.

    kind "state": fields {"state": "running" | "finished" | "failed" | "killed", "reason": str?}, and of an attempt
        that goes on from another number of ranks {"resharded_from": int, "resharded_to": int}
    kind "params": fields {name: text or number}, the flat resolved config, once an attempt
    kind "metrics": fields {name: number}, at a step
    kind "checkpoint": fields {"path": str}, at a step
    kind "dataset": fields {"name": str, "path": str, "digest": str, "documents": int, "tokens": int}, what a data run
        made; the step is its version
    kind "text": fields {"text": str}, at a step
    kind "incident": fields {"what": "not_finite" | "spike" | "rewind" | "hang" | "straggler" | "replicas",
        "text": str, …}, at a step: what went wrong there, as a line for a person; the other fields are the particulars
    kind "attempt": fields {"attempt": int, "exit_code": int, "reason": str, "first_step": int, "last_step": int}, how
        an attempt under supervision ended; the step is the last that it told
    """

    timestamp_ms: int
    kind: EventKind
    step: int
    fields: Mapping[str, Any]


def events_file(run: Path, rank: int = 0) -> Path:
    """`RUN/events/rank-0.jsonl`."""
    return run / "events" / f"rank-{rank}.jsonl"


class EventWriter:
    """Appends events of one process to its own file. A context manager."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        self._is_torn = end > 0 and os.pread(self._descriptor, 1, end - 1) != b"\n"

    def write(self, kind: EventKind, *, step: int, **fields: Any) -> None:
        """Append one event, stamped now. Numbers that are not finite are kept as NaN and Infinity.

        Raises EventError for an unknown kind, OSError if the disk does not take it.
        """
        if kind not in KINDS:
            raise EventError(f"event kind {kind!r}, wanted one of {', '.join(KINDS)}")
        record = {"timestamp_ms": time.time_ns() // 1_000_000, "kind": kind, "step": step, "fields": fields}
        try:
            line = json.dumps(record, separators=(",", ":")) + "\n"
        except (TypeError, ValueError) as error:
            raise EventError(f"event {kind!r} at step {step} is not JSON: {error}") from None
        content = (b"\n" if self._is_torn else b"") + line.encode()
        written = os.write(self._descriptor, content)
        self._is_torn = written < len(content)
        if self._is_torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def sync(self) -> None:
        """Wait until all that was written is on the disk; called at each checkpoint."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_events(path: Path, *, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Events from a byte offset on, each with the offset after it, where the next reading may begin.

    A line without its newline is still being written: reading stops before it. A line that is not an event is skipped.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            event = _parse(line)
            if event is not None:
                yield event, offset


def last_event(path: Path, *, before: int) -> Event | None:
    """That whose line ends at this offset; None if none does."""
    try:
        with path.open("rb") as file:
            begin = max(0, before - _LINE_BYTES)
            file.seek(begin)
            content = file.read(before - begin)
    except FileNotFoundError:
        return None
    if len(content) < before - begin or not content.endswith(b"\n"):
        return None
    return _parse(content[:-1].rpartition(b"\n")[2])


class MetricsFilter:
    """Keeps the first telling of each metric key and step; steps of a key only ever rise in a run's own order."""

    def __init__(self, last_steps: Mapping[str, int] | None = None) -> None:
        self.last_steps = dict(last_steps or {})

    def new_metrics(self, event: Event) -> dict[str, float]:
        """The metrics of an event that were not told before, by key; empty for an event of another kind."""
        if event.kind != "metrics":
            return {}
        new = {
            key: float(value)
            for key, value in event.fields.items()
            if isinstance(value, int | float) and event.step > self.last_steps.get(key, -1)
        }
        self.last_steps.update(dict.fromkeys(new, event.step))
        return new


def _parse(line: bytes) -> Event | None:
    try:
        record = json.loads(line)
        event = Event(record["timestamp_ms"], record["kind"], record["step"], record["fields"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None
    valid = isinstance(event.timestamp_ms, int) and isinstance(event.step, int) and event.kind in KINDS
    return event if valid and isinstance(event.fields, dict) else None
