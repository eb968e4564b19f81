"""Passes of the service over real run folders."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint import export, service
from checkpoint.events import EventWriter, events_file
from checkpoint.lock import exclusive_lock
from checkpoint.manifest import CheckpointError, Probe, checkpoint_directory, read_manifest
from checkpoint.prove import ProofError, examine
from checkpoint.service import DATABASE_FILE, RunReport, Service, ServiceSettings, find_runs
from checkpoint.tracking import EXPERIMENT

RunMaker = Callable[..., Path]
ManifestEditor = Callable[..., None]
LogWriter = Callable[..., None]


@pytest.fixture(autouse=True)
def prove_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same proof without a process of its own, which takes seconds to load transformers."""
    monkeypatch.setattr(
        export, "prove_directory", lambda directory, checkpoint: examine(directory, read_manifest(checkpoint))
    )


@pytest.fixture(autouse=True)
def database(empty_database: Path, tmp_path: Path) -> None:
    """MLflow's tables beside the runs, which would take seconds to make."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / DATABASE_FILE)


def one_pass(runs: Path, **settings: Any) -> RunReport:
    (report,) = Service(ServiceSettings(runs, redraw_seconds=0, **settings)).run_pass()
    return report


def exported_steps(report: RunReport) -> list[int]:
    return [made.proof.step for made in report.exports]


def mlflow_run(runs: Path) -> Any:
    tracker = Service(ServiceSettings(runs))._connect()
    experiment = tracker.client.get_experiment_by_name(EXPERIMENT)
    (run,) = tracker.client.search_runs([experiment.experiment_id])
    return run


def spoil(run: Path, step: int) -> None:
    path = checkpoint_directory(run, step) / read_manifest(checkpoint_directory(run, step)).files[0].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_pass_ships_exports_proves_draws_and_logs(make_run: RunMaker) -> None:
    run = make_run("float32")
    report = one_pass(run.parent)
    assert report.problems == []
    assert report.checkpoint == checkpoint_directory(run, 4)
    assert exported_steps(report) == [4]
    assert report.loss_curve == run / "loss_curve.png"
    logged = mlflow_run(run.parent)
    assert logged.data.metrics["train/loss"] == 10 - 4 / 10
    assert logged.data.tags["smollm2.proof"] == "passed at step 4"
    stored = {path.name for path in (run.parent / "mlartifacts").rglob("*") if path.is_file()}
    assert stored == {"loss_curve.png", "proof.json"}


def test_second_pass_exports_nothing_again(make_run: RunMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("float32")
    one_pass(run.parent)
    monkeypatch.setattr(service, "export_checkpoint", None)
    report = one_pass(run.parent)
    assert (report.problems, exported_steps(report)) == ([], [4])


def test_every_exports_older_checkpoints_too(make_run: RunMaker) -> None:
    assert exported_steps(one_pass(make_run("float32").parent, every=True)) == [2, 4]


def test_damaged_checkpoint_is_told_and_the_one_before_is_exported(make_run: RunMaker) -> None:
    run = make_run("float32")
    spoil(run, 4)
    report = one_pass(run.parent)
    (problem,) = report.problems
    assert "step-00000004/zero/" in problem
    assert "contents changed" in problem
    assert exported_steps(report) == [2]


def test_spoilt_manifest_is_told_and_the_one_before_is_exported(make_run: RunMaker) -> None:
    run = make_run("float32")
    (checkpoint_directory(run, 4) / "manifest.json").write_text("{")
    report = one_pass(run.parent)
    (problem,) = report.problems
    assert "is not a checkpoint manifest" in problem
    assert exported_steps(report) == [2]


def test_damaged_checkpoint_is_hashed_once(make_run: RunMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("float32")
    spoil(run, 4)
    looking = Service(ServiceSettings(run.parent))
    first = looking.run_pass()[0].problems
    monkeypatch.setattr(service, "export_checkpoint", None)
    assert looking.run_pass()[0].problems == first


def test_step_that_cannot_be_exported_hides_no_other(make_run: RunMaker, edit_manifest: ManifestEditor) -> None:
    run = make_run("float32")
    edit_manifest(run, 4, probe=None)
    report = one_pass(run.parent)
    (problem,) = report.problems
    assert "step 4 has no probe" in problem
    assert exported_steps(report) == [2]
    assert mlflow_run(run.parent).data.tags["smollm2.proof"] == "passed at step 2"


def test_export_without_a_readable_proof_hides_no_other(make_run: RunMaker) -> None:
    run = make_run("float32")
    one_pass(run.parent, every=True)
    (run / "exports" / "step-00000004" / "proof.json").write_bytes(b"\xff")
    report = one_pass(run.parent)
    (problem,) = report.problems
    assert "proof.json is not a proof" in problem
    assert exported_steps(report) == [2]


class Clock:
    """Stands in for `time` in the service."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return 0.0


