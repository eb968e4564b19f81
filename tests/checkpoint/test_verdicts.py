"""What hashing found, written down by several processes at once."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from checkpoint import verdicts
from checkpoint.manifest import checkpoint_directory
from checkpoint.verdicts import Verdict, read_verdicts, remember


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1 and 2, of which only the manifests' times are looked at."""
    for step in (1, 2):
        checkpoint_directory(tmp_path, step).mkdir(parents=True)
        (checkpoint_directory(tmp_path, step) / "manifest.json").touch()
    return tmp_path


def test_two_that_write_at_once_lose_no_verdict(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_have_read = threading.Barrier(2)

    def read_and_wait(run: Path) -> dict[int, Verdict]:
        read = read_verdicts(run)
        # without a turn each both are here; with one the first waits in vain
        with contextlib.suppress(threading.BrokenBarrierError):
            both_have_read.wait(timeout=0.3)
        return read

    monkeypatch.setattr(verdicts, "read_verdicts", read_and_wait)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda step: remember(run, step, Verdict(manifest_mtime_ns=step, checked_s=0.0)), (1, 2)))
    assert read_verdicts(run).keys() == {1, 2}


def test_verdicts_of_steps_that_are_gone_are_forgotten(run: Path) -> None:
    remember(run, 1, Verdict(manifest_mtime_ns=1, checked_s=0.0))
    (checkpoint_directory(run, 1) / "manifest.json").unlink()
    remember(run, 2, Verdict(manifest_mtime_ns=2, checked_s=0.0))
    assert read_verdicts(run).keys() == {2}
