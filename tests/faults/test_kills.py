"""At least 200 random kills, some of two processes at once, and a look at what is left after each: `make test-faults`.

    FAULT_SEED=4711 FAULT_KILLS=400 FAULT_REPORT=docs/reliability.md make test-faults

Two lanes (`lane.py`) run beside each other, each with its own run: one's MLflow is a database, the other's a server.
Each lane's draws come from the seed, so that a failure can be sought again with the seed that is printed, although
the moments depend on the machine too. With FAULT_REPORT the figures of docs/reliability.md are written anew.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("FAULT_KILLS", "220"))
LANES = (("database", "newest"), ("server", "every"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Kept when the test fails."""
    path = Path(tempfile.mkdtemp(prefix="faults"))
    yield path
    if not (path / "failed").exists():
        shutil.rmtree(path)


def start_lane(folder: Path, number: int, *, seed: str) -> subprocess.Popen[str]:
    mlflow, exports = LANES[number]
    command = [
        sys.executable, str(Path(__file__).with_name("lane.py")), str(folder / f"lane-{number}"),
        "--seed", f"{seed}/{number}", "--kills", str(-(-KILLS // len(LANES))),
        "--mlflow", mlflow, "--exports", exports,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with (folder / f"lane-{number}.out").open("w") as output, (folder / f"lane-{number}.err").open("w") as errors:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=errors, text=True)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """What the lanes said, without what libraries print."""
    texts = [line for file in sorted(folder.glob("lane-*.out")) for line in file.read_text().splitlines()]
    return [json.loads(text) for text in texts if text.startswith("{")]


def test_whatever_is_killed_what_is_left_can_be_relied_on(folder: Path) -> None:
    seed = os.environ.get("FAULT_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"\nFAULT_SEED={seed} FAULT_KILLS={KILLS} make test-faults    repeats these draws")
    began_s = time.monotonic()
    lanes = [start_lane(folder, number, seed=seed) for number in range(len(LANES))]
    try:
        for lane in lanes:
            lane.wait()
    finally:
        for lane in lanes:
            lane.kill()
    seconds = time.monotonic() - began_s
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime + used.ru_stime
    lines = lines_of(folder)
    wrong = [line for line in lines if line.get("wrong")]
    (folder / "failed").touch()
    assert not wrong, f"{json.dumps(wrong, indent=1)}\nsee {folder}"
    assert [lane.returncode for lane in lanes] == [0, 0], [
        (folder / f"lane-{number}.err").read_text()[-2000:] for number in range(len(LANES))
    ]
    kills = [line for line in lines if "moment" in line]
    assert len(kills) >= KILLS
    assert sum(1 for line in lines if line.get("ended")) == len(LANES)
    (folder / "failed").unlink()
    report = figures(kills, lines, seed=seed, seconds=seconds, cpu_s=cpu_s)
    print(report)
    if target := os.environ.get("FAULT_REPORT"):
        write_report(ROOT / target, report)


def figures(
    kills: list[dict[str, Any]], lines: list[dict[str, Any]], *, seed: str, seconds: float, cpu_s: float
) -> str:
    """A table in Markdown, and what it was measured with."""
    counts = Counter((kill["kind"], kill["moment"]) for kill in kills)
    checks = sum(line["trials"] for line in lines if line.get("ended"))
    steps = sum(line["steps"] for line in lines if line.get("ended"))
    buffers = sum(line["buffers_left"] for line in lines if line.get("ended"))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed", "mlflow"))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    rows = [f"| {kind} | {moment} | {count} |" for (kind, moment), count in sorted(counts.items())]
    return "\n".join(
        [
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, seed {seed}: {len(kills)} kills in {checks} trials, each "
            f"followed by a check, in {seconds:,.0f} s ({cpu_s:,.0f} CPU seconds, {cpu_s / len(kills):.1f} a kill, "
            f"imports included); the two runs came to "
            f"{steps:,} saved steps. Nothing was wrong after any of them; {buffers} of DeepSpeed's buffers stayed in "
            f"/dev/shm (below). Python {platform.python_version()}, "
            f"{versions}; {len(os.sched_getaffinity(0))} cores, {memory_gb:.0f} GB.",
            "",
            "| killed | at | times |",
            "| --- | --- | ---: |",
            *rows,
        ]
    )


def write_report(document: Path, report: str) -> None:
    """Between the marks of the document."""
    text = document.read_text()
    marked = re.sub(
        r"(<!-- figures -->\n).*(<!-- end -->)", lambda found: f"{found[1]}{report}\n{found[2]}", text, flags=re.DOTALL
    )
    assert marked != text or report in text
    document.write_text(marked)
