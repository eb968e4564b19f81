"""A node that is gone for good: the run ends, and the same command goes on with what is left."""

from __future__ import annotations

import signal
from typing import Any

import pytest

pytestmark = pytest.mark.cluster


def test_run_goes_on_without_the_node_that_is_gone(cluster: Any) -> None:
    process = cluster.train("steps=2000", "checkpoint.every_steps=10")
    cluster.wait_for_step(11, process)
    # with it go its sshd, its ranks and DeepSpeed's watcher of them
    cluster.nodes["nodeb"].send_signal(signal.SIGKILL)
    cluster.nodes["nodeb"].wait(timeout=30)
    process.communicate(timeout=250)
    assert process.returncode not in (0, 130, 143)
    cluster.assert_out(within_s=30)
    before = max(cluster.losses())
    (cluster.folder / "hostfile").write_text("nodea slots=1\n")
    process = cluster.train(f"steps={before + 10}", "checkpoint.every_steps=10")
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert "resuming from step-" in out
    assert sorted(cluster.losses()) == list(range(1, before + 11))
