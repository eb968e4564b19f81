"""A unit that no worker survives, as the user meets it: named, the others done, and done later with more memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from configs.load import dump
from pipeline.config import PipelineConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is watched on Linux only")
def test_a_unit_too_large_for_the_memory_is_named_and_done_when_there_is_more(
    tmp_path: Path,
    make_config: Callable[..., PipelineConfig],
    make_texts: Callable[..., list[str]],
    make_jsonl: Callable[[Path, Sequence[str]], Path],
) -> None:
    for part in "ac":
        make_jsonl(tmp_path / "corpus" / f"{part}.jsonl", make_texts(20, seed=ord(part)))
    make_jsonl(tmp_path / "corpus" / "b.jsonl", ["word " * 24_000_000])  # one document of 120 MB
    config = make_config(
        unit_size_bytes=100_000_000, workers=1, max_worker_memory_bytes=256 << 20, validation_fraction=0
    )
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))

    def command(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", "run", str(file), *overrides],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )

    failed = command()
    assert failed.returncode == 2
    lines = failed.stderr.splitlines()
    died = [line for line in lines if line.startswith("a worker (pid ")]
    assert [line.rpartition("; ")[2] for line in died] == [
        "it will be tried again (2 of 3)",
        "it will be tried again (3 of 3)",
        "it is set apart, having killed 3 workers",
    ]
    assert lines[-1].startswith("smollm2 pipeline: units that killed 3 workers each and are not done: unit 1 of ")
    assert f" of corpus ({tmp_path}/corpus/b.jsonl 0-100000000)" in lines[-1]
    assert "(was ended for holding " in lines[-1]
    assert "above max_worker_memory_bytes=268,435,456)" in lines[-1]
    assert not (config.output_dir / "manifest.json").exists()
    # a; the first 100 MB of b, in which its document begins; the rest of b, and c
    assert sorted(record.name for record in (config.output_dir / ".work" / "units").iterdir()) == [
        "00000.json",
        "00002.json",
    ]
    status = json.loads((config.output_dir / "status.json").read_bytes())
    assert (status["state"], status["units_done"], status["units_total"]) == ("failed", 2, 3)
    assert status["error"] in lines[-1]

    again = command("max_worker_memory_bytes=null")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("test: 41 documents, ")
