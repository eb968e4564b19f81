"""The service over real run folders: what it does, what it tells, and what it leaves alone."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from checkpoint import export, failures, managed_run
from checkpoint import service as service_module
from checkpoint.config import ServiceConfig
from checkpoint.events import EventWriter, events_file
from checkpoint.jobs import Job, Outcome
from checkpoint.lock import exclusive_lock
from checkpoint.manifest import CheckpointError, Probe, checkpoint_directory, read_manifest
from checkpoint.mlflow_run import EXPERIMENT
from checkpoint.pins import pin
from checkpoint.prove import ProofError
from checkpoint.run_record import LOCK_FILE
from checkpoint.service import DATABASE_FILE, Service, find_runs
from checkpoint.status import RunStatus
from checkpoint.tracking import Tracker
from launch.cluster.launcher import free_port

RunMaker = Callable[..., Path]
ManifestEditor = Callable[..., None]
LogWriter = Callable[..., None]
ServiceMaker = Callable[..., Service]


@pytest.fixture(autouse=True)
def database(empty_database: Path, tmp_path: Path) -> None:
    """MLflow's tables beside the runs, which would take seconds to make."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / DATABASE_FILE)


def look(service: Service) -> tuple[RunStatus, list[str]]:
    """What the service tells of its only run after it has done all that it can, and its problems."""
    status = service.run_until_done()
    (run,) = status.runs
    return run, status.problems


def exported_steps(run: RunStatus) -> list[int]:
    return sorted(one.step for one in run.checkpoints if one.export == "proven")


def performed(service: Service) -> list[str]:
    return [job.what for job in service._runner.performed]  # type: ignore[attr-defined]


