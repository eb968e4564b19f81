"""Ends a run that hangs, within a minute of its limit, and says who held it up.

A thread of every rank looks at its own heartbeat each second and writes it to the run's folder every five. A rank that
is over its limit writes its stacks, gives the other ranks' files time to change, reads them, and ends its process with
HANG_EXIT_CODE, whatever its main thread is stuck in; DeepSpeed's launcher then ends what is left. The first living rank
writes the event and tells the user. Other ranks see `RUN/logs/heartbeats/hang.json`, write their stacks and end too.

No torch, and nothing here touches a process group: files alone, so that it works when the network does not.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from checkpoint.events import EventWriter, events_file
from launch.supervision_config import WatchdogConfig
from launch.trainer.hang import Hang, diagnose
from launch.trainer.heartbeat import Heartbeat, Sign, heartbeat_file, read_sign, write_sign
from launch.trainer.orphans import parent_of
from launch.trainer.ranks import RankEnvironment
from launch.trainer.stacks import main_thread_place, write_flight_record, write_stacks

HANG_EXIT_CODE = 72
POLL_INTERVAL_S = 1.0
WRITE_INTERVAL_S = 5.0
GRACE_S = 12.0  # in which every living rank writes twice
KILL_DELAY_S = 4
_SUSPENDED_S = 5.0  # a thread that slept so much longer than it asked for was stopped with its whole process


class Watchdog:
    """`start` begins the watching, which ends with the process. `heartbeat` is the training loop's."""

    def __init__(
        self, config: WatchdogConfig, ranks: RankEnvironment, *, run_dir: Path, alarm: Callable[[str], None]
    ) -> None:
        """`alarm` shows a line to the user, from any rank."""
        self.heartbeat = Heartbeat()
        self._config, self._ranks, self._run_dir, self._alarm = config, ranks, run_dir, alarm
        self._host = socket.gethostname()
        self._written = 0
        self._marker = heartbeat_file(run_dir, 0).with_name("hang.json")

    def start(self) -> None:
        if self._config.enabled:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        old_marker = _identity(self._marker)  # an earlier attempt's
        written_s = -WRITE_INTERVAL_S
        while True:
            now_s = time.monotonic()
            if now_s - written_s >= WRITE_INTERVAL_S:
                self._write()
                written_s = now_s
                if _identity(self._marker) not in (None, old_marker):
                    # told already, and by now who told it may look dead
                    self._end(told=True)
            if self.heartbeat.seconds_over(self._config) > 0:
                self._end(told=False)
            time.sleep(POLL_INTERVAL_S)
            stopped_s = time.monotonic() - now_s - POLL_INTERVAL_S
            if stopped_s > _SUSPENDED_S:
                self.heartbeat.forgive(stopped_s)

    def _end(self, *, told: bool) -> None:
        try:
            # a full disk must not keep the rest from being told
            with suppress(OSError):
                write_stacks(self._run_dir, self._ranks.rank)
            if not told:
                hang, is_speaker = self._diagnose()
                if is_speaker:
                    self._tell(hang)
            with suppress(Exception):  # private to torch
                write_flight_record(self._run_dir, self._ranks.rank)
        finally:
            # not sys.exit: the main thread never ends
            os._exit(HANG_EXIT_CODE)

    def _diagnose(self) -> tuple[Hang, bool]:
        """What hangs, and whether this rank is the one to tell it."""
        self._write(is_over_limit=True)
        before = {rank: read_sign(self._run_dir, rank) for rank in range(self._ranks.world_size)}
        deadline_s = time.monotonic() + GRACE_S
        while time.monotonic() < deadline_s:
            time.sleep(POLL_INTERVAL_S)
            self._write(is_over_limit=True)
        after = {rank: read_sign(self._run_dir, rank) for rank in range(self._ranks.world_size)}
        silent = [sign for rank, sign in after.items() if sign is not None and sign == before[rank]]
        for sign in silent:
            self._kill_sibling_soon(sign)
        living = [rank for rank, sign in after.items() if sign is not None and sign not in silent]
        return diagnose(before, after), self._ranks.rank == min(living, default=self._ranks.rank)

    def _kill_sibling_soon(self, sign: Sign) -> None:
        """A rank that is stopped heeds nothing less, and DeepSpeed's launcher would give it 30 seconds for it."""
        # by its parent, ours too, it is known to be no stranger that has got the number of a rank of long ago
        if sign.host == self._host and parent_of(sign.pid) == os.getppid():
            # later than our own end: the exit code that the launcher sees first is the one that it passes on
            command = f"sleep {KILL_DELAY_S}; kill -KILL {sign.pid}"
            with suppress(OSError):
                subprocess.Popen(["sh", "-c", command], stdin=subprocess.DEVNULL, start_new_session=True)

    def _tell(self, hang: Hang) -> None:
        line = f"hang at step {hang.step}: {hang.text}"
        logs = self._run_dir / "logs"
        self._alarm(f"{line}. The run was ended; the ranks' stacks are in {logs}/stacks-rank-*.txt")
        self._marker.write_text(json.dumps(asdict(hang)), encoding="utf-8")
        with EventWriter(events_file(self._run_dir)) as events:
            events.write("incident", step=hang.step, what="hang", text=line, ranks=list(hang.culprits))
            events.write("state", step=hang.step, state="failed", reason=line)
            events.sync()

    def _write(self, *, is_over_limit: bool = False) -> None:
        self._written += 1
        collective, where = main_thread_place() if is_over_limit else (None, "")
        heartbeat = self.heartbeat
        sign = Sign(
            rank=self._ranks.rank,
            host=self._host,
            pid=os.getpid(),
            written=self._written,
            beats=heartbeat.beats,
            step=heartbeat.step_number,
            phase=heartbeat.phase_name,
            is_over_limit=is_over_limit,
            collective=collective,
            where=where,
        )
        # a full disk must not end the watching
        with suppress(OSError):
            write_sign(self._run_dir, sign)


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
