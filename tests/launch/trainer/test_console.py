"""Where the words of a rank go. Each case is a process of its own, because descriptors 1 and 2 are led away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.trainer.console import is_lost_peer, open_console, summary

ROOT = Path(__file__).resolve().parents[3]


def speak(run_dir: Path, code: str, *, rank: int = 0) -> subprocess.CompletedProcess[str]:
    start = (
        "import os, sys; from pathlib import Path; from launch.config import LocalError, TrainingError; "
        f"from launch.trainer.console import open_console; console = open_console(Path({str(run_dir)!r}), rank={rank})"
    )
    return subprocess.run([sys.executable, "-c", f"{start}\n{code}"], cwd=ROOT, capture_output=True, text=True)


def test_noise_goes_to_the_log_even_from_below_python(tmp_path: Path) -> None:
    shown = speak(tmp_path, "print('python noise')\nos.system('echo child noise; echo child error >&2')")
    assert (shown.stdout, shown.stderr) == ("", "")
    log = (tmp_path / "logs" / "rank-0.log").read_text()
    assert all(words in log for words in ("python noise", "child noise", "child error"))


def test_rank_0_speaks_to_the_user_and_the_log_keeps_it(tmp_path: Path) -> None:
    assert speak(tmp_path, "console.line('step 1')").stdout == "step 1\n"
    assert "step 1" in (tmp_path / "logs" / "rank-0.log").read_text()


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    shown = speak(tmp_path, "console.line('step 1'); console.user_error(TrainingError('no'))", rank=3)
    assert (shown.stdout, shown.stderr) == ("", "")
    assert "step 1" in (tmp_path / "logs" / "rank-3.log").read_text()


def test_each_line_of_a_users_error_says_who_speaks(tmp_path: Path) -> None:
    shown = speak(tmp_path, "console.user_error(TrainingError('one\\ntwo'))")
    assert shown.stderr == "launch train: one\nlaunch train: two\n"


def test_error_that_one_rank_found_alone_is_told_by_it(tmp_path: Path) -> None:
    assert speak(tmp_path, "console.user_error(LocalError('disk'))", rank=1).stderr == "launch train: disk\n"


def test_defect_is_one_line_and_the_way_to_the_log(tmp_path: Path) -> None:
    code = "try:\n    {}['weight']\nexcept KeyError as error:\n    console.defect(error)"
    shown = speak(tmp_path, code, rank=1)
    log = tmp_path / "logs" / "rank-1.log"
    assert shown.stderr == f"launch train: rank 1: KeyError: 'weight'; the log is {log}\n"
    assert "Traceback" in log.read_text()


def test_full_disk_is_the_users_and_says_what_to_do(tmp_path: Path) -> None:
    code = "import errno\nsys.exit(console.os_error(OSError(errno.ENOSPC, 'No space left on device', 'events')))"
    shown = speak(tmp_path, code, rank=1)
    assert shown.stderr == (
        "launch train: events: No space left on device; mend that and run the same command to go on\n"
    )
    assert shown.returncode == 2


def test_log_on_a_full_disk_does_not_silence_the_words(tmp_path: Path) -> None:
    said = "console.line('step 1'); console.user_error(TrainingError('disk')); console.defect(RuntimeError('x'))"
    shown = speak(tmp_path, f"full = os.open('/dev/full', os.O_WRONLY); os.dup2(full, 1); os.dup2(full, 2)\n{said}")
    assert shown.stdout == "step 1\n"
    assert [line.split(";")[0] for line in shown.stderr.splitlines()] == [
        "launch train: disk",
        "launch train: rank 0: RuntimeError: x",
    ]


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_a_lost_peer_is_told_by_rank_0_only(tmp_path: Path, rank: int, lines: int) -> None:
    code = "console.defect(RuntimeError('[gloo] Connection closed by peer [127.0.0.1]:9'))"
    shown = speak(tmp_path, code, rank=rank)
    assert shown.stderr.count("another rank is gone") == lines


def test_lost_peer_is_a_failed_collective_and_nothing_else() -> None:
    assert is_lost_peer(RuntimeError("Connection reset by peer"))
    # a node that is gone resets nothing
    gone = "pair.cc:547] Read error [10.0.0.2]:9: Connection timed out. Check the logs of the remote worker. GLHF! 🏖️"
    assert is_lost_peer(RuntimeError(gone))
    assert not is_lost_peer(RuntimeError("shape mismatch"))
    assert not is_lost_peer(OSError("Broken pipe"))


def test_summary_is_the_first_line_of_the_exception() -> None:
    assert summary(RuntimeError("first\nsecond")) == "RuntimeError: first"


def test_folder_that_takes_no_log_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be written.*choose a folder that this user may write to"):
        open_console(tmp_path / "file" / "run", rank=0)
