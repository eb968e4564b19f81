"""A service on a folder of three finished runs, as a user starts it: what it publishes can be trusted unseen.

One run is whole. A byte of the second one's newest checkpoint has flipped. Somebody has edited the third one's export
after it was proven, giving its config the RoPE theta of the long-context models.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoint.manifest import checkpoint_directory, read_manifest
from checkpoint.run_record import read_run, write_run
from checkpoint.service import DATABASE_FILE

RunMaker = Callable[..., Path]


@pytest.fixture
def runs(make_run: RunMaker, exported_run: Path, empty_database: Path) -> Path:
    """The folder with `whole`, `flipped` and `theta`."""
    folder = exported_run.parent
    theta = exported_run.rename(folder / "theta")
    write_run(theta, read_run(theta).model_copy(update={"run_key": "3" * 32}))
    config = theta / "exports" / "step-00000004" / "config.json"
    assert config.read_text().count("10000.0") == 2
    config.write_text(config.read_text().replace("10000.0", "100000.0"))
    make_run("float32").rename(folder / "whole")
    flipped = make_run("bfloat16").rename(folder / "flipped")
    checkpoint = checkpoint_directory(flipped, 4)
    path = checkpoint / next(one.path for one in read_manifest(checkpoint).files if "optim_states" in one.path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    shutil.copy(empty_database, folder / DATABASE_FILE)
    return folder


@pytest.fixture
def url(runs: Path) -> Iterator[str]:
    """Where the page of the running service is."""
    command = [sys.executable, "-m", "checkpoint", "serve", str(runs), "poll_seconds=0.5", "http.port=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        lines = iter(service.stderr.readline, "")
        yield next(line.split()[-1] for line in lines if line.startswith("status page: "))
        service.send_signal(signal.SIGTERM)
        assert service.stderr.read().splitlines()[-1] == "stopped"
    assert service.returncode == 0


def ask(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def wait_until_idle(url: str) -> dict[str, Any]:
    """The runs by name, when nothing is left to do."""
    deadline_s = time.monotonic() + 280
    while True:
        status = json.loads(ask(f"{url}/api/status"))
        if status["looked_s"] and not status["queue"] and all(run["is_shipped"] for run in status["runs"]):
            return {run["name"]: run for run in status["runs"]}
        assert time.monotonic() < deadline_s, status
        time.sleep(0.3)


def test_two_exports_are_proven_and_the_flipped_checkpoint_and_the_wrong_export_are_quarantined(
    runs: Path, url: str
) -> None:
    told = wait_until_idle(url)
    states = {
        name: [(one["step"], one["verification"], one["export"]) for one in run["checkpoints"]]
        for name, run in told.items()
    }
    assert states == {
        "whole": [(4, "whole", "proven"), (2, "not checked", "none")],
        "flipped": [(4, "damaged", "none"), (2, "whole", "proven")],
        "theta": [(4, "whole", "quarantined"), (2, "not checked", "none")],
    }
    visible = sorted(path.relative_to(runs).as_posix() for path in runs.glob("*/exports/step-*"))
    assert visible == ["flipped/exports/step-00000002", "whole/exports/step-00000004"]
    assert (runs / "theta" / "exports" / ".quarantine-step-00000004" / "proof.json").is_file()
    page, metrics = ask(url), ask(f"{url}/metrics")
    for text in (page.replace("&#39;", "'"), metrics):
        assert "contents changed" in text
        assert "rope_theta is 100000.0, the trainer's is 10000.0" in text
    assert page.index("contents changed") < page.index("<h2>Runs</h2>")
    assert page.count(">proven<") == 2
    assert 'smollm2_quarantined_info{reason="' in metrics or "smollm2_quarantined_info{run=" in metrics
    assert [run["troubles"][0]["is_final"] for run in (told["flipped"], told["theta"])] == [True, True]
    assert told["whole"]["troubles"] == []
