"""Runs that are killed, that meet a full or read-only disk, that meet a huge document: real processes, real mounts."""

from __future__ import annotations

import bz2
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from configs.load import dump
from pipeline.config import PipelineConfig
from pipeline.interruption import signals_interrupt

ROOT = Path(__file__).resolve().parents[2]
MakeConfig = Callable[..., PipelineConfig]
MakeTexts = Callable[..., list[str]]
MakeJsonl = Callable[[Path, Sequence[str]], Path]


def heed_signals() -> None:
    """A shell's background job ignores SIGINT, one under nohup SIGHUP, and children inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(config_file: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", str(config_file), *overrides],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=heed_signals,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(config_file: Path, *overrides: str) -> tuple[int, str, str]:
    process = start(config_file, *overrides)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def kill_amid(config_file: Path, dataset: Path, *, units: int, delay_s: float = 0) -> None:
    """Start a run, or go on with it, and kill it when so many units are done.

    On a busy machine it may end before we look: then it was no interruption, and we try again from its start.
    """
    for _ in range(5):
        process = start(config_file)
        while process.poll() is None and len(list(dataset.glob(".work/units/*.json"))) < units:
            time.sleep(0.005)
        time.sleep(delay_s)
        process.kill()
        _, stderr = process.communicate()
        if process.returncode == -signal.SIGKILL and not (dataset / "manifest.json").exists():
            return
        assert process.returncode in (0, -signal.SIGKILL), stderr
        shutil.rmtree(dataset)
    pytest.fail(f"of 5 runs all ended before they could be killed after {units} units")


def shard_digests(dataset: Path) -> dict[str, str]:
    return {
        path.relative_to(dataset).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dataset.rglob("*.arrow"))
    }


@pytest.fixture
def config_file(tmp_path: Path, make_config: MakeConfig, make_texts: MakeTexts, make_jsonl: MakeJsonl) -> Path:
    """About 1 MB in 50 units, with a tokenizer to be trained first."""
    make_jsonl(tmp_path / "corpus" / "a.jsonl", make_texts(1000, seed=5, words=400))
    config = make_config(
        workers=2,
        unit_size_bytes=20_000,
        shard_size_bytes=20_000,
        tokenizer={"train": {"vocab_size": 290, "sample_bytes": 300_000}},
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    return path


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(config_file: Path, tmp_path: Path) -> None:
    assert finish(config_file, f"output_dir={tmp_path}/whole")[0] == 0
    draw = random.Random(11)
    dataset = tmp_path / "dataset"
    # in the first second, whatever it is at then; after that in the middle of the units, whatever the machine's speed
    for units, delay_s in ((0, draw.uniform(0.2, 1)), (2, draw.uniform(0, 0.05)), (7, draw.uniform(0, 0.05))):
        kill_amid(config_file, dataset, units=units, delay_s=delay_s)
    code, stdout, stderr = finish(config_file, "workers=1")
    assert code == 0
    assert "going on: " in stderr
    assert stdout.startswith("test: 1,000 documents, ")
    assert shard_digests(dataset) == shard_digests(tmp_path / "whole")
    assert (dataset / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()
    assert not list(dataset.rglob("*.partial"))
    assert not (dataset / ".work").exists()


def test_a_killed_run_over_every_kind_of_file_ends_with_the_same_bytes(
    tmp_path: Path, make_config: MakeConfig, make_texts: MakeTexts
) -> None:
    texts = make_texts(400, seed=6, words=400)
    compress = zstandard.ZstdCompressor().compress
    rows = [{"text": text, "meta": {"n": n}} for n, text in enumerate(texts)]
    folder = tmp_path / "corpus"
    (folder / "hub").mkdir(parents=True)
    for part in range(4):
        some = rows[part::4]
        lines = "".join(json.dumps(row) + "\n" for row in some).encode()
        (folder / f"{part}.json").write_text(json.dumps(some))
        (folder / f"{part}.jsonl.bz2").write_bytes(bz2.compress(lines))
        cuts = range(0, len(lines), 10_001)
        (folder / f"{part}.jsonl.zst").write_bytes(b"".join(compress(lines[cut : cut + 10_001]) for cut in cuts))
        (folder / "hub" / f"train-{part}.jsonl").write_bytes(lines)
        (folder / f"{part}.md").write_text(texts[part])
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text"], *([row["text"]] for row in some)])
    with pa.ipc.new_file(folder / "a.arrow", (table := pa.Table.from_pylist(rows)).schema) as writer:
        writer.write_table(table, max_chunksize=50)
    subprocess.run(["git", "init", "-q", folder], check=True)
    template = {"template": "{meta.n}: {text}", "keep_if": [{"field": "meta.n", "max_value": 300}]}
    sources = [
        {"name": "json_array", "type": "json_array", "files": [f"{folder}/*.json"], **template},
        {"name": "jsonl", "type": "jsonl", "files": [f"{folder}/*.jsonl.bz2"], **template},
        {"name": "frames", "type": "jsonl", "files": [f"{folder}/*.jsonl.zst"], **template},
        {"name": "csv", "type": "csv", "files": [f"{folder}/*.csv"]},
        {"name": "arrow", "type": "arrow", "files": [f"{folder}/*.arrow"], **template},
        {"name": "git", "type": "git", "root": str(folder), "languages": ["markdown"]},
        {"name": "stream", "type": "huggingface_stream", "path": f"{folder}/hub", **template},
    ]
    config_file = tmp_path / "config.yaml"
    config_file.write_text(dump(make_config(sources=sources, unit_size_bytes=50_000, workers=2)))
    assert finish(config_file, f"output_dir={tmp_path}/whole")[0] == 0
    kill_amid(config_file, tmp_path / "dataset", units=5)
    code, stdout, stderr = finish(config_file, "workers=1")
    assert code == 0
    assert "going on: " in stderr
    # 301 of 400 in each of five sources, 400 rows of CSV, 4 Markdown files
    assert stdout.startswith("test: 1,909 documents, ")
    assert shard_digests(tmp_path / "dataset") == shard_digests(tmp_path / "whole")


def status_of(dataset: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((dataset / "status.json").read_bytes())
    return content


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_is_one_line_and_told_in_the_status(config_file: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start(config_file, "unit_size_bytes=5_000")  # 200 units: far from the end after the second
    units = tmp_path / "dataset" / ".work" / "units"
    while len(list(units.glob("*.json"))) < 2:
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.005)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: parent and workers
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert stderr.splitlines()[-1] == "smollm2 pipeline: interrupted; run the same command to go on"
    assert "Traceback" not in stderr
    status = status_of(tmp_path / "dataset")
    assert (status["state"], status["error"], status["workers"]) == ("interrupted", f"stopped by {number.name}", [])
    assert not list((tmp_path / "dataset").rglob(".status.json.*"))


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    of_sigterm = signal.getsignal(signal.SIGTERM)  # ray leaves one of its own
    try:
        with signals_interrupt():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # we are ending already
        assert signal.getsignal(signal.SIGTERM) == of_sigterm
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_other_signal_finds_us_ending_already() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with signals_interrupt():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == before


def test_a_killed_run_is_known_by_its_process(config_file: Path, tmp_path: Path) -> None:
    kill_amid(config_file, tmp_path / "dataset", units=1)
    status = status_of(tmp_path / "dataset")
    assert (status["state"], status["host"]) == ("running", socket.gethostname())
    with pytest.raises(ProcessLookupError):
        os.kill(status["pid"], 0)
    assert datetime.now(UTC) - datetime.fromisoformat(status["updated"]) < timedelta(minutes=1)


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    config_file: Path, tmp_path: Path, mount_tmpfs: Callable[[str], Path]
) -> None:
    folder = mount_tmpfs("size=1m")
    code, _, stderr = finish(config_file, f"output_dir={folder}/dataset")
    assert code == 2
    last = stderr.splitlines()[-1]
    assert last.startswith(f"smollm2 pipeline: {folder}/dataset")
    assert last.endswith(": no space left on the disk; free some and run the same command to go on")
    assert "Traceback" not in stderr
    mount_tmpfs("remount,size=20m")
    code, _, stderr = finish(config_file, f"output_dir={folder}/dataset")
    assert code == 0
    assert "going on: " in stderr
    assert finish(config_file, f"output_dir={tmp_path}/whole")[0] == 0
    assert shard_digests(folder / "dataset") == shard_digests(tmp_path / "whole")


def test_an_unwritable_folder_is_one_line(
    config_file: Path, mount_tmpfs: Callable[[str], Path], tmp_path: Path
) -> None:
    if os.geteuid() == 0:  # root may write everywhere but on a read-only disk
        folder = mount_tmpfs("ro")
    else:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o555)
    code, _, stderr = finish(config_file, f"output_dir={folder}/dataset")
    assert code == 2
    (line,) = stderr.splitlines()
    assert line.startswith(f"smollm2 pipeline: {folder}/dataset: ")
    assert line.endswith("; choose a path that this user may write to, or change its permissions")


BIG_DOCUMENT = """
import sys
from pathlib import Path
from pipeline.config import PipelineConfig
from pipeline.plan import make_plan
from pipeline.tokenizer.encode import Encoder
from pipeline.unit import process_unit