def mlflow_run(runs: Path) -> Any:
    client = Tracker(f"sqlite:///{runs / DATABASE_FILE}").client
    (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    return run


def spoil(run: Path, step: int) -> None:
    path = checkpoint_directory(run, step) / read_manifest(checkpoint_directory(run, step)).files[0].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_it_ships_exports_proves_draws_and_logs(make_run: RunMaker, make_service: ServiceMaker) -> None:
    run = make_run("float32")
    told, problems = look(make_service(run.parent))
    assert problems == []
    assert exported_steps(told) == [4]
    assert (told.state, told.is_shipped, told.checkpoints[0].verification) == ("finished", True, "whole")
    logged = mlflow_run(run.parent)
    assert logged.data.metrics["train/loss"] == 10 - 4 / 10
    assert logged.data.tags["smollm2.proof"] == "passed at step 4"
    stored = {path.name for path in (run.parent / "mlartifacts").rglob("*") if path.is_file()}
    assert stored == {"loss_curve.png", "proof.json"}


def test_a_second_service_finds_nothing_to_do_but_to_ask_the_server(
    make_run: RunMaker, make_service: ServiceMaker
) -> None:
    run = make_run("float32")
    look(make_service(run.parent))
    second = make_service(run.parent)
    told, problems = look(second)
    assert (problems, exported_steps(told)) == ([], [4])
    assert performed(second) == ["ship"]


def test_nothing_is_done_twice_while_nothing_changes(make_run: RunMaker, make_service: ServiceMaker) -> None:
    service = make_service(make_run("float32").parent)
    look(service)
    done = performed(service)
    look(service)
    assert performed(service) == done


def test_what_another_node_alone_tells_is_shipped(
    new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker
) -> None:
    run = new_run()
    write_log(run, steps=3)
    service = make_service(run.parent, redraw_seconds=1000)
    for value in (10.0, 20.0):
        service.run_until_done()
        shipments = performed(service).count("ship")
        with EventWriter(events_file(run, 8)) as log:
            log.write("metrics", step=int(value), **{"system/node-1/cpu_utilization_percentage": value})
        service.run_until_done()
        assert performed(service).count("ship") == shipments + 1
    assert mlflow_run(run.parent).data.metrics["system/node-1/cpu_utilization_percentage"] == 20.0


def test_a_deleted_journal_is_made_again(make_run: RunMaker, make_service: ServiceMaker) -> None:
    run = make_run("float32")
    look(make_service(run.parent))
    shutil.rmtree(run / "service")
    told, problems = look(make_service(run.parent))
    assert (problems, exported_steps(told), told.checkpoints[0].verification) == ([], [4], "whole")
    assert mlflow_run(run.parent).data.tags["smollm2.proof"] == "passed at step 4"


def test_every_exports_older_checkpoints_too(make_run: RunMaker, make_service: ServiceMaker) -> None:
    told, _ = look(make_service(make_run("float32").parent, exports="every"))
    assert exported_steps(told) == [2, 4]


def test_damaged_checkpoint_is_told_and_the_one_before_is_exported(
    make_run: RunMaker, make_service: ServiceMaker
) -> None:
    run = make_run("float32")
    spoil(run, 4)
    told, (problem,) = look(make_service(run.parent))
    assert "export step-00000004: " in problem
    assert "contents changed" in problem
    assert exported_steps(told) == [2]
    assert told.checkpoints[0].verification == "damaged"
    assert told.troubles[0].is_final


def test_damaged_checkpoint_is_hashed_once_by_any_service(make_run: RunMaker, make_service: ServiceMaker) -> None:
    run = make_run("float32")
    spoil(run, 4)
    first = look(make_service(run.parent))[1]
    second = make_service(run.parent)
    assert look(second)[1] == first
    assert performed(second) == ["ship"]


def test_a_checkpoint_that_is_saved_again_is_tried_again(make_run: RunMaker, make_service: ServiceMaker) -> None:
    run = make_run("float32")
    whole = shutil.copytree(checkpoint_directory(run, 4), run.parent.parent / "whole")
    spoil(run, 4)
    look(make_service(run.parent))
    shutil.rmtree(checkpoint_directory(run, 4))
    shutil.copytree(whole, checkpoint_directory(run, 4))
    os.utime(checkpoint_directory(run, 4) / "manifest.json")
    told, problems = look(make_service(run.parent))
    assert (problems, exported_steps(told)) == ([], [2, 4])


def test_spoilt_manifest_is_told_and_the_one_before_is_exported(make_run: RunMaker, make_service: ServiceMaker) -> None:
    run = make_run("float32")
    (checkpoint_directory(run, 4) / "manifest.json").write_text("{")
    told, problems = look(make_service(run.parent))
    assert "is not a checkpoint manifest" in problems[0]
    assert exported_steps(told) == [2]


def test_step_that_cannot_be_exported_hides_no_other(
    make_run: RunMaker, make_service: ServiceMaker, edit_manifest: ManifestEditor
) -> None:
    run = make_run("float32")
    edit_manifest(run, 4, probe=None)
    told, (problem,) = look(make_service(run.parent))
    assert "step 4 has no probe" in problem
    assert exported_steps(told) == [2]
    assert mlflow_run(run.parent).data.tags["smollm2.proof"] == "passed at step 2"


@pytest.mark.parametrize("proof", [b"\xff", None])
def test_export_without_a_readable_proof_is_proven_again(
    make_run: RunMaker, make_service: ServiceMaker, proof: bytes | None
) -> None:
    run = make_run("float32")
    look(make_service(run.parent))
    file = run / "exports" / "step-00000004" / "proof.json"
    file.unlink()
    if proof is not None:
        file.write_bytes(proof)
    told, problems = look(make_service(run.parent))
    assert (problems, exported_steps(told)) == ([], [4])


def test_export_that_is_changed_after_its_proof_is_proven_again(make_run: RunMaker, make_service: ServiceMaker) -> None:
    run = make_run("float32")
    service = make_service(run.parent)
    look(service)
    config = run / "exports" / "step-00000004" / "config.json"
    config.write_text(config.read_text().replace("10000.0", "100000.0"))
    told, problems = look(service)
    assert any("rope_theta is 100000.0, the trainer's is 10000.0" in problem for problem in problems)
    assert (told.checkpoints[0].export, told.troubles[0].is_final) == ("quarantined", True)
    assert not (run / "exports" / "step-00000004").exists()


def test_failed_proof_whose_prover_was_killed_before_the_rename_is_not_left_in_sight(
    exported_run: Path, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_folder = exported_run / "exports" / "step-00000004"
    config = export_folder / "config.json"
    config.write_text(config.read_text().replace("10000.0", "100000.0"))

    class KilledError(BaseException):
        pass

    def die(*_: Path) -> None:
        raise KilledError

    service = make_service(exported_run.parent)
    with monkeypatch.context() as patched:
        patched.setattr(export, "publish_folder", die)
        with pytest.raises(KilledError):
            export.prove_export(exported_run, 4)
    assert '"failed"' in (export_folder / "proof.json").read_text()
    told, _ = look(service)
    assert told.checkpoints[0].export == "quarantined"
    assert not export_folder.exists()


class Clock:
    """Stands in for `time` where the service decides when to try again."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s


@pytest.mark.parametrize("error", [ProofError("no transformers"), OSError(28, "No space left on device")])
def test_what_the_machine_is_to_blame_for_is_tried_again_after_growing_pauses_and_never_given_up(
    make_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run, clock, tried = make_run("float32"), Clock(), []

    def fail(_: Path, step: int, **settings: object) -> None:
        tried.append((clock.now_s, step))
        raise error

    monkeypatch.setattr(failures, "time", clock)
    monkeypatch.setattr(export, "export_checkpoint", fail)
    service = make_service(run.parent, jobs={"attempts": 2})
    for clock.now_s in (0, 30, 60, 90, 179, 180, 419, 420):
        told, (problem,) = look(service)
        assert str(error.args[-1]) in problem
        assert not told.troubles[0].is_final
    # step 2 would fail for the same reason
    assert tried == [(0, 4), (60, 4), (180, 4), (420, 4)]


def test_what_the_job_is_to_blame_for_is_quarantined_after_its_attempts(
    make_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, clock, tried = make_run("float32"), Clock(), []

    def fail(_: Path, step: int, **settings: object) -> None:
        tried.append((clock.now_s, step))
        raise CheckpointError(f"step {step} is odd")

    monkeypatch.setattr(failures, "time", clock)
    monkeypatch.setattr(export, "export_checkpoint", fail)
    service = make_service(run.parent, jobs={"attempts": 2})
    for clock.now_s in (0, 60, 1000, 100_000):
        told, _ = look(service)
    assert tried == [(0, 4), (0, 2), (60, 4), (60, 2)]
    assert [(trouble.reason, trouble.is_final) for trouble in told.troubles] == [
        ("step 4 is odd", True),
        ("step 2 is odd", True),
    ]


def test_shipping_is_never_given_up(tmp_path: Path) -> None:
    kept = failures.Failures(tmp_path, ServiceConfig().jobs)
    for _ in range(20):
        failure = kept.record(Job(kind="ship", run=tmp_path), Outcome(blame="job", reason="it is odd"))
    assert failure is not None
    assert not failure.is_quarantined
    assert failure.pause_s == 300


def test_a_clock_that_was_set_back_makes_nothing_wait_for_years(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    clock.now_s = 1e9
    monkeypatch.setattr(failures, "time", clock)
    job = Job(kind="ship", run=tmp_path)
    kept = failures.Failures(tmp_path, ServiceConfig().jobs)
    kept.record(job, Outcome(blame="machine", reason="away"))
    assert not kept.may_run(job)
    clock.now_s = 1e6
    assert kept.may_run(job)


def test_every_means_also_the_one_that_failed_once(
    make_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, clock, real, tried = make_run("float32"), Clock(), export.export_checkpoint, []

    def fail_once(run: Path, step: int, **settings: Any) -> Any:
        tried.append((clock.now_s, step))
        if tried == [(0, 2)]:
            raise CheckpointError("step 2 is odd")
        return real(run, step, **settings)

    monkeypatch.setattr(failures, "time", clock)
    monkeypatch.setattr(export, "export_checkpoint", fail_once)
    service = make_service(run.parent, exports="every")
    told, _ = look(service)
    assert exported_steps(told) == [4]
    clock.now_s = 60
    told, problems = look(service)
    assert (problems, exported_steps(told), tried) == ([], [2, 4], [(0, 2), (0, 4), (60, 2)])


def test_full_disk_says_to_free_space(
    make_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_: Path, step: int, **settings: object) -> None:
        raise OSError(28, "No space left on device", "/model.safetensors")

    monkeypatch.setattr(export, "export_checkpoint", fill)
    run = make_run("float32")
    assert look(make_service(run.parent))[1] == [
        f"{run.name}: export step-00000004: /model.safetensors: No space left on device; free space, and the service "
        "goes on by itself"
    ]


def test_run_that_another_service_looks_after_is_left_alone(
    new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker
) -> None:
    held, free = new_run("held", run_key="1" * 32), new_run("free", run_key="2" * 32)
    for run in (held, free):
        write_log(run, steps=3)
    with exclusive_lock(held / "service" / ".lock", busy="held by the test"):
        status = make_service(held.parent).run_until_done()
    looked_after, left = status.runs
    assert status.problems == [
        "held: the run: another service looks after this run, so this one leaves it; end one of them"
    ]
    assert (left.is_shipped, (held / "loss_curve.png").exists()) == (False, False)
    assert looked_after.is_shipped


def test_failed_proof_is_told_at_every_look(
    make_run: RunMaker, make_service: ServiceMaker, edit_manifest: ManifestEditor
) -> None:
    run = make_run("float32")
    probe = read_manifest(checkpoint_directory(run, 4)).probe
    assert probe is not None
    edit_manifest(run, 4, probe=Probe(token_ids=probe.token_ids, mean_negative_log_likelihood=1.0))
    for _ in range(2):
        _, (problem,) = look(make_service(run.parent))
        assert "export step-00000004: failed its proof: loss" in problem
    assert mlflow_run(run.parent).data.tags["smollm2.proof"] == "failed at step 4"


def test_dead_server_is_told_and_stops_nothing_else(make_run: RunMaker, make_service: ServiceMaker) -> None:
    run = make_run("float32")
    told, (problem,) = look(make_service(run.parent, tracking_uri=f"http://127.0.0.1:{free_port()}"))
    assert "did not answer or refused" in problem
    assert exported_steps(told) == [4]
    assert (run / "loss_curve.png").is_file()


def test_dead_server_is_asked_for_one_run_and_not_for_each(
    new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker
) -> None:
    for number in range(3):
        write_log(new_run(f"run-{number}", run_key=str(number) * 32), steps=1)
    service = make_service(run_folder := Path(new_run("last").parent), tracking_uri=f"http://127.0.0.1:{free_port()}")
    # one job at a time, as in the lane of the real pool
    service._runner.poll = one_at_a_time(service._runner)  # type: ignore[method-assign]
    service.run_until_done()
    assert performed(service).count("ship") <= 4
    assert run_folder.is_dir()


def one_at_a_time(runner: Any) -> Callable[[], Any]:
    poll = runner.poll

    def once() -> Any:
        later, runner.waiting = runner.waiting[1:], runner.waiting[:1]
        ended = poll()
        runner.waiting = later
        return ended

    return once


def test_proof_made_while_the_server_was_down_is_logged_later(make_run: RunMaker, make_service: ServiceMaker) -> None:
    run = make_run("float32")
    look(make_service(run.parent, tracking_uri=f"http://127.0.0.1:{free_port()}"))
    shutil.rmtree(run / "service")  # the failure of another server's
    assert look(make_service(run.parent))[1] == []
    assert mlflow_run(run.parent).data.tags["smollm2.proof"] == "passed at step 4"


def test_one_bad_run_does_not_keep_the_others_waiting(
    new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker
) -> None:
    bad, good = new_run("bad", run_key="1" * 32), new_run("good", run_key="2" * 32)
    (bad / "run.json").write_text("{}")
    write_log(good, steps=3)
    status = make_service(good.parent).run_until_done()
    assert "bad: the run: " in status.problems[0]
    assert "is not a run record" in status.problems[0]
    assert len(status.problems) == 1
    assert (good / "loss_curve.png").is_file()


def test_a_run_of_which_nothing_can_be_read_hides_no_other(
    make_run: RunMaker, new_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good, stat = make_run("float32").rename(new_run("good").parent / "bad"), "good", Path.stat
    service = make_service(bad.parent)
    look_at_all = service.run_until_done
    assert {run.name: run.checkpoint_count for run in look_at_all().runs} == {"bad": 2, good: 0}

    def fail(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.is_relative_to(bad):
            raise OSError(116, "Stale file handle", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", fail)
    (bad_run, good_run) = [managed for _, managed in sorted(service._runs.items())]
    for managed in (bad_run, good_run):
        managed.look(percent_above_mark=0, sweeping=False)
    assert [trouble.reason for trouble in bad_run.status.troubles if trouble.what == "the run"] == [
        f"{bad / 'run.json'}: Stale file handle; the service tries again"
    ]


def test_more_jobs_than_the_queue_holds_are_all_done(
    new_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_QUEUE_LENGTH", 2)
    for number in range(7):
        run = new_run(f"run-{number}", run_key=str(number) * 32)
    status = make_service(run.parent).run_until_done()
    assert [told.is_shipped for told in status.runs] == [True] * 7


def test_what_is_asked_for_while_the_queue_is_full_is_done_later(
    make_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("float32")
    service = make_service(run.parent)
    look(service)
    monkeypatch.setattr(service_module, "_QUEUE_LENGTH", 0)
    service.request(Job(kind="verify", run=run, step=2))
    assert not service._take_requests()
    monkeypatch.setattr(service_module, "_QUEUE_LENGTH", 100)
    look(service)
    assert performed(service)[-1] == "verify step-00000002"


def test_run_folder_that_vanishes_is_forgotten(
    new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker
) -> None:
    run, other = new_run("gone", run_key="1" * 32), new_run("stays", run_key="2" * 32)
    write_log(run, steps=3)
    service = make_service(run.parent)
    service.run_until_done()
    shutil.rmtree(run)
    status = service.run_until_done()
    assert ([told.name for told in status.runs], status.problems) == ([other.name], [])


def test_run_folder_that_is_away_while_its_job_runs_has_it_done_once(
    new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker
) -> None:
    run = new_run()
    write_log(run, steps=3)
    service = make_service(run.parent, redraw_seconds=1000)
    look(service)
    shipments = performed(service).count("ship")
    write_log(run, first_step=4, steps=4)
    service.look()
    away = run.rename(run.parent.with_name("away"))
    service.look()
    away.rename(run)
    service.look()
    told, problems = look(service)
    assert (problems, told.is_shipped) == ([], True)
    assert performed(service).count("ship") == shipments + 1


def test_what_is_asked_for_on_a_full_disk_does_not_end_the_service(
    make_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("float32")
    spoil(run, 2)
    service = make_service(run.parent)
    look(service)
    service.request(Job(kind="verify", run=run, step=2))
    look(service)

    def fill(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(failures, "write_durably", fill)
    service.request(Job(kind="verify", run=run, step=2))
    assert service._take_requests()
    assert [job.what for job in service._runner.unfinished()] == ["verify step-00000002"]


def test_a_run_that_goes_on_is_shipped_once_a_poll_and_at_once_when_it_has_ended(
    new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker
) -> None:
    run = new_run()
    service = make_service(run.parent, redraw_seconds=1000, poll_seconds=1000)
    with exclusive_lock(run / LOCK_FILE, busy="the trainer's"):
        write_log(run, steps=1, state="running")
        service.run_until_done()
        shipments = performed(service).count("ship")
        for step in (2, 3):
            write_log(run, first_step=step, steps=step, state="running")
            service.run_until_done()
        assert performed(service).count("ship") == shipments
    told, _ = look(service)
    assert (performed(service).count("ship"), told.is_shipped) == (shipments + 1, True)


def test_run_without_checkpoints_is_all_right(new_run: RunMaker, make_service: ServiceMaker) -> None:
    told, problems = look(make_service(new_run().parent))
    assert (problems, told.checkpoint_count, told.checkpoints) == ([], 0, ())


def test_data_run_is_shipped_with_its_artefacts_and_not_looked_at_for_checkpoints(
    new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker
) -> None:
    run = new_run(kind="data")
    write_log(run, steps=1)
    (run / "artifacts").mkdir()
    (run / "artifacts" / "report.html").write_text("<p>")
    (run / "artifacts" / ".report.json.partial").write_text("{")
    service = make_service(run.parent)
    told, problems = look(service)
    assert (problems, told.kind, told.is_shipped) == ([], "data", True)
    assert performed(service) == ["ship"]
    assert mlflow_run(run.parent).info.status == "FINISHED"
    stored = {path.name for path in (run.parent / "mlartifacts").rglob("*") if path.is_file()}
    assert stored == {"report.html"}


def test_curve_is_not_drawn_again_before_its_time(
    new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker
) -> None:
    run = new_run()
    write_log(run, steps=3, state="running")
    service = make_service(run.parent, redraw_seconds=300)
    service.run_until_done()
    drawn_s = (run / "loss_curve.png").stat().st_mtime
    with EventWriter(events_file(run)) as log:
        log.write("metrics", step=4, **{"train/loss": 1.0})
    service.run_until_done()
    assert (run / "loss_curve.png").stat().st_mtime == drawn_s
    os.utime(run / "loss_curve.png", (drawn_s - 301, drawn_s - 301))
    service.run_until_done()
    assert (run / "loss_curve.png").stat().st_mtime > drawn_s - 301


def test_checkpoints_are_pruned_by_the_config_after_the_export(make_run: RunMaker, make_service: ServiceMaker) -> None:
    run = make_run("float32")
    service = make_service(run.parent, retention={"keep_last": 1})
    assert look(service)[1] == []
    assert [path.name for path in sorted((run / "checkpoints").glob("step-*"))] == ["step-00000004"]
    assert performed(service).index("export step-00000004") < performed(service).index("prune")


def test_checkpoints_on_a_disk_of_their_own_are_pruned_when_that_fills(
    make_run: RunMaker, make_service: ServiceMaker, mount_tmpfs: Callable[[str], Path]
) -> None:
    run, disk = make_run("float32"), mount_tmpfs("size=60m")
    checkpoints = shutil.move(run / "checkpoints", disk / "checkpoints")
    (run / "checkpoints").symlink_to(checkpoints)
    service = make_service(run.parent, retention={"keep_last": 2, "disk_high_water_fraction": 0.9})
    assert look(service)[0].checkpoint_count == 2
    pruned = performed(service).count("prune")
    assert look(service)[0].checkpoint_count == 2
    assert performed(service).count("prune") == pruned
    with (disk / "other").open("wb") as other:
        os.posix_fallocate(other.fileno(), 0, shutil.disk_usage(disk).free)
    assert look(service)[0].checkpoint_count == 1
    assert performed(service).count("prune") > pruned


def test_a_run_whose_sweep_fails_is_looked_at_all_the_same(
    new_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/trash")

    monkeypatch.setattr(managed_run, "sweep", fail)
    told, problems = look(make_service(new_run().parent))
    assert (problems, told.is_shipped) == ([], True)
    assert [line for line in caplog.messages if "could not be removed" in line] == [
        "small: what dead processes left could not be removed: /trash: Permission denied; the service tries again"
    ]


def test_a_folder_that_could_not_be_listed_is_listed_at_the_next_look(
    make_run: RunMaker, make_service: ServiceMaker, unlistable: Callable[..., AbstractContextManager[None]]
) -> None:
    run = make_run("float32")
    pin(run, 4)
    for folder in (run / "pins", run / "checkpoints"):
        os.utime(folder, (0, 0))  # long unchanged
    service = make_service(run.parent, retention={"keep_last": 1})
    for folder in ("pins", "checkpoints"):
        with unlistable(run / folder):
            told, (problem,) = look(service)
        assert problem == f"run-float32: the run: {run / folder}: Permission denied; the service tries again"
        assert performed(service) == []
    (managed,) = service._runs.values()
    managed.look(percent_above_mark=0, sweeping=False)
    told = managed.status
    assert [(one.step, one.is_pinned) for one in told.checkpoints] == [(4, True), (2, False)]


def test_nothing_is_pruned_without_a_rule(make_run: RunMaker, make_service: ServiceMaker) -> None:
    run = make_run("float32")
    look(make_service(run.parent))
    assert len(list((run / "checkpoints").glob("step-*"))) == 2


def test_proven_exports_are_published_and_a_failing_destination_stops_nothing_else(
    make_run: RunMaker, make_service: ServiceMaker, tmp_path: Path
) -> None:
    run = make_run("float32")
    (tmp_path / "file").touch()
    places = [str(tmp_path / "models"), str(tmp_path / "file" / "below")]
    told, (problem,) = look(make_service(run.parent, publish_to=places))
    assert problem.startswith(f"run-float32: publish step-00000004 to {places[1]}: ")
    assert "Not a directory" in problem
    assert told.checkpoints[0].published_to == (places[0],)
    assert (tmp_path / "models" / "small-float32" / "latest").read_text() == "step-00000004\n"
    (run / "service" / "published.json").unlink()
    again = make_service(run.parent, publish_to=places[:1])
    assert look(again)[0].checkpoints[0].published_to == (places[0],)
    assert "publish step-00000004" in performed(again)[-1]


def test_a_file_server_that_is_away_does_not_end_the_service(
    new_run: RunMaker, make_service: ServiceMaker, caplog: pytest.LogCaptureFixture
) -> None:
    run = new_run()
    service = make_service(run.parent)
    run.parent.rename(run.parent.with_name("away"))
    assert not service._unless_away(service._look_again)
    assert "does not exist" in caplog.text
    run.parent.with_name("away").rename(run.parent)
    assert service._unless_away(service._look_again)


def test_a_job_that_ends_while_the_file_server_is_away_does_not_end_the_service(
    new_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service, away = make_service(new_run().parent), service_module.shutil.disk_usage
    service.look()  # a job waits

    def be_away(path: Path) -> Any:
        monkeypatch.setattr(service_module.shutil, "disk_usage", away)
        raise OSError(116, "Stale file handle", str(path))

    class StopError(BaseException):
        pass

    def stop_when_it_is_back(_: float) -> None:
        if "Stale file handle" in caplog.text:
            raise StopError

    monkeypatch.setattr(service_module.shutil, "disk_usage", be_away)
    monkeypatch.setattr(service_module.time, "sleep", stop_when_it_is_back)
    with pytest.raises(StopError):
        service.run_forever()


def test_old_checkpoints_are_scrubbed_one_after_the_other(make_run: RunMaker, make_service: ServiceMaker) -> None:
    run = make_run("float32")
    look(make_service(run.parent))
    spoil(run, 2)
    service = make_service(run.parent, scrub_bytes_per_second=1e12)
    for _ in range(3):
        look(service)
        service.scrub_next()
    told, problems = look(service)
    # the one that was never hashed comes first, and one that is damaged is not hashed again
    assert [job for job in performed(service) if job.startswith("scrub")] == [
        "scrub step-00000002",
        "scrub step-00000004",
        "scrub step-00000004",
    ]
    assert any("scrub step-00000002" in problem and "contents changed" in problem for problem in problems)
    assert told.checkpoints[1].verification == "damaged"


def test_a_scrub_that_fails_keeps_no_other_checkpoint_waiting_and_no_export(
    make_run: RunMaker, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("float32")
    service = make_service(run.parent, scrub_bytes_per_second=1e12)
    service.look()
    waiting = service._runner.waiting  # type: ignore[attr-defined]
    del waiting[:]
    service.scrub_next()
    assert [job.what for job in waiting] == ["scrub step-00000002"]
    (managed,) = service._runs.values()
    managed.jobs = dict.fromkeys(waiting)
    assert "export step-00000004" in {job.what for job in managed.look(percent_above_mark=0, sweeping=False)}
    managed.end(waiting.pop(), Outcome(blame="job", reason="it is odd"))
    service.scrub_next()
    assert [job.what for job in waiting] == ["scrub step-00000004"]


def test_a_run_folder_may_be_named_itself(new_run: RunMaker) -> None:
    run = new_run()
    assert find_runs(run) == [run]
    assert find_runs(run.parent) == [run]


def test_a_folder_whose_file_system_is_away_hides_no_run(
    new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, run = new_run("away", run_key="1" * 32), new_run("here", run_key="2" * 32)
    write_log(run, steps=3)
    stat = Path.stat

    def not_there(path: Path, **settings: Any) -> os.stat_result:
        if path.is_relative_to(away):
            raise OSError(107, "Transport endpoint is not connected", str(path))
        return stat(path, **settings)

    monkeypatch.setattr(Path, "stat", not_there)
    status = make_service(run.parent).run_until_done()
    assert {told.name: told.is_shipped for told in status.runs}["here"]
    assert ["away: the run: " in problem and "not connected" in problem for problem in status.problems] == [True]


def test_a_link_to_a_run_beside_it_is_no_second_run(new_run: RunMaker, tmp_path: Path) -> None:
    run = new_run()
    (run.parent / "current").symlink_to(run.name)
    elsewhere = new_run("elsewhere").rename(tmp_path / "elsewhere")
    (run.parent / "linked").symlink_to(elsewhere)
    assert find_runs(run.parent) == [run.parent / "linked", run]


def test_a_folder_that_may_not_be_entered_hides_no_run(new_run: RunMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    run, is_file = new_run(), Path.is_file
    (run.parent / "lost+found").mkdir()

    def refuse(path: Path) -> bool:
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert find_runs(run.parent) == [run]


def test_a_folder_whose_name_is_not_utf8_is_told_once_and_hides_no_run(
    new_run: RunMaker, write_log: LogWriter, make_service: ServiceMaker, caplog: pytest.LogCaptureFixture
) -> None:
    run = new_run()
    write_log(run, steps=3)
    shutil.copytree(run, run.parent / os.fsdecode(b"run-\xe9"))
    status = make_service(run.parent).run_until_done()
    assert [(told.name, told.is_shipped) for told in status.runs] == [("small", True)]
    assert find_runs(run.parent) == [run]
    told = r"b'run-\xe9' is passed over: the name is not UTF-8; rename the folder"
    assert [message for message in caplog.messages if "UTF-8" in message] == [told]


def test_runs_below_a_path_that_is_not_utf8_are_an_error(new_run: RunMaker, tmp_path: Path) -> None:
    run = new_run()
    place = run.parent.rename(tmp_path / os.fsdecode(b"run-\xe9"))
    (tmp_path / "link").symlink_to(place)
    for folder in (place, place / run.name, tmp_path / "link"):
        with pytest.raises(CheckpointError, match=r"^b'.*run-\\xe9.*': the path is not UTF-8; rename the folder$"):
            find_runs(folder)


def test_a_link_that_leads_to_itself_hides_no_run(new_run: RunMaker) -> None:
    run = new_run()
    (run.parent / "loop").symlink_to("loop")
    assert find_runs(run.parent) == [run]


def test_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist; name the folder that holds the run folders"):
        find_runs(tmp_path / "nowhere")


def test_service_watches_until_sigterm_and_keeps_others_out(new_run: RunMaker, write_log: LogWriter) -> None:
    run = new_run()
    write_log(run, steps=3)
    command = [sys.executable, "-m", "checkpoint", "serve", str(run.parent)]
    with subprocess.Popen([*command, "poll_seconds=0.2", "http.port=0"], stderr=subprocess.PIPE, text=True) as first:
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
    assert second.stderr.startswith(
        f"smollm2 checkpoint: another service is at work in {run.parent} (process {first.pid} on "
    )
    assert second.stderr.endswith("; end it first\n")
