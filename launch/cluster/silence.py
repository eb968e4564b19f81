"""Notices from outside that no rank is alive any more while the launcher still waits for one.

A node that is gone leaves its ssh, and so DeepSpeed's launcher, waiting for ever. The ranks' watchdogs end the ranks
that are left (`launch/trainer/watchdog.py`); then no heartbeat changes any more, on any node.
"""

from __future__ import annotations

import time
from pathlib import Path

SILENCE_S = 120.0
POLL_INTERVAL_S = 5.0


class Silence:
    """Of one attempt: begins to count when a heartbeat has changed since it was made. Files alone, no network."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "logs" / "heartbeats"
        self._seen = self._look()
        self._looked_s = time.monotonic()
        self._changed_s: float | None = None

    def is_long(self) -> bool:
        """Whether every rank has been silent for SILENCE_S; False before the first sign of life.

        To be asked every POLL_INTERVAL_S. A longer pause between two questions is no silence: what stopped this process
        may have stopped the ranks too (`scontrol suspend`).
        """
        seen, now_s = self._look(), time.monotonic()
        pause_s, self._looked_s = now_s - self._looked_s, now_s
        if seen != self._seen:
            self._seen, self._changed_s = seen, now_s
        elif self._changed_s is not None and pause_s > 2 * POLL_INTERVAL_S:
            self._changed_s += pause_s
        return self._changed_s is not None and now_s - self._changed_s > SILENCE_S

    def _look(self) -> dict[str, int]:
        found = {}
        for file in self._folder.glob("rank-*.json"):
            try:
                found[file.name] = file.stat().st_mtime_ns
            except OSError:  # replaced at this moment
                continue
        return found
