"""One service a folder, whatever became of the one before."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint.lease import hold_lease
from checkpoint.manifest import CheckpointError

HOLDER = """
import sys, time
from pathlib import Path
from checkpoint.lease import hold_lease
with hold_lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_told_who_holds_it_and_a_kill_gives_it_back(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        words = (
            rf"another service is at work in {tmp_path} \(process {holder.pid} on \S+ since \d{{4}}-.* UTC\); end it"
        )
        with pytest.raises(CheckpointError, match=words), hold_lease(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with hold_lease(tmp_path):
        assert f"process {holder.pid}" not in (tmp_path / ".service.lock").read_text()
