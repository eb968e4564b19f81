"""The checkpoint service: looks at every run below a folder, and does what is missing, a job at a time.

Its state is what is on the disk: an export that exists is done, one that is quarantined has been judged, a journal says
how far a log was shipped. So it may be killed at any time and started again. Jobs run in processes of their own
(`job_pool.py`); what is to be done is decided by `agenda.py`, when a failed job is tried again by `failures.py`.

This file is the loop alone: it looks, submits, and takes down how jobs ended. It reads no tensor and no network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from checkpoint.config import ServiceConfig
from checkpoint.job_pool import JobPool, JobRunner
from checkpoint.jobs import Blame, Context, Job, JobKind, Outcome, describe_os_error
from checkpoint.managed_run import ManagedRun
from checkpoint.manifest import CheckpointError
from checkpoint.prune import checkpoints_disk
from checkpoint.run_record import RUN_FILE
from checkpoint.status import Disk, JobCount, ServiceStatus

logger = logging.getLogger(__name__)

DATABASE_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "mlartifacts"
_TICK_S = 0.1  # between looks at running jobs
_QUEUE_LENGTH = 100  # jobs that wait; a waiting job holds its run's lock, and open files are limited
_MAX_REPEATS = 4  # of one job, when the service is to end by itself
_SWEEP_S = 3600.0
_SERVER_PAUSE_S = 60.0  # before a server that was away is asked again for the sake of another run


class Service:
    """Looks after the runs below one folder. `runner` None: jobs in processes of their own."""

    def __init__(self, runs_directory: Path, config: ServiceConfig, *, runner: JobRunner | None = None) -> None:
        self.runs_directory, self.config = runs_directory.resolve(), config
        self.tracking_uri = config.tracking_uri or f"sqlite:///{self.runs_directory / DATABASE_FILE}"
        local = self.tracking_uri.startswith("sqlite:")
        self.context = Context(
            config=config,
            tracking_uri=self.tracking_uri,
            artifact_location=(self.runs_directory / ARTIFACTS_FOLDER).as_uri() if local else None,
        )
        self._runner = runner or JobPool(self.context)
        self._runs: dict[Path, ManagedRun] = {}
        self._requests: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._server_is_away_until_s = 0.0
        self._next_sweep_s = 0.0
        self._was_full = False
        self._ended: Counter[tuple[JobKind, Blame]] = Counter()
        self.status = ServiceStatus(
            started_s=time.time(), looked_s=0.0, runs=(), queue=(), disk=self._disk(self.runs_directory)
        )

    def run_until_done(self) -> ServiceStatus:
        """Look at every run and do what is to be done, until nothing is left that can be done now.

        A job that comes again and again, because its run goes on, is left after some repeats.
        """
        try:
            self.look()
            self._take_requests()
            while self._runner.unfinished():
                if not self._go_on(max_repeats=_MAX_REPEATS):
                    time.sleep(_TICK_S)
            return self.status
        finally:
            self.close()

    def run_forever(self) -> None:
        """Look again and again until the process is told to end. Trouble is told when it is new, not at every look."""
        said: set[str] = set()
        next_look_s = 0.0
        try:
            while True:
                has_news = self._unless_away(self._go_on)
                if self._unless_away(self._take_requests) or time.monotonic() >= next_look_s:
                    has_news = self._unless_away(self._look_again)
                    next_look_s = time.monotonic() + self.config.poll_seconds
                if has_news:
                    problems = self.status.problems
                    for problem in problems:
                        if problem not in said:
                            logger.warning("%s", problem)
                    said = set(problems)
                time.sleep(_TICK_S)
        finally:
            self.close()

    def _look_again(self) -> bool:
        self.look()
        self.scrub_next()
        return True

    def _unless_away(self, act: Callable[[], bool]) -> bool:
        """What `act` says, or False: a file server that is away for a while does not end the service."""
        try:
            return act()
        except (CheckpointError, OSError) as error:
            reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
            logger.warning("%s", reason)
            return False

    def request(self, job: Job) -> None:
        """Do a job soon, although it failed before or would not be due. May be called from any thread."""
        self._requests.put(job)

    def run_folders(self) -> tuple[Path, ...]:
        """Those that were found at the last look. May be called from any thread."""
        return tuple(self._runs)

    def close(self) -> None:
        """End the jobs; each is whole or absent on the disk."""
        self._runner.close()
        for run in self._runs.values():
            run.release()

    def look(self, *, max_repeats: int | None = None) -> None:
        """Look at every run, and put what is due into the queue while that has room."""
        sweeping = time.monotonic() >= self._next_sweep_s
        if sweeping:
            self._next_sweep_s = time.monotonic() + _SWEEP_S
        self._look(self._find(), max_repeats=max_repeats, sweeping=sweeping)

    def _find(self) -> list[ManagedRun]:
        folders = find_runs(self.runs_directory)
        for gone in self._runs.keys() - set(folders):
            if not self._runs[gone].jobs:  # else it may be back before they end, and they are not to be begun twice
                self._runs.pop(gone).release()
        for new in set(folders) - self._runs.keys():
            self._runs[new] = ManagedRun(new, self.config)
        return [self._runs[folder] for folder in folders]

    def _look(self, runs: Iterable[ManagedRun], *, max_repeats: int | None, sweeping: bool = False) -> None:
        disk = self._disk(self.runs_directory)
        percents = {self.runs_directory.stat().st_dev: disk.percent_above_mark}
        for run in runs:
            percent = self._percent_above_mark(run.run, percents)
            for job in run.look(percent_above_mark=percent, sweeping=sweeping):
                if max_repeats is None or run.submissions[job] < max_repeats:
                    self._submit(run, job)
        self._tell(disk)

    def _submit(self, run: ManagedRun, job: Job) -> None:
        is_full = len(self._runner.unfinished()) >= _QUEUE_LENGTH
        self._was_full = self._was_full or is_full
        is_waited_for = job.kind == "ship" and time.monotonic() < self._server_is_away_until_s
        if not is_full and not is_waited_for and run.begin(job):
            self._runner.submit(job)

    def _go_on(self, *, max_repeats: int | None = None) -> bool:
        """Take down which jobs have ended, and look at their runs again; whether any has."""
        ended = self._runner.poll()
        touched: dict[Path, ManagedRun] = {}
        for job, outcome in ended:
            self._ended[job.kind, outcome.blame] += 1
            if job.kind == "ship":
                self._heed_server(outcome)
            run = self._runs.get(job.run)
            if run is not None:
                run.end(job, outcome)
                touched[job.run] = run
        if self._was_full and len(self._runner.unfinished()) < _QUEUE_LENGTH // 2:
            self._was_full = False
            self.look(max_repeats=max_repeats)
        elif touched:
            self._look(touched.values(), max_repeats=max_repeats)
        return bool(ended)

    def _heed_server(self, outcome: Outcome) -> None:
        """A dead server costs each run that asks it seconds: after one has, the others wait."""
        away = outcome.blame == "machine"
        self._server_is_away_until_s = time.monotonic() + _SERVER_PAUSE_S if away else 0.0

    def _take_requests(self) -> bool:
        had_any = False
        while not self._requests.empty() and len(self._runner.unfinished()) < _QUEUE_LENGTH:
            had_any = True
            job = self._requests.get()
            run = self._runs.get(job.run)
            if run is not None and job not in run.jobs:
                with contextlib.suppress(OSError):  # a full disk: it is forgotten here, and on the disk once it ends
                    run.failures.forget(job)
                self._submit(run, job)
        return had_any

    def scrub_next(self) -> None:
        """Hash the checkpoint whose last hashing is longest ago, one at a time."""
        is_busy = any(job.kind == "scrub" for job in self._runner.unfinished())
        if self.config.scrub_bytes_per_second is None or is_busy:
            return
        oldest = min((turn for run in self._runs.values() for turn in run.scrub_turns()), default=None)
        if oldest is not None:
            self._submit(self._runs[oldest.run], Job(kind="scrub", run=oldest.run, step=oldest.step))

    def _tell(self, disk: Disk) -> None:
        self.status = ServiceStatus(
            started_s=self.status.started_s,
            looked_s=time.time(),
            runs=tuple(self._runs[folder].status for folder in sorted(self._runs)),
            queue=tuple(str(job) for job in self._runner.unfinished()),
            ended_jobs=tuple(JobCount(kind=key[0], blame=key[1], count=count) for key, count in self._ended.items()),
            disk=disk,
        )

    def _percent_above_mark(self, run: Path, percents: dict[int, int]) -> int:
        """Of the disk that a run's checkpoints lie on; `percents`, by device, are those measured in this look."""
        if self.config.retention is None:
            return 0
        try:
            folder = checkpoints_disk(run)
            device = folder.stat().st_dev
            if device not in percents:
                percents[device] = self._disk(folder).percent_above_mark
        except (CheckpointError, OSError):
            return 0  # the run's own look tells of it
        return percents[device]

    def _disk(self, folder: Path) -> Disk:
        try:
            usage = shutil.disk_usage(folder)
        except OSError as error:
            raise CheckpointError(describe_os_error(error)) from None
        retention = self.config.retention
        mark = retention.disk_high_water_fraction if retention else None
        return Disk(used_bytes=usage.used, total_bytes=usage.used + usage.free, high_water_fraction=mark)


