"""Whose a run folder is."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.events import events_file
from checkpoint.lock import run_is_alive
from checkpoint.run_record import RunRecord, read_run, write_run
from pipeline import run_folder
from pipeline.config import PipelineConfig
from pipeline.document import PipelineError
from pipeline.lock import locked
from pipeline.run import run
from pipeline.run_folder import open_run_folder

MakeConfig = Callable[..., PipelineConfig]


@pytest.fixture
def told(tmp_path: Path, corpus: Path, make_config: MakeConfig) -> PipelineConfig:
    return make_config(executor="serial", run_dir=tmp_path / "run")


def test_a_run_is_alive_while_its_folder_is_open(told: PipelineConfig, tmp_path: Path) -> None:
    with open_run_folder(tmp_path / "run", told, goes_on=False):
        assert run_is_alive(tmp_path / "run")
    assert not run_is_alive(tmp_path / "run")


def test_folder_of_a_training_run_is_refused(told: PipelineConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", RunRecord(run_key="k", name="small", created_ms=1, code_revision="c", versions={}))
    with pytest.raises(PipelineError, match=r"^run_dir=.* is that of the training run 'small'; choose another run_dir"):
        run(told)
    assert not events_file(tmp_path / "run").exists()


def test_folder_of_another_dataset_is_refused(told: PipelineConfig, tmp_path: Path) -> None:
    run(told)
    with pytest.raises(PipelineError, match=r"tells of the dataset .*/dataset, not of .*/other; choose another"):
        run(told.model_copy(update={"output_dir": tmp_path / "other"}))


def test_folder_of_a_dataset_that_is_gone_is_refused(told: PipelineConfig) -> None:
    run(told)
    shutil.rmtree(told.output_dir)
    with pytest.raises(PipelineError, match=r"of which nothing is left there; remove it, or choose another run_dir$"):
        run(told)


def test_folder_of_a_run_that_did_nothing_yet_is_taken(told: PipelineConfig, tmp_path: Path, corpus: Path) -> None:
    with open_run_folder(tmp_path / "run", told, goes_on=False):
        key = read_run(tmp_path / "run").run_key
    run(told)
    assert read_run(tmp_path / "run").run_key == key


def test_spoilt_record_is_one_line(told: PipelineConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"is not a run record \(.*\); copy .*, or choose another run_dir$"):
        run(told)


def test_folder_that_another_run_writes_is_refused(
    told: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "LOCK_PATIENCE_S", 0.0)
    (tmp_path / "run").mkdir()
    with (
        locked(tmp_path / "run" / ".lock"),
        pytest.raises(PipelineError, match=r"is being written by another run \(pid \d+ on .*\); wait for it, or"),
    ):
        run(told)


def test_the_glance_of_the_service_is_waited_for(told: PipelineConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    held, may_end = threading.Event(), threading.Event()

    def glance() -> None:
        with locked(tmp_path / "run" / ".lock", shared=True):
            held.set()
            may_end.wait()
            time.sleep(0.3)

    thread = threading.Thread(target=glance)
    thread.start()
    held.wait()
    may_end.set()
    with open_run_folder(tmp_path / "run", told, goes_on=False):
        pass
    thread.join()


def test_run_dir_in_the_dataset_is_an_error(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lies in output_dir=.* which holds the dataset only; choose a folder"):
        make_config(run_dir=tmp_path / "dataset" / "run")
