"""The tiny run on two nodes: the losses of one node, and what each fault of a node does to both."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from checkpoint.manifest import list_steps, verify_checkpoint

pytestmark = pytest.mark.cluster

END_S = 250


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def whole_steps(run: Path) -> list[int]:
    """Steps whose checkpoints verify."""
    return [step for step in list_steps(run) if not verify_checkpoint(run / "checkpoints" / f"step-{step:08d}")]


def test_losses_are_those_of_one_node(cluster: Any) -> None:
    code, _, err = ended(cluster.train())
    assert code == 0, err
    two_nodes = cluster.losses()
    assert sorted(two_nodes) == list(range(1, 13))
    (cluster.folder / "run").rename(cluster.folder / "run-of-two-nodes")
    code, _, err = ended(cluster.start("train", str(cluster.folder / "tiny.yaml"), "launcher.ranks_per_node=2"))
    assert code == 0, err
    assert cluster.losses() == two_nodes


@pytest.mark.parametrize(("launcher", "program"), [("openmpi", "ompi_info"), ("mpich", "mpiexec.hydra")])
def test_mpi_launchers_train_and_tell_of_a_killed_rank(cluster: Any, launcher: str, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs Debian's {launcher}")
    settings = [f"launcher.remote_launcher={launcher}", "launcher.master_addr=10.77.0.1"]
    code, _, err = ended(cluster.train(*settings))
    assert code == 0, err
    assert sorted(cluster.losses()) == list(range(1, 13))
    process = cluster.train(*settings, "steps=2000")
    cluster.wait_for_step(14, process)
    [rank] = cluster.ranks("nodeb")
    os.kill(rank, signal.SIGKILL)
    code, _, err = ended(process)
    assert code not in (0, 130, 143), err
    cluster.assert_out(within_s=30)


def test_killed_rank_takes_both_nodes_out(cluster: Any) -> None:
    process = cluster.train("steps=2000")
    cluster.wait_for_step(3, process)
    [rank] = cluster.ranks("nodeb")
    started_s = time.monotonic()
    os.kill(rank, signal.SIGKILL)
    code, _, err = ended(process)
    assert code not in (0, 130, 143), err
    assert "launch train: " in err
    cluster.assert_out(within_s=30)
    assert time.monotonic() - started_s < 60
    assert cluster.events()[-1].fields.get("state") == "failed"


def test_sigterm_to_the_launcher_saves_on_both_nodes(cluster: Any) -> None:
    process = cluster.train("steps=2000", "checkpoint.every_steps=1000")
    cluster.wait_for_step(3, process)
    [launcher] = [pid for pid in cluster.processes("nodea", "-m", "launch", "train") if pid != process.pid][-1:]
    os.kill(launcher, signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 143, err
    cluster.assert_out(within_s=30)
    run = cluster.folder / "run"
    [step] = whole_steps(run)
    assert step >= 3
    assert cluster.events()[-1].fields == {"state": "killed", "reason": "SIGTERM"}


def test_full_disk_of_one_node_ends_both_and_loses_nothing(cluster: Any) -> None:
    process = cluster.train("steps=2000", "checkpoint.every_steps=40")
    cluster.wait_for_step(1, process)
    # over the shared folder, in the mounts of nodeb alone
    full = cluster.folder / "run" / "checkpoints"
    full.mkdir(exist_ok=True)
    cluster.inside("nodeb", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full))
    code, _, err = ended(process)
    assert code != 0
    assert "launch train: rank 1 on nodeb: the checkpoint of step 40 could not be written" in err
    assert "Traceback" not in err
    cluster.assert_out(within_s=30)
    cluster.inside("nodeb", "umount", str(full))
    # what was not whole does not count, and the run goes on when there is space again
    assert whole_steps(cluster.folder / "run") == list_steps(cluster.folder / "run")
    code, _, err = ended(cluster.train("steps=45", "checkpoint.every_steps=40"))
    assert code == 0, err
    assert whole_steps(cluster.folder / "run")[-1] == 45