config = PipelineConfig.model_validate_json(sys.stdin.read())
encoder = Encoder(config.tokenizer.path.read_bytes(), eos_token="<|endoftext|>")
(unit,) = make_plan(config).units
def peak_kb():  # ru_maxrss would begin with that of the process that started this one
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

before = peak_kb()
record = process_unit(config, unit, encoder, units_directory=config.output_dir)
print(record.tally.documents_kept, record.tokens, peak_kb() - before)
"""


@pytest.mark.parametrize(
    ("word", "repeats", "end", "max_growth_kb"),
    [
        # 50 MB: twice while the line is parsed, then once with 5 MB of ids; encoded whole it takes 3 GB
        (" internationalization", 2_400_000, "", 160_000),
        # as one string 200 MB, and once more in the middle of it being made
        (" internationalization", 2_400_000, "😀", 160_000),
        # 12 MB without a space, and digits, each an id of two bytes; encoded whole it takes 2 GB
        ("0123456789", 1_260_000, "", 130_000),
    ],
)
def test_a_large_document_is_encoded_in_bounded_memory(
    tmp_path: Path, make_config: MakeConfig, word: str, repeats: int, end: str, max_growth_kb: int
) -> None:
    from pipeline.tokenizer.train import train_tokenizer

    # 16 merges make the word of 21 bytes one token
    tokenizer = tmp_path / "words.json"
    tokenizer.write_bytes(train_tokenizer([" internationalization" * 20], vocab_size=273 + 16))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text(json.dumps({"text": word * repeats + end}) + "\n")
    config = make_config(tokenizer={"path": tokenizer}, validation_fraction=0, unit_size_bytes=1 << 30)
    config.output_dir.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BIG_DOCUMENT],
        cwd=ROOT,
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 0, done.stderr
    documents, tokens, growth_kb = map(int, done.stdout.split())
    assert (documents, tokens) == (1, 1 + len(end.encode()) + repeats * (1 if word.startswith(" ") else len(word)))
    assert growth_kb < max_growth_kb
