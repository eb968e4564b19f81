"""What of an event log MLflow has confirmed, and what comes next, as rows that MLflow takes. Knows no MLflow client.

`RUN/service/journal.json` may be deleted at any time: the log is then read from its beginning, and every row made from
it is equal to the one that was sent before.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from checkpoint.events import Event, MetricsFilter, events_file, last_event, read_events
from checkpoint.manifest import write_durably
from checkpoint.replay import ReplayFinder

logger = logging.getLogger(__name__)

BATCH_ROWS = 1000  # MLflow's limit on the metrics of one request
MAX_PARAM_CHARACTERS = 6000  # MLflow cuts what is longer
_MAX_NAME_CHARACTERS = 250


class LogPosition(BaseModel):
    """How far one log has been confirmed, and what it said up to there."""

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(default=0, ge=0)
    last_steps: dict[str, int] = Field(default_factory=dict)
    replayed_from: int | None = None
    state: str = "running"
    timestamp_ms: int = 0


class Journal(LogPosition):
    """How far a run has been shipped, to which server (without its credentials), as which MLflow run.

    The position is that of rank 0's log; `others` are those of the other ranks, by file name. `status` is what MLflow
    was told last, "" nothing yet; `registered` are by step the digest of the proof and the score that the registered
    model tells.
    """

    tracking_uri: str
    run_key: str
    mlflow_run_id: str
    others: dict[str, LogPosition] = Field(default_factory=dict)
    status: str = ""
    dataset_digests: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    evaluations: dict[int, int] = Field(default_factory=dict)
    registered: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One value of one metric."""

    key: str
    value: float
    timestamp_ms: int
    step: int


@dataclass
class Batch:
    """Consecutive lines of a log, and where the log stands after them."""

    rows: list[Row] = field(default_factory=list)
    params: list[Mapping[str, Any]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    datasets: list[Mapping[str, Any]] = field(default_factory=list)
    offset: int = 0
    last_steps: dict[str, int] = field(default_factory=dict)
    replayed_from: int | None = None
    state: str = "running"
    timestamp_ms: int = 0

    def leave_at(self, position: LogPosition) -> None:
        """Note that all up to here is confirmed."""
        position.offset, position.last_steps = self.offset, self.last_steps
        position.state, position.timestamp_ms = self.state, self.timestamp_ms
        position.replayed_from = self.replayed_from


def other_logs(run: Path) -> list[Path]:
    """Those of the ranks beside the first, of which one a node tells how the node is doing."""
    first = events_file(run)
    return sorted(path for path in first.parent.glob("rank-*.jsonl") if path != first)


def journal_file(run: Path) -> Path:
    return run / "service" / "journal.json"


def read_batches(path: Path, journal: LogPosition, *, batch_rows: int = BATCH_ROWS) -> Iterator[Batch]:
    """What a log holds beyond a position, in pieces that are confirmed one by one, of at most `batch_rows` rows unless
    a single line has more.

    A metric that is not finite is sent as NaN, because MLflow would plot an infinity as 1.8e308, and a tag says what it
    was and at which step it came first. The tag `smollm2.replayed_from` is the lowest step that a resumed run repeated
    with another loss or learning rate: from there on MLflow shows what was abandoned, and the loss curve what is.
    """
    metrics_filter = MetricsFilter(journal.last_steps)
    replay = ReplayFinder(path, journal.replayed_from)
    state, timestamp_ms = journal.state, journal.timestamp_ms
    batch = Batch()
    for event, offset in read_events(path, offset=_offset_to_read_from(path, journal)):
        new = metrics_filter.new_metrics(event)
        if batch.rows and len(batch.rows) + len(new) > batch_rows:
            yield batch
            batch = Batch()
        timestamp_ms = event.timestamp_ms
        state = _state_after(event, before=state)
        _add(batch, event, new)
        replay.look(event, new, offset=offset)
        if replay.parted_at != journal.replayed_from:
            batch.tags["smollm2.replayed_from"] = str(replay.parted_at)
        batch.replayed_from = replay.parted_at
        batch.offset, batch.last_steps = offset, dict(metrics_filter.last_steps)
        batch.state, batch.timestamp_ms = state, timestamp_ms
    if batch.offset:
        yield batch


def _offset_to_read_from(path: Path, position: LogPosition) -> int:
    """That of the position, if the log still has the line that ends there. In a power cut it may have lost lines that
    were shipped before they were on the disk, and have others there now: then behind the last one that is not younger
    than what was shipped."""
    line = last_event(path, before=position.offset)
    if position.offset == 0 or (line is not None and line.timestamp_ms == position.timestamp_ms):
        return position.offset
    older = [offset for event, offset in read_events(path) if event.timestamp_ms <= position.timestamp_ms]
    return max(older, default=0)


def _state_after(event: Event, *, before: str) -> str:
    """An attempt that its supervisor saw end, and that said nothing itself, was killed."""
    if event.kind == "state":
        return str(event.fields.get("state"))
    if event.kind == "attempt" and before == "running" and event.fields.get("exit_code"):
        return "killed"
    return before


def _add(batch: Batch, event: Event, new: Mapping[str, float]) -> None:
    if event.kind == "metrics":
        for key, value in new.items():
            name = legal_name(key)
            if not math.isfinite(value):
                batch.tags.setdefault(f"smollm2.not_finite.{name}", f"{value} at step {event.step}")
            batch.rows.append(Row(name, value if math.isfinite(value) else math.nan, event.timestamp_ms, event.step))
    elif event.kind == "params":
        batch.params.append(event.fields)
    elif event.kind == "checkpoint":
        batch.tags["smollm2.checkpoint"] = str(event.fields.get("path"))
    elif event.kind == "state" and "reason" in event.fields:
        batch.tags["smollm2.last_failure"] = f"{event.fields.get('state')}: {event.fields['reason']}"
    elif event.kind == "attempt" and event.fields.get("exit_code"):
        batch.tags["smollm2.last_failure"] = f"attempt {event.fields.get('attempt')}: {event.fields.get('reason')}"
    elif event.kind == "incident":
        batch.tags["smollm2.last_incident"] = str(event.fields.get("text"))
    elif event.kind == "dataset":
        batch.datasets.append(event.fields)
    elif event.kind == "text":
        batch.texts[event.step] = str(event.fields.get("text"))


def shorten_param(value: str) -> str:
    """A value that MLflow keeps whole; one over its limit ends in its length and digest instead of being cut unseen."""
    if len(value) <= MAX_PARAM_CHARACTERS:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()[:16]
    ending = f" … ({len(value)} characters, sha256 {digest})"
    return value[: MAX_PARAM_CHARACTERS - len(ending)] + ending


def legal_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and `_-. :/` only."""
    return re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII)[:_MAX_NAME_CHARACTERS]


def read_journal(run: Path) -> Journal | None:
    try:
        return Journal.model_validate_json(journal_file(run).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError):
        logger.warning("%s is not a journal; it is made again from the log", journal_file(run))
        return None


def write_journal(run: Path, journal: Journal) -> None:
    path = journal_file(run)
    path.parent.mkdir(exist_ok=True)
    write_durably(path, (journal.model_dump_json(indent=1) + "\n").encode())