@pytest.mark.parametrize("error", [ProofError("no transformers"), OSError(28, "No space left on device")])
def test_failing_export_is_tried_again_after_growing_pauses(
    make_run: RunMaker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run, clock, tried = make_run("float32"), Clock(), []

    def fail(_: Path, step: int) -> None:
        tried.append((clock.now_s, step))
        raise error

    monkeypatch.setattr(service, "time", clock)
    monkeypatch.setattr(service, "export_checkpoint", fail)
    looking = Service(ServiceSettings(run.parent))
    for now_s in (0, 30, 60, 90, 179, 180, 419, 420):
        clock.now_s = now_s
        (problem,) = looking.run_pass()[0].problems
        assert str(error.args[-1]) in problem
    # what is this machine's fault is not tried with step 2 as well
    assert tried == [(0, 4), (60, 4), (180, 4), (420, 4)]


def test_full_disk_says_to_free_space(make_run: RunMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(_: Path, step: int) -> None:
        raise OSError(28, "No space left on device", "/model.safetensors")

    monkeypatch.setattr(service, "export_checkpoint", fill)
    run = make_run("float32")
    assert one_pass(run.parent).problems == [
        f"{run}: /model.safetensors: No space left on device; free space, and the service goes on by itself"
    ]


def test_run_that_another_service_looks_after_is_left_alone(new_run: RunMaker, write_log: LogWriter) -> None:
    held, free = new_run("held", run_key="1" * 32), new_run("free", run_key="2" * 32)
    for run in (held, free):
        write_log(run, steps=3)
    with exclusive_lock(held / "service" / ".lock", busy="held by the test"):
        left, looked_after = Service(ServiceSettings(held.parent, redraw_seconds=0)).run_pass()[::-1]
    assert left.problems == [f"{held}: another service looks after this run, so this one leaves it; end one of them"]
    assert (left.is_shipped, left.loss_curve) == (False, None)
    assert (looked_after.problems, looked_after.is_shipped) == ([], True)


def test_failed_proof_is_told_at_every_pass(make_run: RunMaker, edit_manifest: ManifestEditor) -> None:
    run = make_run("float32")
    probe = read_manifest(checkpoint_directory(run, 4)).probe
    assert probe is not None
    edit_manifest(run, 4, probe=Probe(token_ids=probe.token_ids, mean_negative_log_likelihood=1.0))
    for _ in range(2):
        (problem,) = one_pass(run.parent).problems
        assert "step-00000004 failed its proof: loss" in problem
    assert mlflow_run(run.parent).data.tags["smollm2.proof"] == "failed at step 4"


def test_dead_server_is_told_and_stops_nothing_else(make_run: RunMaker, free_port: Callable[[], str]) -> None:
    run = make_run("float32")
    report = one_pass(run.parent, tracking_uri=f"http://127.0.0.1:{free_port()}")
    (problem,) = report.problems
    assert "did not answer or refused" in problem
    assert exported_steps(report) == [4]
    assert report.loss_curve is not None


def test_proof_made_while_the_server_was_down_is_logged_later(make_run: RunMaker, free_port: Callable[[], str]) -> None:
    run = make_run("float32")
    one_pass(run.parent, tracking_uri=f"http://127.0.0.1:{free_port()}")
    assert one_pass(run.parent).problems == []
    assert mlflow_run(run.parent).data.tags["smollm2.proof"] == "passed at step 4"


def test_one_bad_run_does_not_keep_the_others_waiting(new_run: RunMaker, write_log: LogWriter) -> None:
    bad, good = new_run("bad", run_key="1" * 32), new_run("good", run_key="2" * 32)
    (bad / "run.json").write_text("{}")
    write_log(good, steps=3)
    reports = Service(ServiceSettings(good.parent, redraw_seconds=0)).run_pass()
    assert "is not a run record" in reports[0].problems[0]
    assert reports[1].problems == []
    assert reports[1].loss_curve is not None


def test_run_without_checkpoints_is_all_right(new_run: RunMaker) -> None:
    report = one_pass(new_run().parent)
    assert (report.problems, report.checkpoint, report.exports) == ([], None, [])


def test_data_run_is_shipped_with_its_artefacts_and_not_looked_at_for_checkpoints(
    new_run: RunMaker, write_log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "list_steps", None)
    monkeypatch.setattr(service, "draw_loss_curve", None)
    run = new_run(kind="data")
    write_log(run, steps=1)
    (run / "artifacts").mkdir()
    (run / "artifacts" / "report.html").write_text("<p>")
    (run / "artifacts" / ".report.json.partial").write_text("{")
    report = one_pass(run.parent)
    assert (report.problems, report.kind, report.is_shipped) == ([], "data", True)
    assert mlflow_run(run.parent).info.status == "FINISHED"
    stored = {path.name for path in (run.parent / "mlartifacts").rglob("*") if path.is_file()}
    assert stored == {"report.html"}


def test_curve_is_not_drawn_again_before_its_time(new_run: RunMaker, write_log: LogWriter) -> None:
    run = new_run()
    write_log(run, steps=3, state="running")
    looking = Service(ServiceSettings(run.parent, redraw_seconds=300))
    looking.run_pass()
    drawn_s = (run / "loss_curve.png").stat().st_mtime
    with EventWriter(events_file(run)) as log:
        log.write("metrics", step=4, **{"train/loss": 1.0})
    looking.run_pass()
    assert (run / "loss_curve.png").stat().st_mtime == drawn_s
    os.utime(run / "loss_curve.png", (drawn_s - 301, drawn_s - 301))
    looking.run_pass()
    assert (run / "loss_curve.png").stat().st_mtime > drawn_s - 301


def test_a_run_folder_may_be_named_itself(new_run: RunMaker) -> None:
    run = new_run()
    assert find_runs(run) == [run]
    assert find_runs(run.parent) == [run]


def test_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist; name the folder that holds the run folders"):
        find_runs(tmp_path / "nowhere")


def test_service_watches_until_sigterm_and_keeps_others_out(new_run: RunMaker, write_log: LogWriter) -> None:
    run = new_run()
    write_log(run, steps=3)
    command = [sys.executable, "-m", "checkpoint", "serve", str(run.parent)]
    with subprocess.Popen([*command, "--poll-seconds", "0.2"], stderr=subprocess.PIPE, text=True) as first:
        try:
            deadline_s = time.monotonic() + 120
            while not (run / "loss_curve.png").exists() and time.monotonic() < deadline_s:
                time.sleep(0.1)
            second = subprocess.run([*command, "--once"], capture_output=True, text=True, check=False)
        finally:
            first.send_signal(signal.SIGTERM)
        assert first.stderr is not None
        told = first.stderr.read().splitlines()
    assert (first.returncode, told[-1]) == (0, "stopped")
    assert second.returncode == 2
    assert second.stderr == f"smollm2 checkpoint: another service is at work in {run.parent}; end it first\n"
