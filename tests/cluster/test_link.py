"""The cable between two nodes is cut: both end within a minute of the limit, and the run says who was lost."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

LIMIT_S = 5.0


def test_cut_link_ends_both_nodes_and_names_the_one_that_is_lost(cluster: Any) -> None:
    process = cluster.train("steps=20000", f"watchdog.floor_s={LIMIT_S}", "watchdog.factor=1")
    cluster.wait_for_step(5, process)
    heartbeats = cluster.folder / "run" / "logs" / "heartbeats"
    cut_s = time.monotonic()
    subprocess.run(["ip", "-n", cluster.namespaces["nodeb"], "link", "set", "eth0", "down"], check=True)
    # the disk that both share here would be behind the same cable
    cluster.inside("nodeb", "mount", "-t", "tmpfs", "tmpfs", str(heartbeats))
    cluster.assert_out(within_s=60)
    out_s = time.monotonic() - cut_s
    code = process.wait(timeout=60)
    assert code not in (0, 130, 143)
    told = json.loads((heartbeats / "hang.json").read_text())
    assert told["culprits"] == [1]
    assert " on nodeb, " in told["text"]
    assert cluster.events()[-1].fields["state"] == "failed"
    print(f"both out {out_s:.0f} s after the cut: {told['text']}")
