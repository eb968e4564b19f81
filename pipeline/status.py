"""`status.json`: what a run is at, for other programs. Replaced at once every few seconds, and left behind at the end.

A run that ends by an error or a signal says so. One that was killed outright (`kill -9`, a power cut) leaves `state:
running`, and is known by its `updated`: a thread of its own writes that anew every HEARTBEAT_S, whatever the run is at,
so a run whose `updated` is more than a minute old is dead, as is one on this `host` whose `pid` is gone.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pipeline.interruption import signal_of
from pipeline.shards.format import partial_path
from pipeline.throughput import Snapshot, Throughput

log = logging.getLogger(__name__)

STATUS_FILE = "status.json"
STATUS_INTERVAL_S = 2.0
HEARTBEAT_S = 10.0

Phase = Literal["plan", "tokenizer", "deduplication", "units", "assembly"]
State = Literal["running", "finished", "failed", "interrupted"]


class RunStatus:
    """Keeps the file. A context manager: leaving it says how the run ended, an exception's first line included."""

    def __init__(self, path: Path, *, name: str, executor: str, tell: Callable[[Snapshot], None] | None = None) -> None:
        """`tell` is given every snapshot that is written, too."""
        self._path = path
        self._tell = tell
        self._written = -STATUS_INTERVAL_S
        self._can_write = True
        self._throughput: Throughput | None = None
        self._ended = threading.Event()
        self._writing = threading.RLock()  # a signal may interrupt a write, and the end is written next
        self._content: dict[str, Any] = {
            "name": name,
            "state": "running",
            "phase": "plan",
            "error": None,
            "executor": executor,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": _now(),
            "updated": _now(),
        }

    def __enter__(self) -> RunStatus:
        self._write()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._content["state"] = _end_state(error)
        self._content["error"] = None if error is None else reason_of(error)
        self._write()

    def enter_phase(self, phase: Phase) -> None:
        self._content["phase"] = phase
        self._write()

    def watch(self, throughput: Throughput) -> None:
        """From now on the file tells where the units are as well."""
        self._throughput = throughput

    def refresh(self) -> None:
        """To be called as often as one likes; writes every few seconds."""
        if time.monotonic() - self._written >= STATUS_INTERVAL_S:
            self._write()

    def _beat(self) -> None:
        """A phase that tells nothing for long, such as the training of a tokenizer, is not taken for a death."""
        while not self._ended.wait(HEARTBEAT_S):
            with self._writing:
                if time.monotonic() - self._written >= HEARTBEAT_S and not self._ended.is_set():
                    self._replace()

    def _write(self) -> None:
        with self._writing:
            if self._throughput is not None:
                snapshot = self._throughput.snapshot()
                self._content |= dataclasses.asdict(snapshot, dict_factory=_rounded)
                if self._tell is not None:
                    self._tell(snapshot)
            if self._content["state"] != "running":
                self._content["workers"] = []
            self._replace()

    def _replace(self) -> None:
        """Not synced to the disk: nothing depends on it. Nor does a run end because it cannot be written."""
        self._written = time.monotonic()
        self._content["updated"] = _now()
        temporary = partial_path(self._path)
        try:
            temporary.write_text(json.dumps(self._content, indent=1) + "\n")
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if self._can_write:
                log.warning("%s cannot be written (%s); the run goes on without it", self._path, error.strerror)
            self._can_write = False


def _end_state(error: BaseException | None) -> State:
    if error is None:
        return "finished"
    return "failed" if isinstance(error, Exception) else "interrupted"


def reason_of(error: BaseException) -> str:
    """Why a run did not finish, in one line."""
    if isinstance(error, KeyboardInterrupt):
        return f"stopped by {signal_of(error).name}"
    return (str(error) or type(error).__name__).splitlines()[0]


def _rounded(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in fields}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
