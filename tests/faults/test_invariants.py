"""The judge of the campaign finds what it is to find: each test spoils one thing of a run that is all right."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from checkpoint.events import EventWriter, events_file
from checkpoint.file_records import FileRecord
from checkpoint.manifest import CheckpointManifest, describe_files, partial_directory, publish_checkpoint
from checkpoint.run_record import RunRecord, write_run
from checkpoint.tracking import Tracker

KEY = "4" * 32


@pytest.fixture(scope="module")
def judge() -> ModuleType:
    spec = importlib.util.spec_from_file_location("invariants", Path(__file__).with_name("invariants.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, of checkpoints 2, 4 and 6 and an export of step 4, and `mlflow.db`, which holds its log."""
    folder = tmp_path_factory.mktemp("pristine")
    run = folder / "run"
    run.mkdir()
    write_run(run, RunRecord(run_key=KEY, name="run", created_ms=0, code_revision="", versions={}))
    with EventWriter(events_file(run)) as log:
        log.write("state", step=0, state="running")
        for step in (1, 2, 3, 2, 3, 4):
            log.write("metrics", step=step, **{"train/loss": 9.0 - step, "train/step_time_s": 0.5})
        log.write("state", step=4, state="finished")
    for step in (2, 4, 6):
        partial = partial_directory(run, step)
        (partial / "zero").mkdir(parents=True)
        (partial / "zero" / "rank-0.pt").write_bytes(bytes([step]) * 5000)
        publish_checkpoint(run, manifest(step, describe_files(partial, [partial / "zero" / "rank-0.pt"])))
    export = run / "exports" / "step-00000004"
    export.mkdir(parents=True)
    (export / "model.safetensors").write_bytes(b"weights")
    digest = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    (export / "proof.json").write_text(json.dumps({"verdict": "passed", "files": {"model.safetensors": digest}}))
    Tracker(f"sqlite:///{folder / 'mlflow.db'}").ship_events(run)
    return folder


def manifest(step: int, files: list[FileRecord]) -> CheckpointManifest:
    return CheckpointManifest(
        run_key=KEY, step=step, tokens_consumed=step, samples_consumed=step, world_size=1, zero_stage=3,
        dtype="float32", config_digest="", dataset_digests={}, tokenizer_digest="", model={}, files=tuple(files),
    )  # fmt: skip


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "folder")


@pytest.fixture
def look(judge: ModuleType, folder: Path) -> Callable[[], list[str]]:
    run = folder / "run"

    def look_at_all() -> list[str]:
        return [
            *judge.check_checkpoints(run, known_newest=6),
            *judge.check_exports(run),
            *judge.check_mlflow(run, folder / "mlflow.db", is_all_shipped=True),
            *judge.check_kept(run, {4, 6}),
            *judge.check_leftovers(run),
        ]

    return look_at_all


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def ask(folder: Path, statement: str) -> None:
    with sqlite3.connect(folder / "mlflow.db") as store:
        store.execute(statement)


def copy_row(folder: Path, change: str) -> None:
    ask(
        folder,
        f"insert into metrics (key, value, timestamp, run_uuid, step, is_nan) select {change} from metrics "
        "where key = 'train/loss' and step = 3",
    )


SPOILS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped byte": (lambda folder: flip(folder / "run/checkpoints/step-00000004/zero/rank-0.pt"), "does not verify"),
    "no manifest": (
        lambda folder: (folder / "run/checkpoints/step-00000006/manifest.json").unlink(),
        "step-00000006 is visible and has no manifest",
    ),
    "newest gone": (
        lambda folder: shutil.rmtree(folder / "run/checkpoints/step-00000006"),
        "step 6 was saved, the newest now is 4",
    ),
    "latest astray": (
        lambda folder: (folder / "run/checkpoints/latest").write_text("step-00000008\n"),
        "latest names step-00000008, which is not there",
    ),
    "promised one gone": (
        lambda folder: shutil.rmtree(folder / "run/checkpoints/step-00000004"),
        "step 4 was promised and is gone",
    ),
    "export without a proof": (
        lambda folder: (folder / "run/exports/step-00000004/proof.json").unlink(),
        "is visible without a proof",
    ),
    "export that changed": (
        lambda folder: (folder / "run/exports/step-00000004/model.safetensors").write_bytes(b"other"),
        "model.safetensors is not what was proven",
    ),
    "half an export": (
        lambda folder: (folder / "run/exports/step-00000004/model.safetensors").unlink(),
        "has [], proven were ['model.safetensors']",
    ),
    "row lost": (lambda folder: ask(folder, "delete from metrics where step = 3"), "MLflow does not"),
    "row twice": (lambda folder: copy_row(folder, "key, value, timestamp + 1, run_uuid, step, is_nan"), "2 times"),
    "row from nowhere": (
        lambda folder: copy_row(folder, "key, value, timestamp, run_uuid, 99, is_nan"),
        "the log does not",
    ),
    "second run": (
        lambda folder: (
            ask(
                folder,
                "insert into runs (run_uuid, lifecycle_stage, status) values ('second', 'active', 'RUNNING')",
            )
            or ask(folder, f"insert into tags (key, value, run_uuid) values ('smollm2.run_key', '{KEY}', 'second')")
        ),
        "MLflow has 2 runs of this key",
    ),
    "leftover": (
        lambda folder: (folder / "run/checkpoints/.trash-step-00000001").mkdir(),
        "checkpoints/.trash-step-00000001 is left over",
    ),
}


def test_nothing_is_wrong_with_what_is_all_right(look: Callable[[], list[str]]) -> None:
    assert look() == []


@pytest.mark.parametrize("name", SPOILS)
def test_what_is_spoilt_is_found(folder: Path, look: Callable[[], list[str]], name: str) -> None:
    spoil, words = SPOILS[name]
    spoil(folder)
    assert any(words in line for line in look()), look()


def test_promises_are_the_newest_the_pinned_the_held_and_those_wanted(judge: ModuleType, folder: Path) -> None:
    run = folder / "run"
    assert judge.promised_steps(run, exports="every") == {6}
    (run / "pins").mkdir()
    (run / "pins" / "step-00000002").touch()
    assert judge.promised_steps(run, exports="newest", held=[4]) == {2, 4, 6}
    shutil.rmtree(run / "exports")
    (run / "pins" / "step-00000002").unlink()
    assert judge.promised_steps(run, exports="newest") == {6}
    assert judge.promised_steps(run, exports="every") == {2, 4, 6}