def find_runs(directory: Path) -> list[Path]:
    """The folder itself if it is a run's, else the run folders directly below it, by name.

    One that this user may not enter (somebody else's, or a disk's `lost+found`) is none of his runs, and a link to
    another of them is no second run. One whose name is not UTF-8 is told once and passed over. Raises CheckpointError
    for a folder that does not exist, and for one whose own path is not UTF-8.
    """
    is_itself_run = (directory / RUN_FILE).is_file()
    if not is_itself_run and not directory.is_dir():
        raise CheckpointError(f"{directory} does not exist; name the folder that holds the run folders")
    if not _is_utf8(directory.resolve()):
        raise CheckpointError(f"{os.fsencode(directory.resolve())!r}: the path is not UTF-8; rename the folder")
    if is_itself_run:
        return [directory]
    return sorted(entry for entry in directory.iterdir() if _is_run(entry))


def _is_run(folder: Path) -> bool:
    try:
        is_alias = folder.is_symlink() and folder.resolve().parent == folder.parent.resolve()
        is_run = not is_alias and (folder / RUN_FILE).is_file()
    except (PermissionError, RuntimeError):  # the latter of a link that leads to itself, up to Python 3.12
        return False
    except OSError:
        is_run = True  # a file system that does not answer: the run's own look tells of it, and hides no other run
    if is_run and not _is_utf8(folder):
        _tell_of_name(folder)
        return False
    return is_run


def _is_utf8(path: Path) -> bool:
    """What is not cannot be written into a job, a journal or MLflow."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@cache  # told once, not at every look
def _tell_of_name(folder: Path) -> None:
    logger.warning("%r is passed over: the name is not UTF-8; rename the folder", os.fsencode(folder.name))
