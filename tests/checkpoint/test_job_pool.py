"""Jobs in processes of their own: limits, crashes, and what is left when the service itself is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest

from checkpoint import digests
from checkpoint.config import ServiceConfig
from checkpoint.events import events_file
from checkpoint.job_pool import JobPool
from checkpoint.jobs import Context, Job, JobKind, Outcome, Performer
from checkpoint.manifest import checkpoint_directory
from checkpoint.process_memory import private_bytes
from checkpoint.reading import claim_checkpoint
from checkpoint.verdicts import read_verdicts

RunMaker = Callable[..., Path]


@pytest.fixture
def open_pool() -> Iterator[Callable[..., JobPool]]:
    """`open_pool(timeout_s=1)`: a pool with these limits, ended with the test."""
    pools: list[JobPool] = []

    def make(**limits: object) -> JobPool:
        config = ServiceConfig.model_validate({"jobs": limits})
        pools.append(JobPool(Context(config=config, tracking_uri="sqlite://")))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def end_of(pool: JobPool, *jobs: Job, timeout_s: float = 250) -> dict[str, Outcome]:
    """How jobs end, by kind."""
    for job in jobs:
        pool.submit(job)
    outcomes: dict[str, Outcome] = {}
    deadline_s = time.monotonic() + timeout_s
    while len(outcomes) < len(jobs):
        assert time.monotonic() < deadline_s
        outcomes |= {job.kind: outcome for job, outcome in pool.poll()}
        time.sleep(0.05)
    return outcomes


def test_a_job_and_one_that_finds_damage_and_one_of_each_lane(
    make_run: RunMaker, open_pool: Callable[..., JobPool]
) -> None:
    run = make_run("float32")
    outcomes = end_of(open_pool(), Job(kind="verify", run=run, step=4), Job(kind="curve", run=run))
    assert {kind: outcome.blame for kind, outcome in outcomes.items()} == {"verify": "nobody", "curve": "nobody"}
    (checkpoint_directory(run, 2) / "manifest.json").write_text("{")
    pool = open_pool()
    outcome = end_of(pool, Job(kind="verify", run=run, step=2))["verify"]
    assert outcome.blame == "damage"
    assert "is not a checkpoint manifest" in outcome.reason
    assert pool.unfinished() == ()


def test_a_worker_that_cannot_be_started_is_the_machines_fault_and_no_job_is_lost(
    make_run: RunMaker, open_pool: Callable[..., JobPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, pool = make_run("float32"), open_pool()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    verify, curve = Job(kind="verify", run=run, step=4), Job(kind="curve", run=run)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", refuse)
        outcomes = end_of(pool, verify, curve)
    reason = "Resource temporarily unavailable; the service tries again"
    assert outcomes == dict.fromkeys(("verify", "curve"), Outcome(blame="machine", reason=reason))
    assert pool.unfinished() == ()
    assert end_of(pool, verify)["verify"].blame == "nobody"


@pytest.mark.parametrize(("number", "blame"), [(errno.ESTALE, "machine"), (errno.EIO, "job")])
def test_a_checkpoint_that_cannot_be_read_is_not_damaged(
    make_run: RunMaker, monkeypatch: pytest.MonkeyPatch, number: int, blame: str
) -> None:
    run = make_run("float32")
    monkeypatch.setattr(digests, "_digest_range", lambda place, pace: OSError(number, "not now"))
    performer = Performer(Context(config=ServiceConfig(), tracking_uri="sqlite://"))
    for kind in ("verify", "export"):
        outcome = performer.perform(Job(kind=kind, run=run, step=4))  # type: ignore[arg-type]
        assert outcome.blame == blame
        assert outcome.reason.endswith(": not now; the service tries again")
    assert read_verdicts(run) == {}


def test_every_kind_of_job_has_a_lane_and_somebody_who_performs_it(open_pool: Callable[..., JobPool]) -> None:
    pool = open_pool()
    assert set(pool._lane_of) == set(get_args(JobKind)) == set(Performer(pool._lanes[0]._context)._kinds)


def test_a_job_that_hangs_is_ended_and_the_next_one_runs(make_run: RunMaker, open_pool: Callable[..., JobPool]) -> None:
    run = make_run("float32")
    pool = open_pool(timeout_s=20)
    # the job waits for a lock that somebody never gives back
    with claim_checkpoint(checkpoint_directory(run, 4)) as is_free:
        assert is_free
        outcome = end_of(pool, Job(kind="verify", run=run, step=4))["verify"]
    assert (outcome.blame, outcome.reason) == ("job", "it took more than 20 s and was ended; see jobs.timeout_s")
    assert end_of(pool, Job(kind="verify", run=run, step=4))["verify"].blame == "nobody"


def test_a_job_that_takes_too_much_memory_is_ended(new_run: RunMaker, open_pool: Callable[..., JobPool]) -> None:
    run = new_run()
    log = events_file(run)
    log.parent.mkdir()
    with log.open("wb") as file:
        file.truncate(8 << 30)  # a sparse file: one line of 8 GB
    outcome = end_of(open_pool(memory_limit_bytes=1 << 29), Job(kind="curve", run=run))["curve"]
    assert outcome.blame == "job"
    assert "bytes of memory and was ended; wanted at most jobs.memory_limit_bytes=536,870,912" in outcome.reason


def test_a_worker_that_is_killed_is_told_and_replaced(new_run: RunMaker, open_pool: Callable[..., JobPool]) -> None:
    run, pool = new_run(), open_pool()
    job = Job(kind="curve", run=run)
    pool.submit(job)
    pool.poll()
    worker = pool._lanes[0]._worker
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    ((_, outcome),) = pool.poll()
    assert (outcome.blame, outcome.reason) == ("job", "its process ended (signal SIGKILL): without a word")
    assert end_of(pool, job)["curve"].blame == "nobody"


def test_a_worker_that_is_killed_before_it_takes_its_job_is_told_and_replaced(
    new_run: RunMaker, open_pool: Callable[..., JobPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, job = open_pool(), Job(kind="curve", run=new_run())
    assert end_of(pool, job)["curve"].blame == "nobody"
    worker = pool._lanes[0]._worker
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    answers, poll = [None], worker.poll  # it dies just after it was asked whether it lives
    monkeypatch.setattr(worker, "poll", lambda: answers.pop() if answers else poll())
    assert end_of(pool, job)["curve"].reason == "its process ended (signal SIGKILL): without a word"
    assert end_of(pool, job)["curve"].blame == "nobody"


def test_modules_in_the_services_current_folder_are_not_the_jobs(
    make_run: RunMaker, open_pool: Callable[..., JobPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("float32")
    for name in ("model", "torch", "xxhash"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    assert end_of(open_pool(), Job(kind="verify", run=run, step=4))["verify"].blame == "nobody"


def test_the_command_line_of_a_worker_tells_no_password(new_run: RunMaker) -> None:
    uri = "postgresql://service:secret@127.0.0.1/mlflow"
    pool = JobPool(Context(config=ServiceConfig(tracking_uri=uri), tracking_uri=uri))
    try:
        pool.submit(Job(kind="curve", run=new_run()))
        pool.poll()
        worker = pool._lanes[0]._worker
        assert worker is not None
        # empty for a moment after exec
        while not (command := Path(f"/proc/{worker.pid}/cmdline").read_bytes()):
            assert worker.poll() is None
        assert b"checkpoint.worker" in command
        assert b"secret" not in command
    finally:
        pool.close()


def test_a_defect_of_ours_is_the_jobs_last_words(tmp_path: Path, open_pool: Callable[..., JobPool]) -> None:
    outcome = end_of(open_pool(), Job(kind="verify", run=tmp_path))["verify"]
    assert outcome.blame == "job"
    assert outcome.reason == "its process ended (exit code 1): AssertionError"


def test_no_job_outlives_a_service_that_is_killed(make_run: RunMaker) -> None:
    run = make_run("float32")
    program = (
        "import time\nfrom pathlib import Path\n"
        "from checkpoint.config import ServiceConfig\nfrom checkpoint.job_pool import JobPool\n"
        "from checkpoint.jobs import Context, Job\n"
        "pool = JobPool(Context(config=ServiceConfig(), tracking_uri='sqlite://'))\n"
        f"pool.submit(Job(kind='verify', run=Path({str(run)!r}), step=4))\n"
        "pool.poll()\n"
        "print(pool._lanes[1]._worker.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with (
        claim_checkpoint(checkpoint_directory(run, 4)),
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as service,
    ):
        assert service.stdout is not None
        worker = int(service.stdout.readline())
        os.kill(worker, 0)
        service.kill()
        deadline_s = time.monotonic() + 60
        while Path(f"/proc/{worker}").exists() and _state(worker) != "Z" and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert not Path(f"/proc/{worker}").exists() or _state(worker) == "Z"


def _state(process: int) -> str:
    """Z: it has ended, and its parent has not asked how."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_memory_counts_children_and_leaves_out_file_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(50_000_000))
    child = (
        "import mmap, sys\n"
        f"file = open({str(tmp_path / 'file')!r})\n"
        "view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "sum(view[::4096])\nheld = b'x' * 60_000_000\nprint(flush=True)\nsys.stdin.read()\n"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        taken = private_bytes(process.pid)
        process.communicate("")
    assert 60_000_000 < taken < 110_000_000
    assert private_bytes(process.pid) == 0
