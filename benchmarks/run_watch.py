"""Watches a pipeline run from outside: what its `status.json` says, and what Linux says of its processes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from yardstick import Yardstick

from pipeline.status import STATUS_FILE

LOOK_INTERVAL_S = 0.25
LINE_INTERVAL_S = 10.0

_MEMORY = re.compile(rb"^(VmHWM|VmRSS):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Look:
    """A moment of the run: what it says of itself, and what Linux says of its processes."""

    seconds: float
    tokens: int
    busy_workers: int
    units_done: int
    driver_bytes: int
    largest_worker_bytes: int
    open_files: int

    def __str__(self) -> str:
        return (
            f"driver {self.driver_bytes / 1e6:4.0f} MB, largest worker {self.largest_worker_bytes / 1e6:4.0f} MB, "
            f"{self.open_files} open files"
        )


@dataclass(slots=True)
class Peaks:
    """Of resident memory, in bytes: the driver, the server that workers are forked off, each worker by its pid."""

    driver: int = 0
    server: int = 0
    workers: dict[int, int] = field(default_factory=dict)


def watch(
    process: subprocess.Popen[bytes], dataset: Path, yardstick: Yardstick, *, log: Path
) -> tuple[list[Look], Peaks]:
    """Looks at every new `status.json` until the command ends, and lets the yardstick probe meanwhile; the seconds of
    the looks are by its clock, from then on. Raises SystemExit, with its log, if the command fails."""
    looks: list[Look] = []
    peaks = Peaks()
    run_start_s = math.inf  # of the run's clock, by ours
    driver = psutil.Process(process.pid)
    printed = time.monotonic()
    while process.poll() is None:
        time.sleep(LOOK_INTERVAL_S)
        status = read_status(dataset / STATUS_FILE)
        look = look_at(driver, status, peaks)
        if look is not None and (not looks or look.seconds > looks[-1].seconds):
            run_start_s = min(run_start_s, time.monotonic() - look.seconds)
            looks.append(look)
            if time.monotonic() - printed >= LINE_INTERVAL_S:
                printed = time.monotonic()
                share = status["input_bytes_done"] / status["input_bytes_total"]
                rate = status["input_bytes_per_s_now"] / 1e6
                print(f"  {look.seconds:6.0f} s {share:6.1%} {rate:6.1f} MB/s now, {look}", flush=True)
        yardstick.probe_if_due(driver)
    if process.returncode:
        raise SystemExit(f"the run failed:\n{log.read_text()[-2000:]}")
    return [replace(look, seconds=yardstick.run_seconds(run_start_s + look.seconds)) for look in looks], peaks


def read_status(path: Path) -> dict[str, Any]:
    """Empty before there is one."""
    try:
        status: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return status


def look_at(driver: psutil.Process, status: dict[str, Any], peaks: Peaks) -> Look | None:
    """None before the units are begun, and where a process ends meanwhile."""
    workers = {int(state["worker"].split()[1]) for state in status.get("workers", ())}
    resident: dict[int, int] = {}
    try:
        processes = [driver, *driver.children(recursive=True)]
        open_files = sum(process.num_fds() for process in processes)
        for process in processes:
            now, peak = resident_bytes(process.pid)
            resident[process.pid] = now
            if process == driver:
                peaks.driver = max(peaks.driver, peak)
            elif process.pid in workers or process.pid in peaks.workers:
                peaks.workers[process.pid] = max(peaks.workers.get(process.pid, 0), peak)
            elif process.ppid() == driver.pid:
                peaks.server = max(peaks.server, peak)
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, KeyError):
        return None
    if "seconds" not in status:
        return None
    return Look(
        seconds=status["seconds"],
        tokens=status["tokens"],
        busy_workers=len(workers),
        units_done=status["units_done"],
        driver_bytes=resident[driver.pid],
        largest_worker_bytes=max((resident.get(pid, 0) for pid in peaks.workers), default=0),
        open_files=open_files,
    )


def resident_bytes(pid: int) -> tuple[int, int]:
    """Now, and at most since the process began."""
    found = {name: 1024 * int(kib) for name, kib in _MEMORY.findall(Path(f"/proc/{pid}/status").read_bytes())}
    return found[b"VmRSS"], found[b"VmHWM"]
