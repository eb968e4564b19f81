"""Preflight on two nodes: in order, and with a fault of each kind planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]


def preflight(cluster: Any) -> tuple[int, list[dict[str, Any]]]:
    hostfile = f"launcher.hostfile={cluster.folder / 'hostfile'}"
    process = cluster.start("preflight", str(cluster.folder / "tiny.yaml"), hostfile, "--json")
    out, err = process.communicate(timeout=500)
    assert process.returncode in (0, 1), err
    return process.returncode, json.loads(out)


def test_cluster_in_order_has_no_problem_and_its_bandwidth_is_told(cluster: Any) -> None:
    code, findings = preflight(cluster)
    assert code == 0, findings
    told = {finding["check"]: finding["what"] for finding in findings if finding["status"] == "ok"}
    assert told["reach"] == "2 nodes answered"
    assert told["run folder"] == "is shared: each of 2 sees what the others write"
    assert told["all-reduce"].startswith("2 ranks, 4 MiB, ")
    assert told["step"].startswith("forward, backward and step of 4 x 64 tokens in ")


def test_planted_faults_are_all_named(cluster: Any) -> None:
    (cluster.folder / "hostfile").write_text(
        "nodea slots=1\nnodeb slots=4000\nnodec slots=1\nnodea slots=1\n"  # too many, unreachable, twice
    )
    run = cluster.folder / "run"
    run.mkdir()
    # other code, no dataset and a disk of its own, which is full, on nodeb
    changed = cluster.folder / "rope.py"
    changed.write_text((ROOT / "model" / "rope.py").read_text() + "\n# changed\n")
    cluster.inside("nodeb", "mount", "--bind", str(changed), str(ROOT / "model" / "rope.py"))
    cluster.inside("nodeb", "mount", "-t", "tmpfs", "tmpfs", str(cluster.folder / "data"))
    cluster.inside("nodeb", "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(run))
    code, findings = preflight(cluster)
    assert code == 1
    lines = [f"{finding['check']} {finding['where']}: {finding['what']}" for finding in findings]
    hostfile = cluster.folder / "hostfile"
    assert f"hostfile all: {hostfile}:4: nodea stands on line 1 already" in lines
    assert any(line.startswith("reach nodec: ") and "nodec" in line.split(": ", 1)[1] for line in lines)
    assert any(line.startswith("slots nodeb: slots=4000, but the node shows ") for line in lines)
    assert any(line.startswith("code nodeb: other code than nodea") for line in lines)
    assert any(line.startswith("data nodeb: random: ") for line in lines)
    assert any(line.startswith("disk nodeb: ") and "No space left" in line for line in lines)
